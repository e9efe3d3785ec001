// Max pooling over H and W of x (N, C, H, W), with strides, into contiguous y and switches (N, C, P, Q).
//
//   forward    y = max over the window, padding never wins; switches = h · W + w of the winner in its plane: the first
//              of equal values, and of NaNs the last, as on the CPU (adaptive pooling: adaptive_max_pool2d.cu)
//   backward   gx (N, C, H, W) = sum of gy over the windows whose switch names this pixel, in the windows' order
//
// Outputs are overwritten. Backward gathers, so windows may overlap and no two threads write one place. The entry
// points differ in what is known at compile time: a square window without dilation (forward), how many windows hold a
// pixel along an axis (backward). *_vector: windows of 2×2 that tile contiguous planes with W a multiple of 4; a thread
// has two windows.
#include "pool.cuh"

struct Winner {
    float value;
    int place;
};

struct WindowPairs {
    int64 count;  // pairs of windows in all
    int width, plane;
    unsigned by_pairs[3], by_rows[3];  // pairs in a row of windows, rows of windows in a plane
};

// Later elements win over equal ones only if they are NaN.
__device__ __forceinline__ void challenge(Winner& best, float value, int place) {
    if (value > best.value || value != value) best = {value, place};
}

template <class T>
__device__ __forceinline__ void write(const Winner& best, int64 index, T* y, int* switches) {
    y[index] = round_to<T>(best.value);
    switches[index] = best.place;
}

// Of a SIZE×SIZE window without dilation: all loads first, then the comparisons.
template <int SIZE, class T>
__device__ __forceinline__ Winner small_maximum(const T* plane, const Pool2d& pool, int p, int q) {
    const int top = Sliding::start<0>(pool, p), left = Sliding::start<1>(pool, q), W = pool.size[1];
    float values[SIZE * SIZE];
#pragma unroll
    for (int i = 0; i < SIZE * SIZE; ++i) {
        const int h = top + i / SIZE, w = left + i % SIZE;
        const bool inside = h >= 0 && h < pool.size[0] && w >= 0 && w < W;
        values[i] = inside ? to_float(plane[h * pool.x_stride[2] + w * pool.x_stride[3]]) : -INFINITY;
    }
    Winner best{-INFINITY, max(top, 0) * W + max(left, 0)};
#pragma unroll
    for (int i = 0; i < SIZE * SIZE; ++i) challenge(best, values[i], (top + i / SIZE) * W + left + i % SIZE);
    return best;
}

template <class T>
__device__ __forceinline__ Winner maximum(const T* plane, const Pool2d& pool, int p, int q) {
    const Span rows = Sliding::window<0>(pool, p), columns = Sliding::window<1>(pool, q);
    Winner best{-INFINITY, rows.begin * pool.size[1] + columns.begin};
    for (int h = rows.begin; h < rows.end; h += pool.dilation[0])
        for (int w = columns.begin; w < columns.end; w += pool.dilation[1])
            challenge(best, to_float(plane[h * pool.x_stride[2] + w * pool.x_stride[3]]), h * pool.size[1] + w);
    return best;
}

// SIZE 0: any window
template <int SIZE, class T>
__device__ __forceinline__ void forward(const T* x, T* y, int* switches, const Pool2d& pool) {
    const Output output = output_of_thread(pool);
    if (!output.exists) return;
    const T* plane = plane_of(x, pool, output.n, output.c);
    Winner best;
    if constexpr (SIZE > 0)
        best = small_maximum<SIZE>(plane, pool, output.p, output.q);
    else
        best = maximum(plane, pool, output.p, output.q);
    write(best, index_of(pool, output), y, switches);
}

// WINDOWS: at most so many hold a pixel along an axis; 0: any number. The switches say whether a window holds it.
template <class Windows, int WINDOWS, class T>
__device__ __forceinline__ void backward(const T* gy, const int* switches, T* gx, const Pool2d& pool) {
    const int64 index = global_thread();
    if (index >= pool.count) return;
    const Input input = input_at(pool, index);
    const int place = input.h * pool.size[1] + input.w, P = pool.outputs[0], Q = pool.outputs[1];
    const int64 start = static_cast<int64>(input.plane) * P * Q;
    float sum = 0.0f;
    if constexpr (WINDOWS > 0) {  // all loads first
        const int first_p = Windows::template last_window<0>(pool, input.h) - (WINDOWS - 1);
        const int first_q = Windows::template last_window<1>(pool, input.w) - (WINDOWS - 1);
        int winners[WINDOWS * WINDOWS];
        float gradients[WINDOWS * WINDOWS];
#pragma unroll
        for (int i = 0; i < WINDOWS * WINDOWS; ++i) {
            const int p = first_p + i / WINDOWS, q = first_q + i % WINDOWS;
            const bool exists = p >= 0 && p < P && q >= 0 && q < Q;
            winners[i] = exists ? switches[start + p * Q + q] : -1;
            gradients[i] = exists ? to_float(gy[start + p * Q + q]) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < WINDOWS * WINDOWS; ++i)
            if (winners[i] == place) sum += gradients[i];
    } else {
        const Span rows = Windows::template windows_with<0>(pool, input.h);
        const Span columns = Windows::template windows_with<1>(pool, input.w);
        for (int p = rows.begin; p < rows.end; ++p)
            for (int q = columns.begin; q < columns.end; ++q)
                if (switches[start + p * Q + q] == place) sum += to_float(gy[start + p * Q + q]);
    }
    gx[index] = round_to<T>(sum);
}

#define MAX_POOL2D_FORWARD(NAME, SIZE, T) \
    KERNEL(256, 4) NAME(const T* x, T* y, int* switches, Pool2d pool) { forward<SIZE>(x, y, switches, pool); }
MAX_POOL2D_FORWARD(max_pool2d_forward_2x2, 2, float)
MAX_POOL2D_FORWARD(max_pool2d_forward_3x3, 3, float)
MAX_POOL2D_FORWARD(max_pool2d_forward_any, 0, float)
MAX_POOL2D_FORWARD(max_pool2d_forward_2x2_bfloat16, 2, bfloat16)
MAX_POOL2D_FORWARD(max_pool2d_forward_3x3_bfloat16, 3, bfloat16)
MAX_POOL2D_FORWARD(max_pool2d_forward_any_bfloat16, 0, bfloat16)
MAX_POOL2D_FORWARD(max_pool2d_forward_2x2_float16, 2, float16)
MAX_POOL2D_FORWARD(max_pool2d_forward_3x3_float16, 3, float16)
MAX_POOL2D_FORWARD(max_pool2d_forward_any_float16, 0, float16)

#define MAX_POOL2D_BACKWARD(NAME, WINDOWS, COUNT, T) \
    KERNEL(256, 4) NAME(const T* gy, const int* switches, T* gx, Pool2d pool) { \
        backward<WINDOWS, COUNT>(gy, switches, gx, pool); \
    }
MAX_POOL2D_BACKWARD(max_pool2d_backward_1, Sliding, 1, float)
MAX_POOL2D_BACKWARD(max_pool2d_backward_2, Sliding, 2, float)
MAX_POOL2D_BACKWARD(max_pool2d_backward_any, Sliding, 0, float)
MAX_POOL2D_BACKWARD(adaptive_max_pool2d_backward, Adaptive, 0, float)
MAX_POOL2D_BACKWARD(max_pool2d_backward_1_bfloat16, Sliding, 1, bfloat16)
MAX_POOL2D_BACKWARD(max_pool2d_backward_2_bfloat16, Sliding, 2, bfloat16)
MAX_POOL2D_BACKWARD(max_pool2d_backward_any_bfloat16, Sliding, 0, bfloat16)
MAX_POOL2D_BACKWARD(max_pool2d_backward_1_float16, Sliding, 1, float16)
MAX_POOL2D_BACKWARD(max_pool2d_backward_2_float16, Sliding, 2, float16)
MAX_POOL2D_BACKWARD(max_pool2d_backward_any_float16, Sliding, 0, float16)

// Where a thread's pair of windows begins in its plane; `offset` is the same place in x.
__device__ __forceinline__ int pair_place(const WindowPairs& pairs, int64 index, int64& offset) {
    const int row = divide(index, pairs.by_pairs);
    const int plane = divide(row, pairs.by_rows);
    offset = static_cast<int64>(row) * pairs.width + 4 * index;
    return static_cast<int>(offset - static_cast<int64>(plane) * pairs.plane);
}

__device__ __forceinline__ Winner maximum_of_four(float a, float b, float c, float d, int place, int W) {
    Winner best{-INFINITY, place};
    challenge(best, a, place);
    challenge(best, b, place + 1);
    challenge(best, c, place + W);
    challenge(best, d, place + W + 1);
    return best;
}

template <class T>
__device__ __forceinline__ void forward_pair(const T* x, T* y, int* switches, const WindowPairs& pairs) {
    const int64 index = global_thread();
    if (index >= pairs.count) return;
    int64 offset;
    const int place = pair_place(pairs, index, offset);
    float upper[4], lower[4];
    load_neighbours(x + offset, upper);
    load_neighbours(x + offset + pairs.width, lower);
    const Winner left = maximum_of_four(upper[0], upper[1], lower[0], lower[1], place, pairs.width);
    const Winner right = maximum_of_four(upper[2], upper[3], lower[2], lower[3], place + 2, pairs.width);
    if constexpr (sizeof(T) == 4)
        reinterpret_cast<float2*>(y)[index] = make_float2(left.value, right.value);
    else
        reinterpret_cast<uint32_t*>(y)[index] = pack<T>(left.value, right.value);
    reinterpret_cast<int2*>(switches)[index] = make_int2(left.place, right.place);
}

template <class T>
__device__ __forceinline__ void backward_pair(const T* gy, const int* switches, T* gx, const WindowPairs& pairs) {
    const int64 index = global_thread();
    if (index >= pairs.count) return;
    int64 offset;
    const int place = pair_place(pairs, index, offset);
    float2 gradient;
    if constexpr (sizeof(T) == 4)
        gradient = reinterpret_cast<const float2*>(gy)[index];
    else
        gradient = unpack<T>(reinterpret_cast<const uint32_t*>(gy)[index]);
    const int2 winner = reinterpret_cast<const int2*>(switches)[index];
    const float left = 0.0f + gradient.x, right = 0.0f + gradient.y;  // a sum of one, so that -0 becomes 0
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int first = place + row * pairs.width;
        const float four[4] = {winner.x == first ? left : 0.0f, winner.x == first + 1 ? left : 0.0f,
                               winner.y == first + 2 ? right : 0.0f, winner.y == first + 3 ? right : 0.0f};
        store_neighbours(gx + offset + row * pairs.width, four);
    }
}

#define MAX_POOL2D_VECTOR(FORWARD, BACKWARD, T) \
    KERNEL(256, 4) FORWARD(const T* x, T* y, int* switches, WindowPairs pairs) { \
        forward_pair(x, y, switches, pairs); \
    } \
    KERNEL(256, 4) BACKWARD(const T* gy, const int* switches, T* gx, WindowPairs pairs) { \
        backward_pair(gy, switches, gx, pairs); \
    }
MAX_POOL2D_VECTOR(max_pool2d_forward_vector, max_pool2d_backward_vector, float)
MAX_POOL2D_VECTOR(max_pool2d_forward_vector_bfloat16, max_pool2d_backward_vector_bfloat16, bfloat16)
MAX_POOL2D_VECTOR(max_pool2d_forward_vector_float16, max_pool2d_backward_vector_float16, float16)
