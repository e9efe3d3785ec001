// Depthwise convolution of planes: groups = C, one input channel a filter. x (N,C,H,W), w (K,1,k,k), y (N,K,P,Q) with
// K = m·C, all contiguous; k×k filters of 3, 5 or 7 with padding (k−1)/2, stride 1 or 2, no dilation. Images are of T:
// float, bfloat16 or float16, weights float or T; sums are float32 and rounded once. Outputs are overwritten.
//
// - forward: y[n,k] = b[k] + x[n,k/m] ∗ w[k], with relu max(·, 0); b may be null
// - backward_input, m = 1: gx[n,c] = gy[n,c] ∗ w[c] rotated; at stride 2, with the taps that reach each pixel
// - backward_weight: gw[k,0,r,s] = Σ_{n,p,q} gy[n,k,p,q] · x[n, k/m, p·stride + r − padding, …] in partial sums
//   [split][K·k·k], which conv2d_direct_add_splits adds in order
//
// 9 products for two values of memory, which is the limit. A thread computes a strip, ROWS × 4 neighbouring outputs of
// one plane; it reads each row of the source once, as vectors of 4 where rows are aligned (16 bytes, or 8 of 16-bit
// images), and adds it to all rows of outputs that it meets.
#pragma once
#include "conv2d.cuh"
#include "conv2d_depthwise_map.cuh"

constexpr int THREADS = 128;
constexpr int COLUMNS = 4;

template <class T>
struct Planes {
    const T* source;
    Parameters<T> weights;
    const float* bias;
    T* output;
    int64 planes;                 // of output: images × channels
    int channels, share;           // output plane p has source plane p / share
    int source_height, source_width, output_height, output_width;
    int rotated, relu;
};

// Values first … first + COUNT − 1 of a row, zeros outside of it: from first + START on VECTORS aligned fours, of rows
// that are whole fours; the others one by one.
template <int START, int VECTORS, class T, int COUNT>
__device__ __forceinline__ void load_row(float (&value)[COUNT], const T* row, int first, int width, bool inside) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
        const int column = first + j;
        if (j >= START && j < START + COLUMNS * VECTORS) continue;
        value[j] = inside && column >= 0 && column < width ? to_float(row[column]) : 0.0f;
    }
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const int column = first + START + COLUMNS * v;
        float values[COLUMNS] = {};
        if (inside && column < width) load_neighbours(row + column, values);
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j)
            if (START + COLUMNS * v + j < COUNT) value[START + COLUMNS * v + j] = values[j];
    }
}

// What a strip's thread adds up; of each row it reads so many vectors.
template <class Map, int TAPS, int VECTORS, class T, int ROWS>
__device__ __forceinline__ void add_strip(float (&sum)[ROWS][COLUMNS], const float (&weight)[TAPS][TAPS],
                                          const T* source, int top, int left, int height, int width) {
    constexpr int SOURCE_ROWS = Map::sources(ROWS), SOURCE_COLUMNS = Map::sources(COLUMNS);
#pragma unroll
    for (int row = 0; row < SOURCE_ROWS; ++row) {
        const int h = Map::first(top) + row;
        const bool inside = h >= 0 && h < height;
        float value[SOURCE_COLUMNS];
        const int64 offset = inside ? static_cast<int64>(h) * width : 0;
        load_row<Map::START, VECTORS>(value, source + offset, Map::first(left), width, inside);
#pragma unroll
        for (int p = 0; p < ROWS; ++p) {
            const int r = Map::tap(p, row);
            if (r < 0 || r >= TAPS) continue;
#pragma unroll
            for (int q = 0; q < COLUMNS; ++q)
#pragma unroll
                for (int column = 0; column < SOURCE_COLUMNS; ++column) {
                    const int s = Map::tap(q, column);
                    if (s >= 0 && s < TAPS) sum[p][q] = multiply_add(value[column], weight[r][s], sum[p][q]);
                }
        }
    }
}

template <class T, int ROWS>
__device__ __forceinline__ void store_strip(float (&sum)[ROWS][COLUMNS], const Planes<T>& g, int64 plane, int channel,
                                            int top, int left) {
    const float bias = g.bias ? g.bias[channel] : 0.0f;
    const bool whole = g.output_width % COLUMNS == 0 && is_aligned16(g.output);
#pragma unroll
    for (int p = 0; p < ROWS; ++p) {
        if (top + p >= g.output_height) break;
        T* output = g.output + (plane * g.output_height + top + p) * g.output_width + left;
#pragma unroll
        for (int q = 0; q < COLUMNS; ++q) {
            sum[p][q] += bias;
            if (g.relu && sum[p][q] < 0.0f) sum[p][q] = 0.0f;
            if (!whole && left + q < g.output_width) output[q] = round_to<T>(sum[p][q]);
        }
        if (whole) store_neighbours(output, sum[p]);
    }
}

template <class Map, int TAPS, int ROWS, class T>
__device__ __forceinline__ void depthwise(const Planes<T>& g) {
    const int columns = ceil_div(g.output_width, COLUMNS), strips = ceil_div(g.output_height, ROWS);
    const int64 item = global_thread(), rest = item / columns, plane = rest / strips;
    if (plane >= g.planes) return;
    const int left = static_cast<int>(item - rest * columns) * COLUMNS;
    const int top = static_cast<int>(rest - plane * strips) * ROWS, channel = static_cast<int>(plane % g.channels);
    const int width = g.source_width, height = g.source_height;
    float sum[ROWS][COLUMNS] = {}, weight[TAPS][TAPS];
    const int64 first = static_cast<int64>(channel) * (TAPS * TAPS);
#pragma unroll
    for (int t = 0; t < TAPS * TAPS; ++t)
        weight[t / TAPS][t % TAPS] = g.weights[first + (g.rotated ? TAPS * TAPS - 1 - t : t)];
    const T* source = g.source + plane / g.share * height * width;
    if (Map::span(COLUMNS) >= COLUMNS && width % COLUMNS == 0 && is_aligned16(g.source))
        add_strip<Map, TAPS, Map::span(COLUMNS) / COLUMNS>(sum, weight, source, top, left, height, width);
    else
        add_strip<Map, TAPS, 0>(sum, weight, source, top, left, height, width);
    store_strip(sum, g, plane, channel, top, left);
}

// The sums of one thread of backward_weight: over items begin + threadIdx.x, begin + threadIdx.x + THREADS, …
template <int TAPS, int STRIDE, int ROWS, int VECTORS, class T>
__device__ __forceinline__ void add_items(float (&sum)[TAPS][TAPS], const T* x, const T* gy, const ConvShape& c,
                                          int filter, int begin, int end) {
    using Map = Reading<TAPS, STRIDE>;
    constexpr int SOURCE_ROWS = Map::sources(ROWS), SOURCE_COLUMNS = Map::sources(COLUMNS);
    const int columns = ceil_div(c.Q, COLUMNS), strips = ceil_div(c.P, ROWS), channel = filter / (c.K / c.C);
    const bool gy_aligned = c.Q % COLUMNS == 0 && is_aligned16(gy);
#pragma unroll 1
    for (int item = begin + threadIdx.x; item < end; item += THREADS) {
        const int rest = item / columns, image = rest / strips;
        const int left = (item - rest * columns) * COLUMNS, top = (rest - image * strips) * ROWS;
        const T* gradients = gy + (static_cast<int64>(image) * c.K + filter) * c.P * c.Q;
        const T* source = x + (static_cast<int64>(image) * c.C + channel) * c.H * c.W;
        float gradient[ROWS][COLUMNS];
#pragma unroll
        for (int p = 0; p < ROWS; ++p) {
            const bool inside = top + p < c.P;
            const T* row = gradients + (inside ? (top + p) * c.Q : 0);
            if (gy_aligned)
                load_row<0, 1>(gradient[p], row, left, c.Q, inside);
            else
                load_row<0, 0>(gradient[p], row, left, c.Q, inside);
        }
#pragma unroll
        for (int row = 0; row < SOURCE_ROWS; ++row) {
            const int h = Map::first(top) + row;
            const bool inside = h >= 0 && h < c.H;
            float value[SOURCE_COLUMNS];
            const T* pixels = source + (inside ? h * c.W : 0);
            load_row<Map::START, VECTORS>(value, pixels, Map::first(left), c.W, inside);
#pragma unroll
            for (int p = 0; p < ROWS; ++p) {
                const int r = Map::tap(p, row);
                if (r < 0 || r >= TAPS) continue;
#pragma unroll
                for (int s = 0; s < TAPS; ++s)
#pragma unroll
                    for (int q = 0; q < COLUMNS; ++q)
                        sum[r][s] = multiply_add(gradient[p][q], value[q * STRIDE + s], sum[r][s]);
            }
        }
    }
}

// A block sums over items `begin` … `end` − 1 of one filter; an item is a strip of ROWS × COLUMNS pixels of gy in one
// image.
template <int TAPS, int STRIDE, int ROWS, class T>
__device__ __forceinline__ void depthwise_backward_weight(const T* x, const T* gy, float* partial, const ConvShape& c,
                                                          int split_items) {
    constexpr int WARPS = THREADS / WARP_SIZE;
    SHARED(float, warp_sums, [WARPS][TAPS * TAPS]);
    const int filter = blockIdx.x % c.K, split = blockIdx.x / c.K;
    const int items = c.N * ceil_div(c.P, ROWS) * ceil_div(c.Q, COLUMNS);
    const int begin = split * split_items, end = min(begin + split_items, items);
    float sum[TAPS][TAPS] = {};
    if (c.W % COLUMNS == 0 && is_aligned16(x))
        add_items<TAPS, STRIDE, ROWS, STRIDE>(sum, x, gy, c, filter, begin, end);
    else
        add_items<TAPS, STRIDE, ROWS, 0>(sum, x, gy, c, filter, begin, end);
#pragma unroll
    for (int t = 0; t < TAPS * TAPS; ++t) {
        const float total = warp_reduce<Sum>(sum[t / TAPS][t % TAPS]);
        if (threadIdx.x % WARP_SIZE == 0) warp_sums[threadIdx.x / WARP_SIZE][t] = total;
    }
    __syncthreads();
    if (threadIdx.x >= TAPS * TAPS) return;
    float total = warp_sums[0][threadIdx.x];
    for (int warp = 1; warp < WARPS; ++warp) total += warp_sums[warp][threadIdx.x];
    partial[(static_cast<int64>(split) * c.K + filter) * (TAPS * TAPS) + threadIdx.x] = total;
}
