// The weight gradient by implicit GEMM over any tile: conv2d_backward_weight.cu has the maths and layouts.
//
// A thread copies one pixel of a step for some filters and columns; sixteen lanes read sixteen neighbouring pixels. It
// walks along the pixels in steps of 16 by additions with carries, without dividing.
#pragma once
#include "conv2d_gemm.cuh"

constexpr int BLOCK_CHANNELS = 64;
constexpr int NOWHERE = 1 << 30;  // rows below the image

// Of a column, relative to the pixel at the window's corner: rows down, columns to the right, and floats.
struct Column {
    int down, right, offset, unused;
};

// The pixel at the corner of a thread's window: its row, column and place in an image.
struct Corner {
    int h, w, offset;
};

// How a block's threads share the copies of a step.
template <class Tile>
struct Lanes {
    static constexpr int ROWS = Tile::THREADS / Tile::TERMS;  // filters or columns copied at a time
    static constexpr int PASSES_M = Tile::TILE_M / ROWS, PASSES_N = Tile::TILE_N / ROWS;
    static_assert(Tile::TERMS == 16 && PASSES_M * ROWS == Tile::TILE_M && PASSES_N * ROWS == Tile::TILE_N, "whole passes");

    static __device__ __forceinline__ int term() { return threadIdx.x % Tile::TERMS; }
    // Lanes of the second eight pixels are two rows apart from the others, so that all 32 write to different banks.
    static __device__ __forceinline__ int row() { return threadIdx.x / Tile::TERMS ^ (term() / 8 * 2); }
};

__device__ __forceinline__ bool is_inside(const Corner& at, const Column& column, int height, int width) {
    return static_cast<unsigned>(at.h + column.down) < static_cast<unsigned>(height) &&
           static_cast<unsigned>(at.w + column.right) < static_cast<unsigned>(width);
}

// Columns (c,r,s), each with its place; those past the last repeat it.
template <class Tile>
struct AnyColumns {
    static constexpr int PLACES = Tile::TILE_N;
    const Column* places;

    // Place number i of the tile whose first column is `first`.
    static __device__ __forceinline__ Column place(const ConvShape& s, const ImageStrides& strides, int first, int i) {
        const int column = min(first + i, s.C / s.groups * s.R * s.S - 1), tap = column / s.S;
        const int down = tap % s.R * s.dilation_h, right = column % s.S * s.dilation_w;
        const int64 offset = tap / s.R * strides.channel + down * strides.row + right * strides.column;
        return {down, right, static_cast<int>(offset), 0};
    }
    __device__ __forceinline__ AnyColumns(const Column* table, const ImageStrides&)
        : places(table + Lanes<Tile>::row()) {}

    __device__ __forceinline__ void copy(SharedFloats target, const float* x, const Corner& at, int height,
                                         int width) const {
        int offsets[Lanes<Tile>::PASSES_N];
        bool inside[Lanes<Tile>::PASSES_N];
#pragma unroll
        for (int pass = 0; pass < Lanes<Tile>::PASSES_N; ++pass) {  // read before any copy, which reads may not overtake
            const Column column = places[pass * Lanes<Tile>::ROWS];
            offsets[pass] = at.offset + column.offset;
            inside[pass] = is_inside(at, column, height, width);
        }
#pragma unroll
        for (int pass = 0; pass < Lanes<Tile>::PASSES_N; ++pass)
            copy_async4(target + pass * Lanes<Tile>::ROWS, x + offsets[pass], inside[pass]);
    }
};

// Columns (r,s,c): blocks of 64 channels at one tap.
template <class Tile>
struct ChannelColumns {
    static constexpr int PLACES = Tile::TILE_N / BLOCK_CHANNELS, PASSES = Lanes<Tile>::PASSES_N / PLACES;
    Column blocks[PLACES];
    int step;  // floats from one of the thread's channels to the next

    static __device__ __forceinline__ Column place(const ConvShape& s, const ImageStrides& strides, int first, int i) {
        const int channels = s.C / s.groups, column = first + i * BLOCK_CHANNELS, tap = column / channels;
        const int down = tap / s.S * s.dilation_h, right = tap % s.S * s.dilation_w;
        const int64 offset = column % channels * strides.channel + down * strides.row + right * strides.column;
        return {tap < s.R * s.S ? down : NOWHERE, right, static_cast<int>(offset), 0};
    }
    __device__ __forceinline__ ChannelColumns(const Column* table, const ImageStrides& strides) {
#pragma unroll
        for (int i = 0; i < PLACES; ++i) {
            blocks[i] = table[i];
            blocks[i].offset += Lanes<Tile>::row() * static_cast<int>(strides.channel);
        }
        step = Lanes<Tile>::ROWS * static_cast<int>(strides.channel);
    }

    __device__ __forceinline__ void copy(SharedFloats target, const float* x, const Corner& at, int height,
                                         int width) const {
#pragma unroll
        for (int i = 0; i < PLACES; ++i) {
            const float* from = x + (at.offset + blocks[i].offset);
            const bool inside = is_inside(at, blocks[i], height, width);
#pragma unroll
            for (int pass = 0; pass < PASSES; ++pass, from += step)
                copy_async4(target + (i * PASSES + pass) * Lanes<Tile>::ROWS, from, inside);
        }
    }
};

// Copies gy [pixel][filter], zeros past the last filter, and x [pixel][column]. Offsets inside an image are counted in 32
// bits, and so are those from image to image.
template <class Tile, class Columns>
struct PixelLoader {
    using Own = Lanes<Tile>;
    const ConvShape& shape;
    const ImageStrides &x_strides, &gy_strides;
    const ConvProduct& product;
    Columns columns;
    const float *x, *gy;  // of the block's group; in the loop, of the thread's image; gy at the thread's first filter
    int passes;           // how many of its filters exist
    int pixel, exist;     // the first step's first pixel, and how many of its 16 exist
    int p, q;
    SharedFloats left, right;

    __device__ __forceinline__ void first(SharedFloats tiles) {
        left = opaque(tiles + left_place<Tile>(Own::term(), Own::row()));
        right = opaque(tiles + right_place<Tile>(Own::term(), Own::row()));
        const float *const x_images = x, *const gy_images = gy;
        enter(pixel, x_images, gy_images);
        copy(Own::term() < exist);
        enter(pixel + exist, x_images, gy_images);
    }
    __device__ __forceinline__ void operator()(int distance) {
        left += distance;
        right += distance;
        copy(true);
        advance();
    }

    __device__ __forceinline__ void enter(int first_pixel, const float* x_images, const float* gy_images) {
        int rest;
        const int n = divide(first_pixel + Own::term(), product.by_image, rest);
        p = divide(rest, product.by_row, q);
        x = x_images + n * x_strides.image;
        gy = gy_images + n * gy_strides.image;
    }
    __device__ __forceinline__ void advance() {
        q += product.step[2];
        const bool next_row = q >= shape.Q;
        if (next_row) q -= shape.Q;
        p += product.step[1] + next_row;
        const bool next_image = p >= shape.P;
        if (next_image) p -= shape.P;
        const int images = product.step[0] + next_image;
        x += static_cast<int64>(images) * static_cast<int>(x_strides.image);
        gy += static_cast<int64>(images) * static_cast<int>(gy_strides.image);
    }

    // The thread's pixel, if it exists, for all its filters and columns.
    __device__ __forceinline__ void copy(bool exists) const {
        const int h = p * shape.stride_h - shape.padding_h, w = q * shape.stride_w - shape.padding_w;
        const int corner = h * static_cast<int>(x_strides.row) + w * static_cast<int>(x_strides.column);
        columns.copy(right, x, {h, w, corner}, exists ? shape.H : 0, shape.W);

        const int place = p * static_cast<int>(gy_strides.row) + q * static_cast<int>(gy_strides.column);
        const float* from = gy + place;
        const int step = Own::ROWS * static_cast<int>(gy_strides.channel), filters = exists ? passes : 0;
#pragma unroll
        for (int pass = 0; pass < Own::PASSES_M; ++pass, from += step)
            copy_async4(left + pass * Own::ROWS, from, pass < filters);
    }
};

template <class Tile, class Columns>
struct WeightGradient {
    const float *x, *gy;
    float* gw;
    const ConvShape& shape;
    const ImageStrides &x_strides, &gy_strides;
    const ConvProduct& product;
    Column* table;  // in shared memory

    // Where the block works, computed anew where it is wanted, so that it takes no registers in the main loop.
    struct Place {
        int filters, channels, row, column, group, begin, terms;
    };
    __device__ __forceinline__ Place place() const {
        const int filters = shape.K / shape.groups, tiles_m = ceil_div(filters, Tile::TILE_M), tile = opaque(blockIdx.x);
        const int begin = opaque(blockIdx.y) * product.split_terms;
        const int pixels = shape.N * static_cast<int>(product.by_image[0]);
        return {filters, shape.C / shape.groups, tile % tiles_m * Tile::TILE_M, tile / tiles_m * Tile::TILE_N,
                opaque(blockIdx.z), begin, min(product.split_terms, pixels - begin)};
    }

    __device__ __forceinline__ void add(int step, int steps, SharedFloats tiles, Sums<Tile>& sums) const {
        const Place at = place();
        const int residue = (at.terms - 1) % Tile::TERMS + 1;  // of pixels: the first step is the one that may have fewer
        const int pixel = step ? at.begin + residue + (step - 1) * Tile::TERMS : at.begin;
        const int filter = at.row + Lanes<Tile>::row();
        PixelLoader<Tile, Columns> load{
            shape, x_strides, gy_strides, product, Columns(table, x_strides),
            x + at.group * at.channels * x_strides.channel, gy + (at.group * at.filters + filter) * gy_strides.channel,
            ceil_div(at.filters - filter, Lanes<Tile>::ROWS), pixel, step ? Tile::TERMS : residue};
        multiply_steps<Tile>(load, steps, tiles, sums);
    }

    __device__ __forceinline__ void store(Sums<Tile>& sums, bool add) const {
        const Place at = place();
        const int width = at.channels * shape.R * shape.S;
        float* target = gw + opaque(blockIdx.y) * product.split_stride +
                        static_cast<int64>(at.group) * at.filters * width;
        constexpr int WIDTH = Tile::WIDTH;
        const bool vectors = width % WIDTH == 0 && is_aligned<WIDTH>(target);
#pragma unroll
        for (int block = 0; block < Tile::BLOCKS; ++block) {
            const int column = at.column + thread_column<Tile>() + Tile::column(block);
            int64 places[WIDTH];
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) places[j] = column + j < width ? column + j : -1;
            store_columns<Tile>(sums, block, target, places, vectors, width, at.row + thread_row<Tile>(), at.filters,
                                nullptr, add, false);
        }
    }

    __device__ __forceinline__ void run(SharedFloats tiles) const {
        if (threadIdx.x < Columns::PLACES)
            table[threadIdx.x] = Columns::place(shape, x_strides, place().column, threadIdx.x);
        __syncthreads();
        for (int done = 0;; done += Tile::CHUNK_STEPS) {
            Sums<Tile> sums = {};
            add(done, min(Tile::CHUNK_STEPS, ceil_div(place().terms, Tile::TERMS) - done), tiles, sums);
            store(sums, done > 0);
            if (done + Tile::CHUNK_STEPS >= ceil_div(place().terms, Tile::TERMS)) break;
        }
    }
};
