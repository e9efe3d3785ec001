// Average pooling over H and W of x (N, C, H, W), with strides, into contiguous y (N, C, P, Q).
//
//   avg_pool2d_*            y = sum over the window / divisor; divisor = elements of the window cut off at H + padding
//                           and W + padding (count_include_pad), or of the window cut to the plane (not)
//   adaptive_avg_pool2d_*   window i of P = [floor(i · H / P), ceil((i + 1) · H / P)); P = Q = 1 is global pooling
//   *_backward              gx (N, C, H, W) = sum of gy / divisor over the windows that hold this pixel, in their order
//
// Outputs are overwritten; backward gathers. *_2x2 and *_3x3: square windows known at compile time. *_warp: a warp an
// output, for large windows in rows.
#include "pool.cuh"

// Of a SIZE×SIZE window: all loads first.
template <int SIZE, class T>
__device__ __forceinline__ float small_sum(const T* plane, const Pool2d& pool, int p, int q) {
    const int top = Sliding::start<0>(pool, p), left = Sliding::start<1>(pool, q);
    float values[SIZE * SIZE];
#pragma unroll
    for (int i = 0; i < SIZE * SIZE; ++i) {
        const int h = top + i / SIZE, w = left + i % SIZE;
        const bool inside = h >= 0 && h < pool.size[0] && w >= 0 && w < pool.size[1];
        values[i] = inside ? to_float(plane[h * pool.x_stride[2] + w * pool.x_stride[3]]) : 0.0f;
    }
    float sum = values[0];
#pragma unroll
    for (int i = 1; i < SIZE * SIZE; ++i) sum += values[i];
    return sum;
}

template <class Windows, class T>
__device__ __forceinline__ float window_sum(const T* plane, const Pool2d& pool, int p, int q) {
    const Span rows = Windows::template window<0>(pool, p), columns = Windows::template window<1>(pool, q);
    float sum = 0.0f;
    for (int h = rows.begin; h < rows.end; ++h)
        for (int w = columns.begin; w < columns.end; ++w)
            sum += to_float(plane[h * pool.x_stride[2] + w * pool.x_stride[3]]);
    return sum;
}

template <class Windows>
__device__ __forceinline__ float divisor(const Pool2d& pool, int p, int q) {
    return static_cast<float>(Windows::template divisor<0>(pool, p) * Windows::template divisor<1>(pool, q));
}

// SIZE 0: any window
template <class Windows, int SIZE, class T>
__device__ __forceinline__ void forward(const T* x, T* y, const Pool2d& pool) {
    const Output output = output_of_thread(pool);
    if (!output.exists) return;
    const T* plane = plane_of(x, pool, output.n, output.c);
    float sum;
    if constexpr (SIZE > 0)
        sum = small_sum<SIZE>(plane, pool, output.p, output.q);
    else
        sum = window_sum<Windows>(plane, pool, output.p, output.q);
    y[index_of(pool, output)] = round_to<T>(sum / divisor<Windows>(pool, output.p, output.q));
}

template <class Windows, class T>
__device__ __forceinline__ void backward(const T* gy, T* gx, const Pool2d& pool) {
    const int64 index = global_thread();
    if (index >= pool.count) return;
    const Input input = input_at(pool, index);
    const Span rows = Windows::template windows_with<0>(pool, input.h);
    const Span columns = Windows::template windows_with<1>(pool, input.w);
    const T* gradients = gy + static_cast<int64>(input.plane) * pool.outputs[0] * pool.outputs[1];
    float sum = 0.0f;
    for (int p = rows.begin; p < rows.end; ++p)
        for (int q = columns.begin; q < columns.end; ++q)
            sum += to_float(gradients[p * pool.outputs[1] + q]) / divisor<Windows>(pool, p, q);
    gx[index] = round_to<T>(sum);
}

#define AVG_POOL2D_FORWARD(NAME, WINDOWS, SIZE, T) \
    KERNEL(256, 4) NAME(const T* x, T* y, Pool2d pool) { forward<WINDOWS, SIZE>(x, y, pool); }
AVG_POOL2D_FORWARD(avg_pool2d_forward_2x2, Sliding, 2, float)
AVG_POOL2D_FORWARD(avg_pool2d_forward_3x3, Sliding, 3, float)
AVG_POOL2D_FORWARD(avg_pool2d_forward_any, Sliding, 0, float)
AVG_POOL2D_FORWARD(adaptive_avg_pool2d_forward, Adaptive, 0, float)
AVG_POOL2D_FORWARD(avg_pool2d_forward_2x2_bfloat16, Sliding, 2, bfloat16)
AVG_POOL2D_FORWARD(avg_pool2d_forward_3x3_bfloat16, Sliding, 3, bfloat16)
AVG_POOL2D_FORWARD(avg_pool2d_forward_any_bfloat16, Sliding, 0, bfloat16)
AVG_POOL2D_FORWARD(adaptive_avg_pool2d_forward_bfloat16, Adaptive, 0, bfloat16)
AVG_POOL2D_FORWARD(avg_pool2d_forward_2x2_float16, Sliding, 2, float16)
AVG_POOL2D_FORWARD(avg_pool2d_forward_3x3_float16, Sliding, 3, float16)
AVG_POOL2D_FORWARD(avg_pool2d_forward_any_float16, Sliding, 0, float16)
AVG_POOL2D_FORWARD(adaptive_avg_pool2d_forward_float16, Adaptive, 0, float16)

#define AVG_POOL2D_BACKWARD(NAME, WINDOWS, T) \
    KERNEL(256, 4) NAME(const T* gy, T* gx, Pool2d pool) { backward<WINDOWS>(gy, gx, pool); }
AVG_POOL2D_BACKWARD(avg_pool2d_backward, Sliding, float)
AVG_POOL2D_BACKWARD(adaptive_avg_pool2d_backward, Adaptive, float)
AVG_POOL2D_BACKWARD(avg_pool2d_backward_bfloat16, Sliding, bfloat16)
AVG_POOL2D_BACKWARD(adaptive_avg_pool2d_backward_bfloat16, Adaptive, bfloat16)
AVG_POOL2D_BACKWARD(avg_pool2d_backward_float16, Sliding, float16)
AVG_POOL2D_BACKWARD(adaptive_avg_pool2d_backward_float16, Adaptive, float16)

template <class T>
__device__ __forceinline__ void forward_of_warp(const T* x, T* y, const Pool2d& pool) {
    const int64 index = global_thread() / WARP_SIZE;
    if (index >= pool.count) return;
    const Output output = output_at(pool, index);
    const T* plane = plane_of(x, pool, output.n, output.c);
    const Span rows = Adaptive::window<0>(pool, output.p);
    float sum = 0.0f;
    for (LaneWalk at(rows, Adaptive::window<1>(pool, output.q)); at.h < rows.end; at.advance())
        sum += to_float(plane[at.h * pool.x_stride[2] + at.w * pool.x_stride[3]]);
    sum = warp_reduce<Sum>(sum);
    if (threadIdx.x % WARP_SIZE == 0) y[index] = round_to<T>(sum / divisor<Adaptive>(pool, output.p, output.q));
}

#define AVG_POOL2D_WARP(NAME, T) \
    KERNEL(256, 4) NAME(const T* x, T* y, Pool2d pool) { forward_of_warp(x, y, pool); }
AVG_POOL2D_WARP(adaptive_avg_pool2d_forward_warp, float)
AVG_POOL2D_WARP(adaptive_avg_pool2d_forward_warp_bfloat16, bfloat16)
AVG_POOL2D_WARP(adaptive_avg_pool2d_forward_warp_float16, float16)
