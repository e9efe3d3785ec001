// Lp pooling over H and W of x (N, C, H, W), with strides, into contiguous y (N, C, P, Q), without padding.
//
//   forward    y = (f · Σ x^p)^(1/p) over the window; f = elements of a whole window / elements inside the plane, which
//              differs from 1 only where ceil_mode lets a window reach over the border
//   backward   gx (N, C, H, W) = x^(p−1) · Σ f · gy · y^(1−p) over the windows that hold this pixel, in their order; a
//              window whose y is 0 adds nothing
//
// No absolute value is taken: a power or root that is not real is NaN. Outputs are overwritten; backward gathers.
// l2_* are p = 2, by products and square roots.
#include "pool.cuh"

struct Square {
    static __device__ __forceinline__ float power(float x, float) { return x * x; }
    static __device__ __forceinline__ float root(float sum, float) { return sqrtf(sum); }
    static __device__ __forceinline__ float slope(float x, float) { return x; }
    static __device__ __forceinline__ float rate(float gy, float y, float) { return gy / y; }
};
struct Power {
    static __device__ __forceinline__ float power(float x, float p) { return powf(x, p); }
    static __device__ __forceinline__ float root(float sum, float p) { return powf(sum, 1.0f / p); }
    static __device__ __forceinline__ float slope(float x, float p) { return powf(x, p - 1.0f); }
    static __device__ __forceinline__ float rate(float gy, float y, float p) { return gy * powf(y, 1.0f - p); }
};

__device__ __forceinline__ float fill(const Pool2d& pool, int p, int q) {
    const int inside = Sliding::divisor<0>(pool, p) * Sliding::divisor<1>(pool, q);
    return static_cast<float>(pool.kernel[0] * pool.kernel[1]) / static_cast<float>(inside);
}

template <class Norm>
__device__ __forceinline__ void forward(const float* x, float* y, float norm_type, const Pool2d& pool) {
    const Output output = output_of_thread(pool);
    if (!output.exists) return;
    const float* plane = plane_of(x, pool, output.n, output.c);
    const Span rows = Sliding::window<0>(pool, output.p), columns = Sliding::window<1>(pool, output.q);
    float sum = 0.0f;
    for (int h = rows.begin; h < rows.end; ++h)
        for (int w = columns.begin; w < columns.end; ++w)
            sum += Norm::power(plane[h * pool.x_stride[2] + w * pool.x_stride[3]], norm_type);
    y[index_of(pool, output)] = Norm::root(sum * fill(pool, output.p, output.q), norm_type);
}

template <class Norm>
__device__ __forceinline__ void backward(const float* x, const float* y, const float* gy, float* gx, float norm_type,
                                         const Pool2d& pool) {
    const int64 index = global_thread();
    if (index >= pool.count) return;
    const Input input = input_at(pool, index);
    int c;
    const int n = divide(input.plane, pool.by_channels, c);
    const Span rows = Sliding::windows_with<0>(pool, input.h), columns = Sliding::windows_with<1>(pool, input.w);
    const int64 start = static_cast<int64>(input.plane) * pool.outputs[0] * pool.outputs[1];
    float sum = 0.0f;
    for (int p = rows.begin; p < rows.end; ++p)
        for (int q = columns.begin; q < columns.end; ++q) {
            const int64 window = start + p * pool.outputs[1] + q;
            if (y[window] != 0.0f) sum += Norm::rate(gy[window], y[window], norm_type) * fill(pool, p, q);
        }
    const float value = plane_of(x, pool, n, c)[input.h * pool.x_stride[2] + input.w * pool.x_stride[3]];
    gx[index] = Norm::slope(value, norm_type) * sum;
}

#define LP_POOL2D(NAME, NORM) \
    KERNEL(256, 4) NAME##_pool2d_forward(const float* x, float* y, float norm_type, Pool2d pool) { \
        forward<NORM>(x, y, norm_type, pool); \
    } \
    KERNEL(256, 4) NAME##_pool2d_backward(const float* x, const float* y, const float* gy, float* gx, float norm_type, \
                                          Pool2d pool) { \
        backward<NORM>(x, y, gy, gx, norm_type, pool); \
    }
LP_POOL2D(l2, Square)
LP_POOL2D(lp, Power)
