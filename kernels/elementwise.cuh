// Loops of element-wise kernels over `count` values of T (float, bfloat16, float16): 16 bytes at a time where every
// pointer is a multiple of 16, else one value. Functions compute in float32, and results are rounded once.
// Outputs may be the memory of an input, element for element.
#pragma once
#include "ptx_convert.cuh"

template <class T>
constexpr int VALUES_OF_16_BYTES = 16 / static_cast<int>(sizeof(T));

// COUNT neighbours, 16 or 8 bytes together, in one access at a multiple of them.
template <class T, int COUNT>
__device__ __forceinline__ void load_neighbours(const T* address, float (&values)[COUNT]) {
    if constexpr (sizeof(T) == 4) {
        load_values<COUNT>(reinterpret_cast<const float*>(address), values);
    } else {
        float words[COUNT / 2];
        load_values<COUNT / 2>(reinterpret_cast<const float*>(address), words);
#pragma unroll
        for (int k = 0; k < COUNT / 2; ++k) {
            const float2 pair = unpack<T>(__float_as_uint(words[k]));
            values[2 * k] = pair.x, values[2 * k + 1] = pair.y;
        }
    }
}
template <class T, int COUNT>
__device__ __forceinline__ void store_neighbours(T* address, const float (&values)[COUNT]) {
    if constexpr (sizeof(T) == 4) {
        store_values<COUNT>(reinterpret_cast<float*>(address), values);
    } else {
        float words[COUNT / 2];
#pragma unroll
        for (int k = 0; k < COUNT / 2; ++k) words[k] = __uint_as_float(pack<T>(values[2 * k], values[2 * k + 1]));
        store_values<COUNT / 2>(reinterpret_cast<float*>(address), words);
    }
}

// y[i] = function(x[i])
template <class T, class Function>
__device__ __forceinline__ void map_elements(const T* x, T* y, int64 count, const Function& function) {
    constexpr int COUNT = VALUES_OF_16_BYTES<T>;
    if (!is_aligned16(x) || !is_aligned16(y)) {
        for (int64 i = global_thread(); i < count; i += global_threads()) y[i] = round_to<T>(function(to_float(x[i])));
        return;
    }
    int64 i = COUNT * global_thread();
    for (; i + COUNT <= count; i += COUNT * global_threads()) {
        float values[COUNT];
        load_neighbours(x + i, values);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) values[k] = function(values[k]);
        store_neighbours(y + i, values);
    }
    for (; i < count; ++i) y[i] = round_to<T>(function(to_float(x[i])));  // the last few, in one thread
}

// y[i] = function(a[i], b[i])
template <class T, class Function>
__device__ __forceinline__ void map_elements(const T* a, const T* b, T* y, int64 count, const Function& function) {
    constexpr int COUNT = VALUES_OF_16_BYTES<T>;
    if (!is_aligned16(a) || !is_aligned16(b) || !is_aligned16(y)) {
        for (int64 i = global_thread(); i < count; i += global_threads())
            y[i] = round_to<T>(function(to_float(a[i]), to_float(b[i])));
        return;
    }
    int64 i = COUNT * global_thread();
    for (; i + COUNT <= count; i += COUNT * global_threads()) {
        float u[COUNT], v[COUNT];
        load_neighbours(a + i, u);
        load_neighbours(b + i, v);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) u[k] = function(u[k], v[k]);
        store_neighbours(y + i, u);
    }
    for (; i < count; ++i) y[i] = round_to<T>(function(to_float(a[i]), to_float(b[i])));
}
