// Depthwise convolution of channels-last images: groups = C = K, even. x (N,H,W,C), y (N,P,Q,C) of bfloat16 or float16
// at a multiple of 4 bytes, w (C,1,k,k) float32 or T, all contiguous; k×k filters of 3, 5 or 7 with padding (k−1)/2,
// stride 1 or 2, no dilation. Sums are float32 and rounded once. The passes are those of conv2d_depthwise.cuh; outputs
// are overwritten.
//
// Neighbouring lanes have neighbouring pairs of channels, so that a warp's access is one run of memory: `lanes` (8, 16
// or 32) along channels, and the rest of the block's threads other strips of ROWS × 4 outputs. Weights come by way of
// shared memory, [tap][channel].
#pragma once
#include "conv2d.cuh"
#include "conv2d_depthwise_map.cuh"

constexpr int THREADS = 128;
constexpr int COLUMNS = 4;
constexpr int CHANNELS = 2;
constexpr int PITCH = WARP_SIZE * CHANNELS + 2;  // of weights

template <class T>
struct LastImages {
    const T* source;
    Parameters<T> weights;
    const float* bias;
    T* output;
    int images, channels, source_height, source_width, output_height, output_width;
    int rotated, relu, lanes;
};

// Which channels a block has, and which part of the rest.
struct LastBlock {
    int first_channel, channels, part;
};
__device__ __forceinline__ LastBlock last_block(int channels, int lanes) {
    const int tiles = ceil_div(channels, lanes * CHANNELS), tile = blockIdx.x % tiles, first = tile * lanes * CHANNELS;
    return {first, min(channels - first, lanes * CHANNELS), static_cast<int>(blockIdx.x) / tiles};
}

// COUNT pixels of a row from `first` on, zeros outside of it.
template <class T, int COUNT>
__device__ __forceinline__ void load_pixels(float (&value)[COUNT][CHANNELS], const T* image, int row, int first,
                                            int height, int width, int channels) {
    const bool inside = row >= 0 && row < height;
    const T* source = image + (inside ? row * width : 0) * channels;
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
        const int column = first + j;
        uint32_t pair = 0;
        if (inside && column >= 0 && column < width)
            pair = *reinterpret_cast<const uint32_t*>(source + column * channels);
        const float2 both = unpack<T>(pair);
        value[j][0] = both.x, value[j][1] = both.y;
    }
}

template <int TAPS, class T>
__device__ __forceinline__ void load_weights(float* tile, const LastImages<T>& g, const LastBlock& at) {
    constexpr int AREA = TAPS * TAPS;
    for (int i = threadIdx.x; i < at.channels * AREA; i += THREADS) {
        const int channel = i / AREA, tap = i - channel * AREA;
        tile[(g.rotated ? AREA - 1 - tap : tap) * PITCH + channel] = g.weights[at.first_channel * AREA + i];
    }
    __syncthreads();
}

template <class T, int ROWS>
__device__ __forceinline__ void store_pixels(float (&sum)[ROWS][COLUMNS][CHANNELS], const LastImages<T>& g, T* output,
                                             int channel, int top, int left) {
    float bias[CHANNELS];
#pragma unroll
    for (int v = 0; v < CHANNELS; ++v) bias[v] = g.bias ? g.bias[channel + v] : 0.0f;
#pragma unroll
    for (int p = 0; p < ROWS; ++p)
#pragma unroll
        for (int q = 0; q < COLUMNS; ++q) {
            if (top + p >= g.output_height || left + q >= g.output_width) continue;
#pragma unroll
            for (int v = 0; v < CHANNELS; ++v) {
                sum[p][q][v] += bias[v];
                if (g.relu && sum[p][q][v] < 0.0f) sum[p][q][v] = 0.0f;
            }
            T* pixel = output + ((top + p) * g.output_width + left + q) * g.channels;
            *reinterpret_cast<uint32_t*>(pixel) = pack<T>(sum[p][q][0], sum[p][q][1]);
        }
}

template <class Map, int TAPS, int ROWS, class T>
__device__ __forceinline__ void depthwise_last(const LastImages<T>& g) {
    constexpr int SOURCE_COLUMNS = Map::sources(COLUMNS);
    SHARED(float, tile, [TAPS * TAPS * PITCH]);
    const LastBlock at = last_block(g.channels, g.lanes);
    load_weights<TAPS>(tile, g, at);
    const int columns = ceil_div(g.output_width, COLUMNS), strips = ceil_div(g.output_height, ROWS);
    const int lane = threadIdx.x % g.lanes * CHANNELS;
    const int64 item = static_cast<int64>(at.part) * (THREADS / g.lanes) + threadIdx.x / g.lanes;
    const int64 rest = item / columns, image = rest / strips;
    if (lane >= at.channels || image >= g.images) return;
    const int left = static_cast<int>(item - rest * columns) * COLUMNS;
    const int top = static_cast<int>(rest - image * strips) * ROWS;
    const int channel = at.first_channel + lane;
    const T* source = g.source + image * g.source_height * g.source_width * g.channels + channel;
    float sum[ROWS][COLUMNS][CHANNELS] = {};
#pragma unroll
    for (int row = 0; row < Map::sources(ROWS); ++row) {
        float value[SOURCE_COLUMNS][CHANNELS];
        load_pixels(value, source, Map::first(top) + row, Map::first(left), g.source_height, g.source_width, g.channels);
#pragma unroll
        for (int p = 0; p < ROWS; ++p) {
            const int r = Map::tap(p, row);
            if (r < 0 || r >= TAPS) continue;
#pragma unroll
            for (int s = 0; s < TAPS; ++s) {
                const float* weight = tile + (r * TAPS + s) * PITCH + lane;
#pragma unroll
                for (int v = 0; v < CHANNELS; ++v)
#pragma unroll
                    for (int q = 0; q < COLUMNS; ++q)
#pragma unroll
                        for (int column = 0; column < SOURCE_COLUMNS; ++column)
                            if (Map::tap(q, column) == s)
                                sum[p][q][v] = multiply_add(value[column][v], weight[v], sum[p][q][v]);
            }
        }
    }
    T* output = g.output + image * g.output_height * g.output_width * g.channels + channel;
    store_pixels(sum, g, output, channel, top, left);
}

// Adds the products of one strip of gy to a thread's sums.
template <int TAPS, int STRIDE, int ROWS, class T>
__device__ __forceinline__ void add_strip(float (&sum)[TAPS][TAPS][CHANNELS], const T* source, const T* gradients,
                                          const ConvShape& c, int top, int left) {
    using Map = Reading<TAPS, STRIDE>;
    float gradient[ROWS][COLUMNS][CHANNELS];
#pragma unroll
    for (int p = 0; p < ROWS; ++p) load_pixels(gradient[p], gradients, top + p, left, c.P, c.Q, c.C);
#pragma unroll
    for (int row = 0; row < Map::sources(ROWS); ++row) {
        float value[Map::sources(COLUMNS)][CHANNELS];
        load_pixels(value, source, Map::first(top) + row, Map::first(left), c.H, c.W, c.C);
#pragma unroll
        for (int p = 0; p < ROWS; ++p) {
            const int r = Map::tap(p, row);
            if (r < 0 || r >= TAPS) continue;
#pragma unroll
            for (int s = 0; s < TAPS; ++s)
#pragma unroll
                for (int q = 0; q < COLUMNS; ++q)
#pragma unroll
                    for (int v = 0; v < CHANNELS; ++v)
                        sum[r][s][v] = multiply_add(gradient[p][q][v], value[q * STRIDE + s][v], sum[r][s][v]);
        }
    }
}

// A block sums over strips `begin` … `end` − 1 of all images for its channels; the threads of a channel ("ways") add
// their sums in order. partial is [split][C·k·k].
template <int TAPS, int STRIDE, int ROWS, class T>
__device__ __forceinline__ void depthwise_last_backward_weight(const T* x, const T* gy, float* partial,
                                                               const ConvShape& c, int lanes, int split_items) {
    constexpr int AREA = TAPS * TAPS;
    SHARED(float, tile, [AREA * PITCH]);
    const LastBlock at = last_block(c.C, lanes);
    const int columns = ceil_div(c.Q, COLUMNS), strips = ceil_div(c.P, ROWS);
    const int begin = at.part * split_items, end = min(begin + split_items, c.N * strips * columns);
    const int lane = threadIdx.x % lanes * CHANNELS, way = threadIdx.x / lanes, ways = THREADS / lanes;
    const int channel = at.first_channel + lane;
    float sum[TAPS][TAPS][CHANNELS] = {};
#pragma unroll 1
    for (int item = begin + way; item < end && lane < at.channels; item += ways) {
        const int rest = item / columns, image = rest / strips;
        const T* source = x + static_cast<int64>(image) * c.H * c.W * c.C + channel;
        const T* gradients = gy + static_cast<int64>(image) * c.P * c.Q * c.C + channel;
        const int left = (item - rest * columns) * COLUMNS, top = (rest - image * strips) * ROWS;
        add_strip<TAPS, STRIDE, ROWS>(sum, source, gradients, c, top, left);
    }
#pragma unroll 1
    for (int turn = 0; turn < ways; ++turn) {
        if (turn == way && lane < at.channels) {
#pragma unroll
            for (int t = 0; t < AREA; ++t)
#pragma unroll
                for (int v = 0; v < CHANNELS; ++v) {
                    float* slot = tile + t * PITCH + lane + v;
                    *slot = turn == 0 ? sum[t / TAPS][t % TAPS][v] : *slot + sum[t / TAPS][t % TAPS][v];
                }
        }
        __syncthreads();
    }
    float* target = partial + (static_cast<int64>(at.part) * c.C + at.first_channel) * AREA;
    for (int i = threadIdx.x; i < at.channels * AREA; i += THREADS) target[i] = tile[i % AREA * PITCH + i / AREA];
}
