// Adaptive max pooling of x (N, C, H, W), with strides, into contiguous y and switches (N, C, P, Q): window i covers
// rows floor(i · H / P) up to ceil((i + 1) · H / P), columns alike. P = Q = 1 is global pooling.
//
//   y = max over the window; switches = h · W + w of the winner in its plane, of equal values or NaNs the first
//
// Outputs are overwritten; backward stands in max_pool2d.cu. *_warp: a warp an output, for large windows in rows.
#include "pool.cuh"

struct Winner {
    float value;
    int place;
};

// The better of the two, NaN above all; places decide between equals, so the order of comparisons does not matter.
__device__ __forceinline__ Winner better(const Winner& a, const Winner& b) {
    const bool a_is_nan = a.value != a.value, b_is_nan = b.value != b.value;
    const bool equal = a.value == b.value || (a_is_nan && b_is_nan);
    return b.value > a.value || (b_is_nan && !a_is_nan) || (equal && b.place < a.place) ? b : a;
}

KERNEL(256, 4) adaptive_max_pool2d_forward(const float* x, float* y, int* switches, Pool2d pool) {
    const Output output = output_of_thread(pool);
    if (!output.exists) return;
    const float* plane = plane_of(x, pool, output.n, output.c);
    const Span rows = Adaptive::window<0>(pool, output.p), columns = Adaptive::window<1>(pool, output.q);
    Winner best{-INFINITY, rows.begin * pool.size[1] + columns.begin};
    for (int h = rows.begin; h < rows.end; ++h)
        for (int w = columns.begin; w < columns.end; ++w)
            best = better(best, {plane[h * pool.x_stride[2] + w * pool.x_stride[3]], h * pool.size[1] + w});
    const int64 index = index_of(pool, output);
    y[index] = best.value;
    switches[index] = best.place;
}

KERNEL(256, 4) adaptive_max_pool2d_forward_warp(const float* x, float* y, int* switches, Pool2d pool) {
    const int64 index = global_thread() / WARP_SIZE;
    if (index >= pool.count) return;
    const Output output = output_at(pool, index);
    const float* plane = plane_of(x, pool, output.n, output.c);
    const Span rows = Adaptive::window<0>(pool, output.p);
    Winner best{-INFINITY, rows.end * pool.size[1]};
    for (LaneWalk at(rows, Adaptive::window<1>(pool, output.q)); at.h < rows.end; at.advance())
        best = better(best, {plane[at.h * pool.x_stride[2] + at.w * pool.x_stride[3]], at.h * pool.size[1] + at.w});
    for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2)
        best = better(best, {__shfl_xor_sync(ALL_LANES, best.value, distance),
                             __shfl_xor_sync(ALL_LANES, best.place, distance)});
    if (threadIdx.x % WARP_SIZE > 0) return;
    y[index] = best.value;
    switches[index] = best.place;
}
