// Gradient of the weights in 16 bits by implicit GEMM: rows are filters, columns are (tap, channel), both of one group,
// terms are the output pixels of all images, divided among the blocks along y.
//
// Σ_{pixels} gy[pixel,k] · x[pixel at tap, c] goes to planes (splits, K, R·S, C/groups) of float32, which are overwritten;
// conv2d_half_add.cu adds them in their order. Sums of 1024 pixels are added to the plane at a time, outside the tensor
// core, which cuts off.
//
// - PixelRows: both images have contiguous channels of multiples of 8: 16-byte copies, [pixel][row] for both operands.
// - PixelPairs: everything else. Lanes stand along the pixels, two each: values go through registers to [row][pixel].
#pragma once
#include "conv2d_half.cuh"
#include "conv2d_gemm.cuh"

constexpr int NOWHERE = 1 << 30;  // rows below the image

// Of a column, relative to the pixel at the window's corner: rows down, columns to the right, and values.
struct HalfColumn {
    int down, right, offset, unused;
};

struct HalfImages {
    const ConvShape& shape;
    const ImageStrides &x_strides, &gy_strides;
    const ConvProduct& product;

    __device__ __forceinline__ HalfColumn column(int number) const {
        const int channels = shape.C / shape.groups, tap = number / channels;
        const int down = tap / shape.S * shape.dilation_h, right = tap % shape.S * shape.dilation_w;
        const int64 offset = number % channels * x_strides.channel + down * x_strides.row + right * x_strides.column;
        return {tap < shape.R * shape.S ? down : NOWHERE, right, static_cast<int>(offset), 0};
    }
};

// An output pixel that a thread walks along by additions with carries.
struct PixelWalk {
    int left, n, p, q;  // left: pixels of the block from this one on, if any
    __device__ __forceinline__ void start(int pixel, int end, const HalfImages& images) {
        int rest;
        left = end - pixel;
        n = divide(pixel, images.product.by_image, rest);
        p = divide(rest, images.product.by_row, q);
    }
    __device__ __forceinline__ void advance(const HalfImages& images) {  // by 16
        left -= 16;
        q += images.product.step[2];
        const bool next_row = q >= images.shape.Q;
        if (next_row) q -= images.shape.Q;
        p += images.product.step[1] + next_row;
        const bool next_image = p >= images.shape.P;
        if (next_image) p -= images.shape.P;
        n += images.product.step[0] + next_image;
    }
    __device__ __forceinline__ int64 gy(const HalfImages& images) const {
        return n * images.gy_strides.image +
               (p * static_cast<int>(images.gy_strides.row) + q * static_cast<int>(images.gy_strides.column));
    }
    // Where x has the window's corner, and whether the column's pixel of it is inside.
    __device__ __forceinline__ int row(const HalfImages& images) const {
        return p * images.shape.stride_h - images.shape.padding_h;
    }
    __device__ __forceinline__ int column(const HalfImages& images) const {
        return q * images.shape.stride_w - images.shape.padding_w;
    }
    __device__ __forceinline__ int64 x(const HalfImages& images) const {
        return n * images.x_strides.image + (row(images) * static_cast<int>(images.x_strides.row) +
                                             column(images) * static_cast<int>(images.x_strides.column));
    }
    __device__ __forceinline__ bool is_inside(const HalfImages& images, const HalfColumn& at) const {
        return static_cast<unsigned>(row(images) + at.down) < static_cast<unsigned>(images.shape.H) &&
               static_cast<unsigned>(column(images) + at.right) < static_cast<unsigned>(images.shape.W);
    }
};

template <class T, class Tile>
struct PixelRows {
    static constexpr bool LEFT_TERMS = true, RIGHT_TERMS = true;
    static constexpr int UNITS = Tile::TILE_M / UNIT, PASSES = Tile::TERMS / 16, COLUMNS = 1;
    static_assert(Tile::TILE_M == Tile::TILE_N && Tile::THREADS / UNITS == 16, "16 pixels at a time");
    const HalfImages& images;
    const T *x, *gy;  // of the block's group, at the thread's column and filters
    bool exists;      // the thread's filters
    HalfColumn column;
    PixelWalk at;

    __device__ __forceinline__ PixelRows(const HalfImages& all, const T* x_, const T* gy_, HalfColumn*, int filter,
                                         int filters, int first_column, int begin, int end)
        : images(all), x(x_), gy(gy_) {
        const int unit = threadIdx.x % UNITS * UNIT;
        exists = filter + unit < filters;
        gy += filter + unit;
        column = images.column(first_column + unit);
        x += column.offset;
        at.start(begin + threadIdx.x / UNITS, end, images);
    }
    __device__ __forceinline__ void fetch(T* stage) {
        const int term = threadIdx.x / UNITS, chunk = threadIdx.x % UNITS;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            T* to = stage + term_place<Tile::TILE_M>(term, chunk) + pass * 16 * Tile::TILE_M;
            const bool pixel = at.left > 0;
            copy_unit(to, gy + at.gy(images), pixel && exists);
            copy_unit(to + Tile::RIGHT, x + at.x(images), pixel && at.is_inside(images, column));
            at.advance(images);
        }
    }
    __device__ __forceinline__ void put(T*) const {}
};

template <class T, class Tile>
struct PixelPairs {
    static constexpr bool LEFT_TERMS = false, RIGHT_TERMS = false;
    static constexpr int PAIRS = Tile::TERMS / 2, ROWS = Tile::THREADS / PAIRS, PASSES = Tile::TILE_M / ROWS;
    static constexpr int COLUMNS = Tile::TILE_N;
    static_assert(Tile::TILE_M == Tile::TILE_N && PASSES * ROWS == Tile::TILE_M && ROWS % 8 == 0, "whole passes");
    const HalfImages& images;
    const T *x, *gy;
    const HalfColumn* columns;
    int rows;  // how many of the thread's filters exist
    PixelWalk at[2];
    uint32_t left[PASSES], right[PASSES];

    static __device__ __forceinline__ int pair() { return threadIdx.x % PAIRS; }
    static __device__ __forceinline__ int row() { return threadIdx.x / PAIRS; }
    __device__ __forceinline__ PixelPairs(const HalfImages& all, const T* x_, const T* gy_, HalfColumn* table, int filter,
                                          int filters, int first_column, int begin, int end)
        : images(all), x(x_), gy(gy_), columns(table) {
        if (threadIdx.x < COLUMNS) table[threadIdx.x] = images.column(first_column + threadIdx.x);
        __syncthreads();
        rows = ceil_div(filters - filter - row(), ROWS);
        gy += (filter + row()) * images.gy_strides.channel;
#pragma unroll
        for (int i = 0; i < 2; ++i) at[i].start(begin + pair() * 2 + i, end, images);
    }
    __device__ __forceinline__ void fetch(T*) {
        const int step = ROWS * static_cast<int>(images.gy_strides.channel);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const bool exists = at[i].left > 0;
            const T* from = gy + at[i].gy(images);
            const T* corner = x + at[i].x(images);
            const int h = exists ? at[i].row(images) : -2 * NOWHERE, w = at[i].column(images);
#pragma unroll
            for (int pass = 0; pass < PASSES; ++pass, from += step) {
                const HalfColumn column = columns[row() + pass * ROWS];
                const bool inside = static_cast<unsigned>(h + column.down) < static_cast<unsigned>(images.shape.H) &&
                                    static_cast<unsigned>(w + column.right) < static_cast<unsigned>(images.shape.W);
                const uint32_t gradient = load_bits16(from, exists && pass < rows);
                const uint32_t value = load_bits16(corner + column.offset, inside);
                left[pass] = i ? left[pass] | gradient << 16 : gradient;
                right[pass] = i ? right[pass] | value << 16 : value;
            }
            at[i].advance(images);
            at[i].advance(images);
        }
    }
    __device__ __forceinline__ void put(T* stage) const {
        T* to = stage + row_place(row(), pair() / 4) + pair() % 4 * 2;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            store_pair(to + pass * ROWS * Tile::TERMS, left[pass]);
            store_pair(to + Tile::RIGHT + pass * ROWS * Tile::TERMS, right[pass]);
        }
    }
};

template <class T, class Tile, template <class, class> class LoaderOf>
struct HalfWeightGradient {
    using Loader = LoaderOf<T, Tile>;
    static constexpr int CHUNK_STEPS = 1024 / Tile::TERMS;
    const T *x, *gy;
    float* planes;
    const HalfImages& images;
    HalfColumn* table;

    struct Place {
        int filters, width, filter, column, group;
    };
    __device__ __forceinline__ Place place() const {
        const ConvShape& s = images.shape;
        const int groups = opaque(s.groups);
        const int filters = s.K / groups, tiles = ceil_div(filters, Tile::TILE_M), tile = opaque(blockIdx.x);
        return {filters, s.C / groups * s.R * s.S, tile % tiles * Tile::TILE_M, tile / tiles * Tile::TILE_N,
                opaque(blockIdx.z)};
    }

    __device__ __forceinline__ void store(const typename Tile::Sums& sums, bool add) const {
        const Place at = place();
        float* plane = planes + opaque(blockIdx.y) * images.product.split_stride +
                       static_cast<int64>(at.group) * at.filters * at.width;
        const int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
        for (int i = 0; i < 2 * Tile::ROW_TILES; ++i) {
            const int filter = at.filter + Tile::warp_row() + lane / 4 + i * 8;
            float* row = plane + static_cast<int64>(filter) * at.width;
#pragma unroll
            for (int n = 0; n < Tile::COLUMN_TILES; ++n) {
                const int column = at.column + Tile::warp_column() + n * 8 + lane % 4 * 2;
                if (filter >= at.filters || column >= at.width) continue;
                const float *pair = sums.values[i / 2][n] + i % 2 * 2;
                if (at.width % 2 == 0) {
                    float2 sum = make_float2(pair[0], pair[1]);
                    if (add) {
                        const float2 before = load2(row + column);
                        sum.x += before.x, sum.y += before.y;
                    }
                    store2(row + column, sum);
                } else {
                    row[column] = (add ? row[column] : 0.0f) + pair[0];
                    if (column + 1 < at.width) row[column + 1] = (add ? row[column + 1] : 0.0f) + pair[1];
                }
            }
        }
    }

    __device__ __forceinline__ int end() const {
        const int pixels = images.shape.N * static_cast<int>(images.product.by_image[0]);
        const int begin = opaque(blockIdx.y) * images.product.split_terms;
        return begin + min(images.product.split_terms, pixels - begin);
    }
    // The products of up to CHUNK_STEPS steps from pixel `begin` on.
    __device__ __forceinline__ void multiply(int begin, T* ring, typename Tile::Sums& sums) const {
        const Place at = place();
        const int64 channel = static_cast<int64>(at.group) * (images.shape.C / images.shape.groups);
        Loader load(images, x + channel * images.x_strides.channel,
                    gy + static_cast<int64>(at.group) * at.filters * images.gy_strides.channel, table, at.filter, at.filters,
                    at.column, begin, end());
        multiply_ring<T, Tile>(load, min(CHUNK_STEPS, ceil_div(end() - begin, Tile::TERMS)), ring, sums);
    }

    // What the loops need is computed anew for each chunk, so that it takes no registers while sums are stored.
    __device__ __forceinline__ void run(T* ring) const {
        for (int begin = opaque(blockIdx.y) * images.product.split_terms;;) {
            typename Tile::Sums sums = {};
            multiply(begin, ring, sums);
            store(sums, begin > opaque(blockIdx.y) * images.product.split_terms);
            if (end() - begin <= CHUNK_STEPS * Tile::TERMS) break;
            begin += CHUNK_STEPS * Tile::TERMS;
        }
    }
};
