// Direct convolution of any shape, x (N,C,H,W), w (K,C/groups,R,S), y (N,K,P,Q); images are of T (float, bfloat16 or
// float16) with any strides, contiguous weights float or T; sums are float32 and rounded once:
//
// - forward: y[n,k,p,q] = b[k] + Σ_{c,r,s} x[n, c, p·stride + r·dilation − padding, …] · w[k,c,r,s]; with relu
//   max(·, 0)
// - backward_input: gx[n,c,h,w] = Σ_{k,r,s} gy[n,k,p,q] · w[k,c,r,s] over the p, q that read pixel (h, w) through
//   (r, s)
//
// Outputs are overwritten; b may be null. Both passes gather. Along one axis, output number u collects from the
// source's positions u·scale + offset + i·delta through taps first + i·step, i < count. In the forward pass these are
// all taps. In backward_input the outputs are sorted by their phase, h mod stride: all outputs of a phase are reached
// by the same taps, so no zero is multiplied, and a phase that no tap reaches is filled with zeros.
//
// A thread keeps PIXELS × FILTERS sums: each value of the source is used for FILTERS products, each weight for PIXELS.
// Lanes lie along neighbouring pixels. Sums over TERMS products are added to a total, so that errors stay small.
#pragma once
#include "conv2d.cuh"
#include "conv2d_axis.cuh"
#include "conv2d_depthwise_map.cuh"

constexpr int THREADS = 128;
constexpr int TERMS = 512;  // × 8 filters: 16 KB of shared memory
constexpr int OUTSIDE = -(1 << 30);  // a position that no tap moves into the image

// The outputs of a phase along one axis: how many, and their places in the output.
struct Outputs {
    int count, first, step;
};

// What both passes have in common: `channels` are summed, `filters` computed, each of one group.
template <class T>
struct Gather {
    const T* source;
    Parameters<T> weights;
    const float* bias;
    T* output;
    int images, groups, channels, filters;
    int source_height, source_width, output_height, output_width;
    int channel_stride, filter_stride, group_stride, weight_width;  // of weights
    int relu;
    ImageStrides source_strides, output_strides;
    Axis rows, columns;
    Outputs row_outputs, column_outputs;
};

// weights[term][filter] of terms begin, begin + 1, …, with zeros beyond the last filter. Terms are ordered (tap,
// channel).
template <int FILTERS, class T>
__device__ void load_weights(float* tile, const Gather<T>& g, int64 first, int filters, int begin, int end) {
    for (int term = begin + threadIdx.x; term < end; term += THREADS) {
        const int tap = term / g.channels, channel = term - tap * g.channels;
        const int i = tap / g.columns.count, j = tap - i * g.columns.count;
        const int r = g.rows.first + i * g.rows.step, s = g.columns.first + j * g.columns.step;
        const int64 source = first + channel * g.channel_stride + r * g.weight_width + s;
        for (int f = 0; f < FILTERS; ++f)
            tile[(term - begin) * FILTERS + f] = f < filters ? g.weights[source + f * g.filter_stride] : 0.0f;
    }
}

template <int FILTERS>
__device__ __forceinline__ void read_weights(float (&weight)[FILTERS], const float* tile) {
    if constexpr (FILTERS % 4 == 0) {
#pragma unroll
        for (int f = 0; f < FILTERS; f += 4) {
            const float4 four = load4(tile + f);
            weight[f] = four.x, weight[f + 1] = four.y, weight[f + 2] = four.z, weight[f + 3] = four.w;
        }
    } else {
#pragma unroll
        for (int f = 0; f < FILTERS; ++f) weight[f] = tile[f];
    }
}

template <int PIXELS, int FILTERS>
struct Thread {
    int image[PIXELS];
    int row[PIXELS], column[PIXELS];  // of the first tap's position in the source; row OUTSIDE: there is no such pixel
    float total[PIXELS][FILTERS];
};

template <int PIXELS, int FILTERS, class T>
__device__ void place(Thread<PIXELS, FILTERS>& t, const Gather<T>& g, int64 first_pixel) {
    const int64 area = static_cast<int64>(g.row_outputs.count) * g.column_outputs.count;
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
        const int64 pixel = first_pixel + i * THREADS + threadIdx.x;
        const bool exists = pixel < g.images * area;
        t.image[i] = exists ? static_cast<int>(pixel / area) : 0;
        const int position = exists ? static_cast<int>(pixel - t.image[i] * area) : 0;
        const int u = position / g.column_outputs.count, v = position - u * g.column_outputs.count;
        t.row[i] = exists ? u * g.rows.scale + g.rows.offset : OUTSIDE;
        t.column[i] = v * g.columns.scale + g.columns.offset;
#pragma unroll
        for (int f = 0; f < FILTERS; ++f) t.total[i][f] = 0.0f;
    }
}

// Adds the products of terms begin … end − 1, whose weights are in the tile.
template <int PIXELS, int FILTERS, class T>
__device__ __forceinline__ void multiply(Thread<PIXELS, FILTERS>& t, const Gather<T>& g, int group, const float* tile,
                                         int begin, int end) {
    const ImageStrides& strides = g.source_strides;
    float sum[PIXELS][FILTERS] = {};
    for (int term = begin; term < end;) {
        const int tap = term / g.channels, channel = term - tap * g.channels;
        const int tap_end = min(end, term + g.channels - channel);
        const int i = tap / g.columns.count, j = tap - i * g.columns.count;
        const T* source[PIXELS];
        bool inside[PIXELS];
#pragma unroll
        for (int k = 0; k < PIXELS; ++k) {
            const int row = t.row[k] + i * g.rows.delta, column = t.column[k] + j * g.columns.delta;
            inside[k] = row >= 0 && row < g.source_height && column >= 0 && column < g.source_width;
            const int64 offset = t.image[k] * strides.image + (group * g.channels + channel) * strides.channel +
                                 row * strides.row + column * strides.column;
            source[k] = g.source + (inside[k] ? offset : 0);
        }
#pragma unroll 2
        for (; term < tap_end; ++term) {
            float weight[FILTERS], value[PIXELS];
#pragma unroll
            for (int k = 0; k < PIXELS; ++k) value[k] = inside[k] ? to_float(*source[k]) : 0.0f;
            read_weights(weight, tile + (term - begin) * FILTERS);
#pragma unroll
            for (int k = 0; k < PIXELS; ++k) {
                source[k] += strides.channel;
#pragma unroll
                for (int f = 0; f < FILTERS; ++f) sum[k][f] = multiply_add(value[k], weight[f], sum[k][f]);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < PIXELS; ++k)
#pragma unroll
        for (int f = 0; f < FILTERS; ++f) t.total[k][f] += sum[k][f];
}

template <int PIXELS, int FILTERS, class T>
__device__ void store(const Thread<PIXELS, FILTERS>& t, const Gather<T>& g, int group, int first_filter) {
    const ImageStrides& strides = g.output_strides;
#pragma unroll
    for (int k = 0; k < PIXELS; ++k) {
        if (t.row[k] == OUTSIDE) continue;
        const int u = (t.row[k] - g.rows.offset) / g.rows.scale, v = (t.column[k] - g.columns.offset) / g.columns.scale;
        const int row = g.row_outputs.first + u * g.row_outputs.step;
        const int column = g.column_outputs.first + v * g.column_outputs.step;
        T* output = g.output + t.image[k] * strides.image + group * g.filters * strides.channel + row * strides.row +
                    column * strides.column;
#pragma unroll
        for (int f = 0; f < FILTERS; ++f) {
            const int filter = first_filter + f;
            if (filter >= g.filters) break;
            const float value = t.total[k][f] + (g.bias ? g.bias[group * g.filters + filter] : 0.0f);
            output[filter * strides.channel] = round_to<T>(g.relu && value < 0.0f ? 0.0f : value);
        }
    }
}

// Tiles are numbered with the filters' fastest: blocks that run together read the same pixels.
template <int PIXELS, int FILTERS, class T>
__device__ __forceinline__ void gather(const Gather<T>& g, int64 pixel_tile, int filter_tile) {
    SHARED(float, tile, [TERMS * FILTERS]);
    const int tiles = ceil_div(g.filters, FILTERS), group = filter_tile / tiles;
    const int first_filter = (filter_tile - group * tiles) * FILTERS;
    const int64 first = static_cast<int64>(group) * g.group_stride + first_filter * g.filter_stride;
    Thread<PIXELS, FILTERS> t;
    place(t, g, pixel_tile * (THREADS * PIXELS));
    const int terms = g.rows.count * g.columns.count * g.channels;
    for (int begin = 0; begin < terms; begin += TERMS) {
        const int end = min(begin + TERMS, terms);
        load_weights<FILTERS>(tile, g, first, g.filters - first_filter, begin, end);
        __syncthreads();
        multiply(t, g, group, tile, begin, end);
        __syncthreads();
    }
    store(t, g, group, first_filter);
}

template <int PIXELS, int FILTERS, class T>
__device__ __forceinline__ void forward(const T* x, const Parameters<T>& w, const float* b, T* y, const ConvShape& c,
                                        const ImageStrides& x_strides, const ImageStrides& y_strides, int relu) {
    const int channels = c.C / c.groups, filters = c.K / c.groups, taps = c.R * c.S;
    const int filter_tiles = c.groups * ceil_div(filters, FILTERS);
    const Gather<T> g = {x, w, b, y, c.N, c.groups, channels, filters, c.H, c.W, c.P, c.Q, taps, channels * taps,
                         filters * channels * taps, c.S, relu, x_strides, y_strides,
                         forward_axis(c.R, c.stride_h, c.padding_h, c.dilation_h),
                         forward_axis(c.S, c.stride_w, c.padding_w, c.dilation_w),
                         {c.P, 0, 1},
                         {c.Q, 0, 1}};
    gather<PIXELS, FILTERS>(g, blockIdx.x / filter_tiles, blockIdx.x % filter_tiles);
}

template <int PIXELS, int FILTERS, class T>
__device__ __forceinline__ void backward_input(const T* gy, const Parameters<T>& w, T* gx, const ConvShape& c,
                                               const ImageStrides& gy_strides, const ImageStrides& gx_strides,
                                               int pixel_tiles) {
    const int channels = c.K / c.groups, filters = c.C / c.groups, taps = c.R * c.S;
    const int filter_tiles = c.groups * ceil_div(filters, FILTERS);
    const int tile = blockIdx.x / filter_tiles, phase = tile / pixel_tiles, phase_columns = min(c.stride_w, c.W);
    const int phase_h = phase / phase_columns, phase_w = phase % phase_columns;
    const Gather<T> g = {gy, w, nullptr, gx, c.N, c.groups, channels, filters, c.P, c.Q, c.H, c.W, filters * taps, taps,
                         channels * filters * taps, c.S, 0, gy_strides, gx_strides,
                         backward_axis(phase_h, c.R, c.stride_h, c.padding_h, c.dilation_h),
                         backward_axis(phase_w, c.S, c.stride_w, c.padding_w, c.dilation_w),
                         {ceil_div(c.H - phase_h, c.stride_h), phase_h, c.stride_h},
                         {ceil_div(c.W - phase_w, c.stride_w), phase_w, c.stride_w}};
    gather<PIXELS, FILTERS>(g, tile - phase * pixel_tiles, blockIdx.x % filter_tiles);
}
