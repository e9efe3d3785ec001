#include "native.hpp"

#include <dlfcn.h>

#include <cstring>
#include <stdexcept>

namespace gpucnn::native {

// Types and names as in the driver's cuda.h; a suffix names the version of an interface.
struct Functions {
    int (*cuInit)(unsigned);
    int (*cuGetErrorName)(int, const char**);
    int (*cuCtxGetCurrent)(Handle*);
    int (*cuCtxSetCurrent)(Handle);
    int (*cuDeviceGet)(int*, int);
    int (*cuDevicePrimaryCtxRetain)(Handle*, int);
    int (*cuModuleLoadData)(Handle*, const void*);
    int (*cuModuleGetFunction)(Handle*, Handle, const char*);
    int (*cuFuncSetAttribute)(Handle, int, int);
    int (*cuLaunchKernel)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void**, void**);
    int (*cuStreamCreate)(Handle*, unsigned);
    int (*cuStreamDestroy_v2)(Handle);
    int (*cuStreamBeginCapture_v2)(Handle, int);
    int (*cuStreamEndCapture)(Handle, Handle*);
    int (*cuGraphInstantiateWithFlags)(Handle*, Handle, unsigned long long);
    int (*cuGraphDestroy)(Handle);
    int (*cuGraphLaunch)(Handle, Handle);
    int (*cuGraphExecDestroy)(Handle);
};

namespace {

constexpr int MAX_DYNAMIC_SHARED_BYTES = 8;      // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int CAPTURE_THREAD_LOCAL = 1;          // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
constexpr unsigned STREAM_NON_BLOCKING = 1;      // CU_STREAM_NON_BLOCKING
constexpr unsigned SHARED_BYTES_UNASKED = 48 << 10;  // above this a kernel must ask for dynamic shared memory

template <class Function>
void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) throw std::runtime_error(std::string("native: the CUDA driver has no ") + name + "; update it");
}

}  // namespace

#define FIND(name) find(library_, #name, functions_->name)

Driver::Driver(const std::string& library) : library_(dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (!library_) throw std::runtime_error("native: there is no CUDA driver here (" + std::string(dlerror()) + ")");
    functions_ = std::make_unique<Functions>();
    FIND(cuInit);
    FIND(cuGetErrorName);
    FIND(cuCtxGetCurrent);
    FIND(cuCtxSetCurrent);
    FIND(cuDeviceGet);
    FIND(cuDevicePrimaryCtxRetain);
    FIND(cuModuleLoadData);
    FIND(cuModuleGetFunction);
    FIND(cuFuncSetAttribute);
    FIND(cuLaunchKernel);
    FIND(cuStreamCreate);
    FIND(cuStreamDestroy_v2);
    FIND(cuStreamBeginCapture_v2);
    FIND(cuStreamEndCapture);
    FIND(cuGraphInstantiateWithFlags);
    FIND(cuGraphDestroy);
    FIND(cuGraphLaunch);
    FIND(cuGraphExecDestroy);
    check(functions_->cuInit(0), "cuInit");
}

Driver::~Driver() = default;  // the driver stays loaded: its threads may still run

void Driver::check(int code, const char* what) const {
    if (!code) return;
    const char* name = nullptr;
    functions_->cuGetErrorName(code, &name);
    throw std::runtime_error(std::string("native: ") + what + ": " + (name ? name : "unknown error") + " (" +
                             std::to_string(code) + ")");
}

void Driver::require_context(int device) const {
    Handle context = nullptr;
    check(functions_->cuCtxGetCurrent(&context), "cuCtxGetCurrent");
    if (context) return;
    int handle = 0;
    check(functions_->cuDeviceGet(&handle, device), "cuDeviceGet");
    check(functions_->cuDevicePrimaryCtxRetain(&context, handle), "cuDevicePrimaryCtxRetain");
    check(functions_->cuCtxSetCurrent(context), "cuCtxSetCurrent");
}

Module::Module(std::shared_ptr<const Driver> driver, const std::string& cubin) : driver_(std::move(driver)) {
    driver_->check(driver_->functions().cuModuleLoadData(&module_, cubin.data()), "cuModuleLoadData");
}

Handle Module::function(const std::string& name) const {
    Handle function = nullptr;
    driver_->check(driver_->functions().cuModuleGetFunction(&function, module_, name.c_str()), name.c_str());
    return function;
}

Launch::Launch(const Module& module, const std::string& name, const unsigned (&grid)[3], unsigned threads,
               unsigned shared_bytes, const std::vector<std::string>& arguments)
    : driver_(module.driver()),
      function_(module.function(name)),
      grid_{grid[0], grid[1], grid[2]},
      threads_(threads),
      shared_bytes_(shared_bytes) {
    if (shared_bytes > SHARED_BYTES_UNASKED) {
        const int code = driver_->functions().cuFuncSetAttribute(function_, MAX_DYNAMIC_SHARED_BYTES, shared_bytes);
        driver_->check(code, "cuFuncSetAttribute");
    }
    for (const std::string& bytes : arguments) {
        values_.emplace_back(bytes.size() / 8 + 1);
        std::memcpy(values_.back().data(), bytes.data(), bytes.size());
        pointers_.push_back(values_.back().data());
    }
}

void Launch::run(Handle stream) const {
    const int code = driver_->functions().cuLaunchKernel(function_, grid_[0], grid_[1], grid_[2], threads_, 1, 1,
                                                         shared_bytes_, stream, pointers_.data(), nullptr);
    driver_->check(code, "cuLaunchKernel");
}

Graph::Graph(std::shared_ptr<const Driver> driver, const std::vector<const Launch*>& launches) : driver_(std::move(driver)) {
    const Functions& f = driver_->functions();
    Handle stream = nullptr, graph = nullptr;
    driver_->check(f.cuStreamCreate(&stream, STREAM_NON_BLOCKING), "cuStreamCreate");
    try {
        driver_->check(f.cuStreamBeginCapture_v2(stream, CAPTURE_THREAD_LOCAL), "cuStreamBeginCapture");
        try {
            for (const Launch* launch : launches) launch->run(stream);
        } catch (...) {
            f.cuStreamEndCapture(stream, &graph);
            throw;
        }
        driver_->check(f.cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
        driver_->check(f.cuGraphInstantiateWithFlags(&executable_, graph, 0), "cuGraphInstantiate");
    } catch (...) {
        if (graph) f.cuGraphDestroy(graph);
        f.cuStreamDestroy_v2(stream);
        throw;
    }
    f.cuGraphDestroy(graph);
    f.cuStreamDestroy_v2(stream);
}

Graph::~Graph() { driver_->functions().cuGraphExecDestroy(executable_); }

void Graph::run(Handle stream) const { driver_->check(driver_->functions().cuGraphLaunch(executable_, stream), "cuGraphLaunch"); }

}  // namespace gpucnn::native
