// The one knob for CPU threads: GPUCNN_NUM_THREADS, or set_num_threads() at run time.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "parallel.hpp"

namespace gpucnn {
namespace {

int initial_threads() {
    if (const char* text = std::getenv("GPUCNN_NUM_THREADS")) {
        const int count = std::atoi(text);
        if (count >= 1) return std::min(count, MAX_THREADS);
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

}  // namespace gpucnn
