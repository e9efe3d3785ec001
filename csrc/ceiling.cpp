// What this CPU reaches at most, for percentages of it: multiply-adds on registers alone, and a copy of memory.
//
//   multiply_add_loop   `rounds` rounds in each worker of v = v * factor + addend on CHAINS independent vectors
//   copy_bytes          to = from, each worker a range
#include <cstring>

#include "operations.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

// Enough independent chains to hide the latency of two multiply-add units, few enough to stay in 16 registers.
constexpr int CHAINS = 12;
constexpr int64_t COPY_GRAIN = 1 << 20;

template <class T, int BYTES>
inline __attribute__((always_inline)) T run_chains(int64_t rounds) {
    typedef T Vector __attribute__((vector_size(BYTES)));
    constexpr int LANES = BYTES / sizeof(T);
    Vector values[CHAINS], factor, addend;
    for (int lane = 0; lane < LANES; ++lane) factor[lane] = T(0.999), addend[lane] = T(0.001);
    for (int chain = 0; chain < CHAINS; ++chain) values[chain] = factor * T(chain);
    for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 12
        for (int chain = 0; chain < CHAINS; ++chain) values[chain] = values[chain] * factor + addend;
    T sum = 0;
    for (int chain = 0; chain < CHAINS; ++chain)
        for (int lane = 0; lane < LANES; ++lane) sum += values[chain][lane];
    return sum;
}

#if defined(__x86_64__) && defined(__GNUC__)
template <class T>
__attribute__((target("avx512f"))) T chains_of_64_bytes(int64_t rounds) {
    return run_chains<T, 64>(rounds);
}

template <class T>
__attribute__((target("avx2,fma"))) T chains_of_32_bytes(int64_t rounds) {
    return run_chains<T, 32>(rounds);
}
#endif

template <class T>
T chains_of_16_bytes(int64_t rounds) {
    return run_chains<T, 16>(rounds);
}

template <class T>
struct Chains {
    T (*run)(int64_t rounds);
    int bytes;  // of a vector
};

template <class T>
Chains<T> widest() {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f")) return {chains_of_64_bytes<T>, 64};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {chains_of_32_bytes<T>, 32};
#endif
    return {chains_of_16_bytes<T>, 16};
}

}  // namespace

template <class T>
double multiply_add_loop(int64_t rounds) {
    const Chains<T> chains = widest<T>();
    const int workers = num_threads();
    T sums[MAX_THREADS];
    parallel_for(workers, [&](int64_t worker) { sums[worker] = chains.run(rounds); });
    volatile T used = 0;  // so that the loops are not left out
    for (int worker = 0; worker < workers; ++worker) used = used + sums[worker];
    return 2.0 * workers * rounds * CHAINS * (chains.bytes / int(sizeof(T)));
}

template double multiply_add_loop<float>(int64_t rounds);
template double multiply_add_loop<double>(int64_t rounds);

void copy_bytes(const char* from, char* to, int64_t count) {
    parallel_for_ranges(count, COPY_GRAIN,
                        [&](int64_t begin, int64_t end) { std::memcpy(to + begin, from + begin, end - begin); });
}

}  // namespace gpucnn
