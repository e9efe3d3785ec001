// gw (K,C/groups,R,S) = Σ_{n,p,q} gy[n,k,p,q] · x[n, c, p·stride + r·dilation − padding, …] of any shape, in two
// stages. x and gy are of T (float, bfloat16 or float16) with any strides; sums are float32.
//
// Each block multiplies gy (FILTERS rows) by patches of x (TERMS rows, a row a (c,r,s) of one group) over a range of
// pixels (n,p,q), and writes its sums to partial [split][K·C/groups·R·S]. The second kernel adds the splits in their
// order. Both overwrite. Nothing depends on the order in which blocks run.
//
// A thread has 8 × 8 sums. FILTERS/8 · TERMS/8 threads cover the tile, and the other threads of the block take other
// pixels of the same chunk ("ways"); after FLUSH pixels the ways are added in order to a total, so chains stay short.
#pragma once
#include "conv2d.cuh"
#include "ptx.cuh"
#include "ptx_convert.cuh"

constexpr int THREADS = 128;
constexpr int FLUSH = 4096;  // pixels

template <int FILTERS, int TERMS, int PIXELS>
struct Tile {
    static constexpr int COLUMNS = TERMS / 8, ROWS = FILTERS / 8, WAYS = THREADS / (COLUMNS * ROWS);
    static constexpr int PITCH = PIXELS + 4;  // 8 rows' float4 lie in different banks
    static constexpr int STAGE = (FILTERS + TERMS) * PITCH;
    static constexpr int TOTALS = FILTERS * TERMS / THREADS;
    static_assert(PIXELS % WARP_SIZE == 0 && PIXELS % (4 * WAYS) == 0, "each way has whole float4s");
    static_assert((PITCH / 4) % 2 == 1, "an odd pitch in float4");
    static_assert(FLUSH % PIXELS == 0, "whole chunks");
};

// Where a row of patches lies, relative to the pixel of x at (p·stride − padding, q·stride − padding) of the first
// channel.
struct Terms {
    int *offset, *row, *column;
};

struct Pixel {
    int n, p, q;
};

__device__ __forceinline__ void load_terms(const Terms& terms, const ConvShape& c, const ImageStrides& x, int first,
                                           int count) {
    const int channels = c.C / c.groups;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const int term = first + i, channel = term / (c.R * c.S), tap = term - channel * c.R * c.S;
        const int r = tap / c.S, s = tap - r * c.S;
        terms.row[i] = channel < channels ? r * c.dilation_h : -(1 << 30);  // outside of every image
        terms.column[i] = s * c.dilation_w;
        const int64 offset = channel * x.channel + r * c.dilation_h * x.row + s * c.dilation_w * x.column;
        terms.offset[i] = static_cast<int>(offset);  // inside an image
    }
}

__device__ __forceinline__ Pixel pixel_of(int64 number, const ConvShape& c) {
    const int64 area = static_cast<int64>(c.P) * c.Q;
    const int n = static_cast<int>(number / area), rest = static_cast<int>(number - n * area);
    return {n, rest / c.Q, rest % c.Q};
}

// One value to shared memory, or zero: float32 in flight until a wait, 16 bits by way of a register.
__device__ __forceinline__ void copy_value(float* target, const float* source, bool valid) {
    copy_async4(target, source, valid);
}
template <class E>
__device__ __forceinline__ void copy_value(float* target, const E* source, bool valid) {
    *target = valid ? to_float(*source) : 0.0f;
}

// Images x and gy with their strides.
template <class E>
struct Pair {
    const E *x, *gy;
    ImageStrides x_strides, gy_strides;
};

// Copies the chunk's pixels (one of each 32 a lane) of all rows to a stage: gy's rows, then those of patches.
template <class T, int FILTERS, int TERMS, int PIXELS, class E>
__device__ __forceinline__ void load_chunk(float* stage, const Pair<E>& g, const ConvShape& c, const Terms& terms,
                                           int group, int first_filter, int64 begin, int64 end) {
    const int warp = threadIdx.x / WARP_SIZE, filters = c.K / c.groups, channels = c.C / c.groups;
    const ImageStrides &xs = g.x_strides, &gys = g.gy_strides;
#pragma unroll 1
    for (int lane = threadIdx.x % WARP_SIZE; lane < PIXELS; lane += WARP_SIZE) {
        const bool exists = begin + lane < end;
        const Pixel at = pixel_of(exists ? begin + lane : begin, c);
        const int64 pixel = at.n * gys.image + at.p * gys.row + at.q * gys.column;
        const E* gradient = g.gy + pixel + (group * filters + first_filter) * gys.channel;
#pragma unroll 4
        for (int row = warp; row < FILTERS; row += THREADS / WARP_SIZE) {
            const bool valid = exists && first_filter + row < filters;
            copy_value(stage + row * T::PITCH + lane, valid ? gradient + row * gys.channel : g.gy, valid);
        }
        const int h = at.p * c.stride_h - c.padding_h, w = at.q * c.stride_w - c.padding_w;
        const int64 image = at.n * xs.image + group * channels * xs.channel;
        const int64 corner = image + h * xs.row + w * xs.column;
#pragma unroll 4
        for (int row = warp; row < TERMS; row += THREADS / WARP_SIZE) {
            const int y = h + terms.row[row], z = w + terms.column[row];
            const bool valid = exists && y >= 0 && y < c.H && z >= 0 && z < c.W;
            const E* value = valid ? g.x + corner + terms.offset[row] : g.x;
            copy_value(stage + (FILTERS + row) * T::PITCH + lane, value, valid);
        }
    }
}

// Adds the products of this way's pixels of the chunk. Thread (row, column) has filters row + i·ROWS, terms column +
// j·COLUMNS.
template <class T, int FILTERS, int PIXELS>
__device__ __forceinline__ void multiply(float (&sum)[8][8], const float* stage, int row, int column, int way) {
    const float* a = stage + row * T::PITCH;
    const float* b = stage + (FILTERS + column) * T::PITCH;
#pragma unroll 1
    for (int pixel = 4 * way; pixel < PIXELS; pixel += 4 * T::WAYS) {
        float4 gradient[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) gradient[i] = load4(a + i * T::ROWS * T::PITCH + pixel);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const float4 patch = load4(b + j * T::COLUMNS * T::PITCH + pixel);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                sum[i][j] = multiply_add(gradient[i].x, patch.x, sum[i][j]);
                sum[i][j] = multiply_add(gradient[i].y, patch.y, sum[i][j]);
                sum[i][j] = multiply_add(gradient[i].z, patch.z, sum[i][j]);
                sum[i][j] = multiply_add(gradient[i].w, patch.w, sum[i][j]);
            }
        }
    }
}

// Adds the ways' sums, in their order, to the totals; thread t has totals t, t + THREADS, … of the tile
// [filter][term].
template <class T, int TERMS>
__device__ __forceinline__ void flush(float (&total)[T::TOTALS], float (&sum)[8][8], float* tile, int row, int column,
                                      int way) {
#pragma unroll 1
    for (int turn = 0; turn < T::WAYS; ++turn) {
        if (turn == way) {
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    float* slot = tile + (row + i * T::ROWS) * TERMS + column + j * T::COLUMNS;
                    *slot = turn == 0 ? sum[i][j] : *slot + sum[i][j];
                    sum[i][j] = 0.0f;
                }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < T::TOTALS; ++i) total[i] += tile[threadIdx.x + i * THREADS];
    __syncthreads();
}

// Tiles are numbered with the terms' fastest, then the filters', then the splits: blocks that run together share
// pixels.
template <int FILTERS, int TERMS, int PIXELS, class E>
__device__ __forceinline__ void backward_weight(const Pair<E>& g, float* partial, const ConvShape& c,
                                                int64 split_pixels) {
    using T = Tile<FILTERS, TERMS, PIXELS>;
    SHARED(float, stages, [2 * T::STAGE]);
    SHARED(float, tile, [FILTERS * TERMS]);
    SHARED(int, places, [3 * TERMS]);
    const Terms terms = {places, places + TERMS, places + 2 * TERMS};
    const int filters = c.K / c.groups, row_length = c.C / c.groups * c.R * c.S;
    const int term_tiles = ceil_div(row_length, TERMS), filter_tiles = ceil_div(filters, FILTERS);
    const int tiles = term_tiles * filter_tiles * c.groups, split = blockIdx.x / tiles, number = blockIdx.x % tiles;
    const int first_term = number % term_tiles * TERMS, first_filter = number / term_tiles % filter_tiles * FILTERS;
    const int group = number / (term_tiles * filter_tiles);
    const int column = threadIdx.x % T::COLUMNS, row = threadIdx.x / T::COLUMNS % T::ROWS;
    const int way = threadIdx.x / (T::COLUMNS * T::ROWS);
    const int64 begin = split * split_pixels;
    const int64 end = min(begin + split_pixels, static_cast<int64>(c.N) * c.P * c.Q);

    load_terms(terms, c, g.x_strides, first_term, TERMS);
    __syncthreads();
    float sum[8][8] = {}, total[T::TOTALS] = {};
    load_chunk<T, FILTERS, TERMS, PIXELS>(stages, g, c, terms, group, first_filter, begin, end);
    copy_async_commit();
    int stage = 0;
    for (int64 pixel = begin; pixel < end; pixel += PIXELS, stage ^= 1) {
        if (pixel + PIXELS < end)
            load_chunk<T, FILTERS, TERMS, PIXELS>(stages + (stage ^ 1) * T::STAGE, g, c, terms, group, first_filter,
                                                  pixel + PIXELS, end);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        multiply<T, FILTERS, PIXELS>(sum, stages + stage * T::STAGE, row, column, way);
        __syncthreads();
        if ((pixel + PIXELS - begin) % FLUSH == 0 || pixel + PIXELS >= end)
            flush<T, TERMS>(total, sum, tile, row, column, way);
    }
#pragma unroll
    for (int i = 0; i < T::TOTALS; ++i) {
        const int element = threadIdx.x + i * THREADS, filter = first_filter + element / TERMS;
        const int term = first_term + element % TERMS;
        if (filter < filters && term < row_length)
            partial[((static_cast<int64>(split) * c.groups + group) * filters + filter) * row_length + term] = total[i];
    }
}
