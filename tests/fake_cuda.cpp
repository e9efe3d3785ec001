// A CUDA driver that computes nothing: it notes each call in a text, so that a test can read what the engine asked for.
#include <cstring>
#include <string>

namespace {
std::string calls;
bool capturing = false;
int failing_launch = -1;
char context, module_memory, function_memory, stream_memory, graph_memory;
}  // namespace

extern "C" {
const char* fake_calls() { return calls.c_str(); }
void fake_reset(int fail_launch) { calls.clear(); failing_launch = fail_launch; }

int cuInit(unsigned) { return 0; }
int cuGetErrorName(int, const char** name) { *name = "CUDA_ERROR_OF_A_TEST"; return 0; }
int cuCtxGetCurrent(void** current) { *current = nullptr; return 0; }
int cuCtxSetCurrent(void*) { calls += "context;"; return 0; }
int cuDeviceGet(int* handle, int device) { *handle = device; return 0; }
int cuDevicePrimaryCtxRetain(void** out, int) { *out = &context; return 0; }
int cuModuleLoadData(void** out, const void* image) {
    *out = &module_memory;
    return std::memcmp(image, "cubin", 5) ? 200 : 0;
}
int cuModuleGetFunction(void** out, void*, const char* name) {
    calls += std::string("function ") + name + ";";
    *out = &function_memory;
    return std::strcmp(name, "missing") ? 0 : 500;
}
int cuFuncSetAttribute(void*, int attribute, int value) {
    calls += "attribute " + std::to_string(attribute) + "=" + std::to_string(value) + ";";
    return 0;
}
int cuLaunchKernel(void*, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned, unsigned shared,
                   void* stream, void** arguments, void**) {
    if (failing_launch-- == 0) return 719;
    unsigned long long pointer;
    int number;
    std::memcpy(&pointer, arguments[0], 8);
    std::memcpy(&number, arguments[1], 4);
    calls += std::string(capturing ? "captured " : "launch ") + std::to_string(x) + "," + std::to_string(y) + "," +
             std::to_string(z) + " x" + std::to_string(threads) + " " + std::to_string(shared) + " (" +
             std::to_string(pointer) + ", " + std::to_string(number) + ")" + (stream == &stream_memory ? "" : " stream") + ";";
    return 0;
}
int cuStreamCreate(void** out, unsigned) { *out = &stream_memory; return 0; }
int cuStreamDestroy_v2(void*) { calls += "destroy stream;"; return 0; }
int cuStreamBeginCapture_v2(void*, int) { capturing = true; return 0; }
int cuStreamEndCapture(void*, void** graph) { capturing = false; *graph = &graph_memory; return 0; }
int cuGraphInstantiateWithFlags(void** out, void*, unsigned long long) { *out = &graph_memory; return 0; }
int cuGraphDestroy(void*) { calls += "destroy graph;"; return 0; }
int cuGraphLaunch(void*, void*) { calls += "graph;"; return 0; }
int cuGraphExecDestroy(void*) { calls += "destroy executable;"; return 0; }
}
