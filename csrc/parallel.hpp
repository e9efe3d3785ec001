// Threads and run-time dispatch for the CPU operations.
//
// One pool: every parallel loop of the extension runs on OpenMP's team of num_threads() workers (one thread where the
// extension was built without OpenMP). Work is cut by the shape alone, never by the number of threads, and no loop
// reduces across threads, so results have the same bits at every thread count.
#pragma once

#include <algorithm>
#include <cstdint>

namespace gpucnn {

constexpr int MAX_THREADS = 1024;

int num_threads();
void set_num_threads(int count);

// Calls body(i) for i in [0, count), spread over the workers; body must write only what belongs to i and must not throw.
template <class Body>
void parallel_for(std::int64_t count, const Body& body, bool parallel = true) {
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(num_threads()) if (parallel && count > 1 && num_threads() > 1)
#else
    (void)parallel;
#endif
    for (std::int64_t i = 0; i < count; ++i) body(i);
}

// Elements of an array that one worker takes at a time; smaller arrays are not worth waking a worker for.
constexpr std::int64_t GRAIN = 16384;

// Calls body(begin, end) for consecutive ranges of `grain` items that cover [0, count), spread over the workers.
template <class Body>
void parallel_for_ranges(std::int64_t count, std::int64_t grain, const Body& body) {
    parallel_for((count + grain - 1) / grain,
                 [&](std::int64_t i) { body(i * grain, std::min(count, (i + 1) * grain)); });
}

}  // namespace gpucnn

// The function is compiled for AVX-512, AVX2 + FMA and plain x86-64; the loader picks the best the CPU has. So a wheel is
// portable, and bits may differ between kinds of CPU (FMA rounds once), never between two runs on one.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define GPUCNN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GPUCNN_CLONES
#endif
