// The one knob for CPU threads: GPUCNN_NUM_THREADS, or set_num_threads() at run time.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "array.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

int initial_threads() {
    if (const char* text = std::getenv("GPUCNN_NUM_THREADS")) {
        const int count = std::atoi(text);
        if (count >= 1) return std::min(count, 1024);
    }
#ifdef _OPENMP
    cpu_set_t allowed;  // containers and taskset give fewer CPUs than the machine has
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return std::max(1, CPU_COUNT(&allowed));
#endif
    return 1;
}

std::atomic<int> thread_count{initial_threads()};

}  // namespace

int num_threads() { return thread_count.load(std::memory_order_relaxed); }
void set_num_threads(int count) { thread_count.store(count, std::memory_order_relaxed); }

void register_threads(py::module_& m) {
    m.def("get_num_threads", &num_threads);
    m.def("set_num_threads", [](int count) {
        expect(count >= 1 && count <= 1024, "set_num_threads", "count must be from 1 to 1024");
        set_num_threads(count);
    });
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.attr("compiler") = __VERSION__;
}

}  // namespace gpucnn
