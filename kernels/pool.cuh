// Geometry of pooling over H and W of (N, C, H, W) into (N, C, P, Q): which thread computes which element, what a
// window covers, and which windows hold a pixel. x comes with strides; every other array is contiguous.
//
// Outputs go to threads in the order of memory, so that neighbours write neighbours. Where x has its channels side by
// side (channels-last), a block takes 2^channel_bits channels and some pixels of one image instead: neighbours then
// read neighbours, and the block's writes still fill whole sectors.
#pragma once
#include "division.cuh"
#include "elementwise.cuh"

constexpr int POOL_THREADS = 256;

// Pairs are of rows and of columns. Adaptive pooling has no kernel, stride, padding and dilation.
struct Pool2d {
    int64 count, x_stride[4];  // threads with work, where they go in the order of memory; elements between n, c, h, w
    int channels, channel_bits, count_include_pad;
    int size[2], outputs[2], kernel[2], stride[2], padding[2], dilation[2];
    unsigned by_channels[3], by_height[3], by_width[3], by_rows[3], by_columns[3], by_stride_h[3], by_stride_w[3];
};

struct Output {
    int n, c, p, q;
    bool exists;
};
struct Input {
    int plane, h, w;  // plane n · C + c
};
struct Span {
    int begin, end;
};

__device__ __forceinline__ Output output_at(const Pool2d& pool, int64 index) {
    Output output;
    const int row = divide(index, pool.by_columns, output.q);
    output.n = divide(divide(row, pool.by_rows, output.p), pool.by_channels, output.c);
    output.exists = true;
    return output;
}

__device__ __forceinline__ Output output_of_tile(const Pool2d& pool) {
    const int channels = 1 << pool.channel_bits, pixels = POOL_THREADS >> pool.channel_bits;
    const int plane = pool.outputs[0] * pool.outputs[1];
    const unsigned pixel_tiles = ceil_div(plane, pixels), channel_tiles = ceil_div(pool.channels, channels);
    const unsigned rest = blockIdx.x / pixel_tiles;
    const int pixel = blockIdx.x % pixel_tiles * pixels + (threadIdx.x >> pool.channel_bits);
    Output output;
    output.n = rest / channel_tiles;
    output.c = rest % channel_tiles * channels + (threadIdx.x & (channels - 1));
    output.p = divide(pixel, pool.by_columns, output.q);
    output.exists = output.c < pool.channels && pixel < plane;
    return output;
}

__device__ __forceinline__ Output output_of_thread(const Pool2d& pool) {
    if (pool.channel_bits > 0) return output_of_tile(pool);
    if (global_thread() < pool.count) return output_at(pool, global_thread());
    return {0, 0, 0, 0, false};
}

__device__ __forceinline__ int64 index_of(const Pool2d& pool, const Output& output) {
    const int row = (output.n * pool.channels + output.c) * pool.outputs[0] + output.p;
    return static_cast<int64>(row) * pool.outputs[1] + output.q;
}

__device__ __forceinline__ Input input_at(const Pool2d& pool, int64 index) {
    Input input;
    const int row = divide(index, pool.by_width, input.w);
    input.plane = divide(row, pool.by_height, input.h);
    return input;
}

template <class T>
__device__ __forceinline__ const T* plane_of(const T* x, const Pool2d& pool, int n, int c) {
    return x + n * pool.x_stride[0] + c * pool.x_stride[1];
}

// Windows that slide: window i begins at i · stride − padding; what it covers is inside the plane, dilation apart.
struct Sliding {
    template <int AXIS>
    static __device__ __forceinline__ int start(const Pool2d& pool, int window) {
        return window * pool.stride[AXIS] - pool.padding[AXIS];
    }
    template <int AXIS>
    static __device__ __forceinline__ Span window(const Pool2d& pool, int window) {
        int begin = start<AXIS>(pool, window);
        const int end = min(begin + (pool.kernel[AXIS] - 1) * pool.dilation[AXIS] + 1, pool.size[AXIS]);
        while (begin < 0) begin += pool.dilation[AXIS];
        return {begin, end};
    }
    template <int AXIS>
    static __device__ __forceinline__ int last_window(const Pool2d& pool, int pixel) {
        return divide(pixel + pool.padding[AXIS], AXIS == 0 ? pool.by_stride_h : pool.by_stride_w);
    }
    template <int AXIS>
    static __device__ __forceinline__ Span windows_with(const Pool2d& pool, int pixel) {
        const int beyond = pixel + pool.padding[AXIS] - (pool.kernel[AXIS] - 1) * pool.dilation[AXIS] - 1;
        const int first = beyond < 0 ? 0 : divide(beyond, AXIS == 0 ? pool.by_stride_h : pool.by_stride_w) + 1;
        return {first, min(last_window<AXIS>(pool, pixel) + 1, pool.outputs[AXIS])};
    }
    // Pixels that a mean divides by: with count_include_pad also those of the padding that the window covers.
    template <int AXIS>
    static __device__ __forceinline__ int divisor(const Pool2d& pool, int window) {
        const int begin = start<AXIS>(pool, window), border = pool.count_include_pad ? pool.padding[AXIS] : 0;
        return min(begin + pool.kernel[AXIS], pool.size[AXIS] + border) - max(begin, -border);
    }
};

// Windows that cover the plane evenly: window i is [floor(i · size / outputs), ceil((i + 1) · size / outputs)).
struct Adaptive {
    template <int AXIS>
    static __device__ __forceinline__ Span window(const Pool2d& pool, int window) {
        const Divisor& outputs = AXIS == 0 ? pool.by_rows : pool.by_columns;
        const int64 begin = static_cast<int64>(window) * pool.size[AXIS], end = begin + pool.size[AXIS];
        return {divide(begin, outputs), divide(end + pool.outputs[AXIS] - 1, outputs)};
    }
    template <int AXIS>
    static __device__ __forceinline__ Span windows_with(const Pool2d& pool, int pixel) {
        const Divisor& size = AXIS == 0 ? pool.by_height : pool.by_width;
        const int64 first = static_cast<int64>(pixel) * pool.outputs[AXIS], end = first + pool.outputs[AXIS];
        return {divide(first, size), divide(end + pool.size[AXIS] - 1, size)};
    }
    template <int AXIS>
    static __device__ __forceinline__ int divisor(const Pool2d& pool, int index) {
        const Span span = window<AXIS>(pool, index);
        return span.end - span.begin;
    }
};

// The elements of a window, row by row, that one lane of a warp reads: every 32nd, without a division for each.
struct LaneWalk {
    int h, w, step_h, step_w;
    Span columns;

    __device__ __forceinline__ LaneWalk(const Span& rows, const Span& columns) : columns(columns) {
        const int width = columns.end - columns.begin, lane = threadIdx.x % WARP_SIZE;
        h = rows.begin + lane / width;
        w = columns.begin + lane % width;
        step_h = WARP_SIZE / width;
        step_w = WARP_SIZE % width;
    }
    __device__ __forceinline__ void advance() {
        h += step_h;
        w += step_w;
        if (w >= columns.end) {
            w -= columns.end - columns.begin;
            ++h;
        }
    }
};
