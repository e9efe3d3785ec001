// The matrix product inside the implicit-GEMM convolutions: sums[row][column] = Σ_term left[term][row] · right[term][column],
// where loaders write the tiles of both operands to shared memory, two stages deep, and one barrier parts the steps.
//
// Accuracy: a chain of CHUNK products is summed in registers and then added to the output, so the error of a sum of 1e5
// terms stays below 2e-6 of its norm. Where few tiles leave multiprocessors idle the terms are split: each split writes to
// its own plane of a workspace, and gemm_add_splits adds the planes in their order. No bit depends on timing.
#pragma once
#include "conv2d.cuh"
#include "tile.cuh"

constexpr int CHUNK = 1024;  // terms summed in one go

// Tiles of TILE_M × TILE_N, TERMS at a step, by threads of 4·GROUPS_M × 4·GROUPS_N sums.
template <int M, int N, int K, int ROW_GROUPS, int COLUMN_GROUPS>
struct Tiling {
    static constexpr int TILE_M = M, TILE_N = N, TERMS = K, GROUPS_M = ROW_GROUPS, GROUPS_N = COLUMN_GROUPS;
    static constexpr int THREADS = M * N / (16 * GROUPS_M * GROUPS_N);
    static constexpr int LANES = 8, ROWS = THREADS / LANES;  // loaders along the terms: 8 lanes read neighbouring terms
    static constexpr int PASSES_M = M / ROWS, PASSES_N = N / ROWS;
    static_assert(K % LANES == 0 && M % ROWS == 0 && N % ROWS == 0, "whole passes");
    static_assert(CHUNK % (2 * K) == 0, "a chunk ends in the second stage, so the next may begin in the first");
};

// How a launch divides its work; forward and backward_input count output pixels (of one phase), backward_weight pixels.
struct ConvProduct {
    int64 split_stride;                  // floats from one split's plane to the next
    int splits, split_terms, relu;
    unsigned by_image[3], by_row[3];     // divisors: pixels of an image, pixels of a row
    int step[3];                         // images, rows and columns that 8 pixels go on by, for backward_weight
};

// A thread's sums of products.
template <class Tile>
using Sums = float[4 * Tile::GROUPS_M][4 * Tile::GROUPS_N];

// load(left_tile, right_tile, remaining) copies the next step, of which `remaining` terms exist; store(sums, add, last) takes
// each chunk.
template <class Tile, class Load, class Store>
__device__ __forceinline__ void sum_products(Load& load, int terms, const Store& store) {
    constexpr int TERMS = Tile::TERMS;
    SHARED(float, left_tiles, [2][TERMS * (Tile::TILE_M + PAD)]);
    SHARED(float, right_tiles, [2][TERMS * (Tile::TILE_N + PAD)]);
    const int row = thread_row<Tile::TILE_N, Tile::GROUPS_M, Tile::GROUPS_N>();
    const int column = thread_column<Tile::TILE_N, Tile::GROUPS_M, Tile::GROUPS_N>();
    for (int done = 0; done == 0 || done < terms; done += CHUNK) {
        Sums<Tile> sums = {};
        const int chunk = min(CHUNK, terms - done);
        if (chunk > 0) {
            load(left_tiles[0], right_tiles[0], chunk);
            copy_async_commit();
        }
        for (int k = 0, stage = 0; k < chunk; k += TERMS, stage ^= 1) {
            copy_async_wait<0>();
            __syncthreads();  // this stage has arrived, and the other is no longer read
            if (k + TERMS < chunk) {
                load(left_tiles[stage ^ 1], right_tiles[stage ^ 1], chunk - k - TERMS);
                copy_async_commit();
            }
            multiply_tiles<TERMS, Tile::TILE_M, Tile::TILE_N, Tile::GROUPS_M, Tile::GROUPS_N>(
                left_tiles[stage] + row, right_tiles[stage] + column, sums);
        }
        store(sums, done > 0, done + CHUNK >= terms);
    }
}

__device__ __forceinline__ float finish(float value, bool relu) { return relu && value < 0.0f ? 0.0f : value; }

// Writes a thread's rows of four neighbouring columns, which go to target + at[j] (a column does not exist where at[j] is
// negative) and `stride` floats further for each row; added to what stands there if `add`. With `vectors` the four are
// neighbours in memory and aligned. `bias` is one value a row, or null.
template <class Tile>
__device__ __forceinline__ void store_columns(Sums<Tile>& sums, int group, float* target,
                                              const int64 (&at)[4], bool vectors, int64 stride, int row, int rows,
                                              const float* bias, bool add, bool relu) {
#pragma unroll
    for (int i = 0; i < 4 * Tile::GROUPS_M; ++i) {
        const int m = row + i / 4 * GROUP_ROWS + i % 4;
        if (m >= rows) continue;
        const float row_bias = bias ? bias[m] : 0.0f;
        float* line = target + m * stride;
        if (vectors) {
            if (at[0] < 0) continue;
            float values[4] = {};
            if (add) unpack(load4(line + at[0]), values);
#pragma unroll
            for (int j = 0; j < 4; ++j) values[j] = finish(values[j] + sums[i][4 * group + j] + row_bias, relu);
            store4(line + at[0], make_float4(values[0], values[1], values[2], values[3]));
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (at[j] < 0) continue;
                const float before = add ? line[at[j]] : 0.0f;
                line[at[j]] = finish(before + sums[i][4 * group + j] + row_bias, relu);
            }
        }
    }
}
