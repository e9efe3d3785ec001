// Loops of element-wise kernels over `count` floats: four at a time where every pointer is a multiple of 16, else one.
// Outputs may be the memory of an input, element for element.
#pragma once
#include "common.cuh"

// y[i] = function(x[i])
template <class Function>
__device__ __forceinline__ void map_elements(const float* x, float* y, int64 count, const Function& function) {
    if (!is_aligned16(x) || !is_aligned16(y)) {
        for (int64 i = global_thread(); i < count; i += global_threads()) y[i] = function(x[i]);
        return;
    }
    int64 i = 4 * global_thread();
    for (; i + 4 <= count; i += 4 * global_threads()) {
        const float4 v = load4(x + i);
        store4(y + i, make_float4(function(v.x), function(v.y), function(v.z), function(v.w)));
    }
    for (; i < count; ++i) y[i] = function(x[i]);  // the last one to three, in one thread
}

// y[i] = function(a[i], b[i])
template <class Function>
__device__ __forceinline__ void map_elements(const float* a, const float* b, float* y, int64 count,
                                             const Function& function) {
    if (!is_aligned16(a) || !is_aligned16(b) || !is_aligned16(y)) {
        for (int64 i = global_thread(); i < count; i += global_threads()) y[i] = function(a[i], b[i]);
        return;
    }
    int64 i = 4 * global_thread();
    for (; i + 4 <= count; i += 4 * global_threads()) {
        const float4 u = load4(a + i), v = load4(b + i);
        store4(y + i, make_float4(function(u.x, v.x), function(u.y, v.y), function(u.z, v.z), function(u.w, v.w)));
    }
    for (; i < count; ++i) y[i] = function(a[i], b[i]);
}
