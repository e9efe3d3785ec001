// Forward convolution and its gradient of the input as one implicit matrix product: rows are filters (of one group),
// columns are output pixels of all images, terms are (channel, tap), whose products no memory ever holds.
//
// Output number u along an axis collects from the source's positions u·scale + offset + i·delta through taps
// first + i·step, i < count:
// - forward: all taps, u·stride − padding + i·dilation.
// - backward_input: output h = phase + u·stride is reached by tap r from p = (h + padding − r·dilation) / stride, where
//   that is whole. Every phase is a convolution of its own with the taps that reach it: no zero is multiplied. A phase that
//   no tap reaches has no terms, so zeros are written.
//
// A table in shared memory has, for each tap, its offset in the source, its place in the weights, and two bits: of its row
// and of its column. A pixel's mask has the bits of rows and columns that are inside the image, so padding costs one
// comparison and no branch. The table goes on into the next channels, so that a step may begin at any tap.
#pragma once
#include "conv2d_gemm.cuh"

constexpr int MAX_TAPS = 256;  // of rows + columns ≤ 32

struct Axis {
    int scale, offset, delta;  // of positions in the source
    int first, step, count;    // of taps
};

// What both passes have in common: `channels` are summed, `filters` computed, each of one group.
struct Gather {
    int channels, filters, height, width;          // of the source
    int channel_stride, filter_stride;             // of the weights
    int out_height, out_width, step_h, step_w, phase_h, phase_w;
    Axis rows, columns;
};

__device__ __forceinline__ Axis forward_axis(int taps, int stride, int padding, int dilation) {
    return {stride, -padding, dilation, 0, 1, taps};
}

// The taps that reach a phase are an arithmetic progression of stride / gcd(stride, dilation).
__device__ __forceinline__ Axis backward_axis(int phase, int taps, int stride, int padding, int dilation) {
    int step = 1;
    while (step * dilation % stride != 0) ++step;
    int first = 0;
    while (first < step && (phase + padding - first * dilation) % stride != 0) ++first;
    const int count = first < min(step, taps) ? ceil_div(taps - first, step) : 0;
    return {1, (phase + padding - first * dilation) / stride, -(step * dilation / stride), first, step, count};
}

template <bool BACKWARD>
__device__ __forceinline__ Gather make_gather(const ConvShape& s, int phase) {
    const int channels = s.C / s.groups, filters = s.K / s.groups, taps = s.R * s.S;
    if (!BACKWARD)
        return {channels, filters, s.H, s.W, taps, channels * taps, s.P, s.Q, 1, 1, 0, 0,
                forward_axis(s.R, s.stride_h, s.padding_h, s.dilation_h),
                forward_axis(s.S, s.stride_w, s.padding_w, s.dilation_w)};
    const int phase_h = phase / s.stride_w, phase_w = phase % s.stride_w;
    return {filters, channels, s.P, s.Q, channels * taps, taps, s.H, s.W, s.stride_h, s.stride_w, phase_h, phase_w,
            backward_axis(phase_h, s.R, s.stride_h, s.padding_h, s.dilation_h),
            backward_axis(phase_w, s.S, s.stride_w, s.padding_w, s.dilation_w)};
}

struct TapTable {
    int2* places;  // offset in the source; bits of row and column
    int* weights;
};

// The table's entry t is tap t % count of channel t / count, for t below count + TERMS.
template <class Tile>
__device__ __forceinline__ void fill_table(const TapTable& table, const Gather& g, const ImageStrides& strides, int width) {
    const int count = g.rows.count * g.columns.count;
    for (int t = threadIdx.x; count > 0 && t < count + Tile::TERMS; t += Tile::THREADS) {
        const int channel = t / count, tap = t % count, i = tap / g.columns.count, j = tap % g.columns.count;
        const int64 offset = channel * strides.channel + i * g.rows.delta * strides.row + j * g.columns.delta * strides.column;
        table.places[t] = make_int2(static_cast<int>(offset), 1 << i | 1 << (g.rows.count + j));
        table.weights[t] = channel * g.channel_stride + (g.rows.first + i * g.rows.step) * width + g.columns.first +
                           j * g.columns.step;
    }
}

__device__ __forceinline__ unsigned inside_bits(const Axis& axis, int u, int extent) {
    unsigned bits = 0;
    for (int i = 0, position = u * axis.scale + axis.offset; i < axis.count; ++i, position += axis.delta)
        bits |= static_cast<unsigned>(position >= 0 && position < extent) << i;
    return bits;
}

// Copies weights [term][filter], zeros past the last filter, and source values [term][pixel], zeros outside the image.
// Weights and the tap table are counted in 32 bits; so are the steps from channel to channel in the source.
template <class Tile>
struct GatherLoader {
    static constexpr int PIXEL_TERMS = Tile::THREADS / Tile::TILE_N, PIXEL_PASSES = Tile::LANES / PIXEL_TERMS;
    TapTable table;
    int tap, taps, tap_step, channel_step;  // of the terms; a step goes on by so many taps and channels
    const float* weights;
    int weight, filter_stride, weight_channel;  // of the thread's first filter in the current channel
    int passes;                                 // how many of the thread's filters exist
    const float* source;                        // at the pixel's first position in the current channel, even if outside
    int source_channel;
    unsigned mask;  // empty for pixels past the last

    __device__ __forceinline__ void operator()(float* left, float* right, int remaining) {
        const int first = threadIdx.x / Tile::TILE_N, pixel = threadIdx.x % Tile::TILE_N;
        left += threadIdx.x % Tile::LANES * (Tile::TILE_M + PAD) + threadIdx.x / Tile::LANES;
        right += first * (Tile::TILE_N + PAD) + pixel;
#pragma unroll
        for (int k = 0; k < Tile::TERMS; k += Tile::LANES) {
            const int term = k + threadIdx.x % Tile::LANES;
            int index = weight + table.weights[tap + term];
            int2 places[PIXEL_PASSES];  // read before any copy, which reads may not overtake
#pragma unroll
            for (int pass = 0; pass < PIXEL_PASSES; ++pass) places[pass] = table.places[tap + first + k + pass * PIXEL_TERMS];

            const int exist = term < remaining ? passes : 0;
#pragma unroll
            for (int pass = 0; pass < Tile::PASSES_M; ++pass, index += Tile::ROWS * filter_stride)
                copy_async4(left + k * (Tile::TILE_M + PAD) + pass * Tile::ROWS, weights + index, pass < exist);
#pragma unroll
            for (int pass = 0; pass < PIXEL_PASSES; ++pass) {
                const int row = k + pass * PIXEL_TERMS;
                const bool inside = (mask & places[pass].y) == places[pass].y && first + row < remaining;
                copy_async4(right + row * (Tile::TILE_N + PAD), source + places[pass].x, inside);
            }
        }
        advance();
    }

    __device__ __forceinline__ void advance() {
        int channels = channel_step;
        tap += tap_step;
        if (tap >= taps) {
            tap -= taps;
            ++channels;
        }
        weight += channels * weight_channel;
        source += channels * source_channel;
    }
};

template <class Tile, bool BACKWARD>
__device__ __forceinline__ void convolve(const float* x, const float* w, const float* bias, float* y, const ConvShape& shape,
                                         const ImageStrides& strides, const ConvProduct& product) {
    SHARED(int2, places, [MAX_TAPS + Tile::TERMS]);
    SHARED(int, tap_weights, [MAX_TAPS + Tile::TERMS]);
    const int split = blockIdx.y % product.splits, phase = blockIdx.y / product.splits, group = blockIdx.z;
    const Gather g = make_gather<BACKWARD>(shape, phase);
    fill_table<Tile>({places, tap_weights}, g, strides, shape.S);
    __syncthreads();

    const int tiles_m = ceil_div(g.filters, Tile::TILE_M);
    const int first_row = blockIdx.x % tiles_m * Tile::TILE_M, first_pixel = blockIdx.x / tiles_m * Tile::TILE_N;
    const int taps = g.rows.count * g.columns.count, begin = split * product.split_terms;
    const int total = g.channels * taps, terms = min(product.split_terms, total - begin);
    const int channel = taps ? begin / taps : 0;
    const int filter = first_row + threadIdx.x / Tile::LANES;
    const int group_weights = group * (BACKWARD ? g.channels * g.channel_stride : g.filters * g.filter_stride);

    const int pixel = first_pixel + threadIdx.x % Tile::TILE_N;
    int rest, v;
    const int n = divide(pixel, product.by_image, rest), u = divide(rest, product.by_row, v);
    const unsigned mask = inside_bits(g.rows, u, g.height) | inside_bits(g.columns, v, g.width) << g.rows.count;
    const int64 at = n * strides.image + static_cast<int64>(group * g.channels + channel) * strides.channel +
                     (u * g.rows.scale + g.rows.offset) * strides.row + (v * g.columns.scale + g.columns.offset) * strides.column;
    GatherLoader<Tile> load{{places, tap_weights},
                            begin - channel * taps, taps, taps ? Tile::TERMS % taps : 0, taps ? Tile::TERMS / taps : 0,
                            w, group_weights + channel * g.channel_stride + filter * g.filter_stride, g.filter_stride,
                            g.channel_stride, ceil_div(g.filters - filter, Tile::ROWS),
                            x + at, static_cast<int>(strides.channel), n < shape.N ? mask : 0};

    sum_products<Tile>(load, terms, [&](Sums<Tile>& sums, bool add, bool last) {
        // Computed anew for each chunk, so that nothing of it takes registers in the main loop.
        const int tile = opaque(blockIdx.x), part = opaque(blockIdx.y), group = opaque(blockIdx.z);
        const Gather g = make_gather<BACKWARD>(shape, part / product.splits);
        const int tiles_m = ceil_div(g.filters, Tile::TILE_M);
        const int row = tile % tiles_m * Tile::TILE_M, column = tile / tiles_m * Tile::TILE_N;
        const int64 plane = static_cast<int64>(g.out_height) * g.out_width;
        float* target = y + part % product.splits * product.split_stride + group * g.filters * plane;
        const bool vectors = product.by_image[0] % 4 == 0 && g.step_h * g.step_w == 1 && is_aligned16(target);
        const int m = row + thread_row<Tile::TILE_N, Tile::GROUPS_M, Tile::GROUPS_N>();
#pragma unroll
        for (int block = 0; block < Tile::GROUPS_N; ++block) {
            const int out = column + thread_column<Tile::TILE_N, Tile::GROUPS_M, Tile::GROUPS_N>() + block * GROUP_COLUMNS;
            int64 places_out[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                int inner, out_v;
                const int image = divide(out + j, product.by_image, inner), out_u = divide(inner, product.by_row, out_v);
                const int h = out_u * g.step_h + g.phase_h, q = out_v * g.step_w + g.phase_w;
                const bool exists = image < shape.N && h < g.out_height && q < g.out_width;
                places_out[j] = exists ? image * plane * g.filters * shape.groups + h * g.out_width + q : -1;
            }
            store_columns<Tile>(sums, block, target, places_out, vectors, plane, m, g.filters,
                                last && bias ? bias + group * g.filters : nullptr, add, last && product.relu);
        }
    });
}
