// Softmax of a row in one pass: the largest number so far and Σ e^(x − largest), corrected when a larger one comes
// (Milakov & Gimelshein 2018). A row is shared by a GROUP of threads, a warp or the whole block.
#pragma once
#include "common.cuh"

constexpr int SOFTMAX_THREADS = 256;

struct Running {
    float largest = -INFINITY;
    float sum = 0.0f;  // of e^(x − largest)
};

// Equal parts need no factor, also where both are −∞; the same bits whichever part comes first. NaN stays in the sum.
__device__ __forceinline__ Running merge(Running a, Running b) {
    const bool ordered = a.largest >= b.largest;
    const Running large = ordered ? a : b, small = ordered ? b : a;
    const float factor = small.largest == large.largest ? 1.0f : expf(small.largest - large.largest);
    Running merged;
    merged.largest = large.largest;
    merged.sum = large.sum + small.sum * factor;
    return merged;
}

// The row of this thread's group, and the thread's position in the group.
template <int GROUP>
__device__ __forceinline__ int64 group_row() {
    static_assert(GROUP == WARP_SIZE || GROUP == SOFTMAX_THREADS, "a warp or the block");
    return static_cast<int64>(blockIdx.x) * (SOFTMAX_THREADS / GROUP) + threadIdx.x / GROUP;
}
template <int GROUP>
__device__ __forceinline__ int group_thread() {
    return threadIdx.x % GROUP;
}

// The sum over the group, in every thread of it.
template <int GROUP>
__device__ __forceinline__ float group_sum(float value) {
    if (GROUP == WARP_SIZE) return warp_reduce<Sum>(value);
    return block_reduce<Sum, SOFTMAX_THREADS>(value);
}

template <int GROUP>
__device__ __forceinline__ Running group_merge(Running value) {
    for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2) {
        Running other;
        other.largest = __shfl_xor_sync(ALL_LANES, value.largest, distance);
        other.sum = __shfl_xor_sync(ALL_LANES, value.sum, distance);
        value = merge(value, other);
    }
    if (GROUP == WARP_SIZE) return value;
    constexpr int WARPS = SOFTMAX_THREADS / WARP_SIZE;
    SHARED(float, largest, [WARPS]);
    SHARED(float, sum, [WARPS]);
    if (threadIdx.x % WARP_SIZE == 0) {
        largest[threadIdx.x / WARP_SIZE] = value.largest;
        sum[threadIdx.x / WARP_SIZE] = value.sum;
    }
    __syncthreads();
    Running total;
    for (int warp = 0; warp < WARPS; ++warp) {
        Running part;
        part.largest = largest[warp];
        part.sum = sum[warp];
        total = merge(total, part);
    }
    return total;
}

// largest and Σ e^(x − largest) of a row of `length`; the sum is NaN where the row has NaN or +∞, or −∞ alone.
template <int GROUP>
__device__ __forceinline__ Running row_softmax(const float* x, int length) {
    Running running;
    for (int i = group_thread<GROUP>(); i < length; i += GROUP) {
        Running one;
        one.largest = x[i];
        one.sum = 1.0f;
        running = merge(running, one);
    }
    running = group_merge<GROUP>(running);
    running.sum += running.largest - running.largest;  // ∞ − ∞ is NaN
    return running;
}
