// What the implicit-GEMM convolutions share beside their tiles: how a launch divides its work, and how sums are stored.
//
// Where few tiles leave multiprocessors idle the terms are split: each split writes to its own plane of a workspace, and
// the planes are added in their order. No bit depends on timing.
#pragma once
#include "conv2d.cuh"
#include "tile.cuh"

// How a launch divides its work; forward and backward_input count output pixels (of one phase), backward_weight pixels.
struct ConvProduct {
    int64 split_stride;                  // floats from one split's plane to the next
    int splits, split_terms, relu;
    unsigned by_image[3], by_row[3];     // divisors: pixels of an image, pixels of a row
    int step[3];                         // images, rows and columns that 16 pixels go on by, for backward_weight
};

// Shared memory of both stages: within the 48 KB of every kernel, or given by the launch.
#define STATIC_STAGES(Tile, name) SHARED(float, name, [2 * Tile::STAGE])
#define DYNAMIC_STAGES(Tile, name) DYNAMIC_SHARED(float, name)

__device__ __forceinline__ float finish(float value, bool relu) { return relu && value < 0.0f ? 0.0f : value; }

// Writes a thread's rows of WIDTH neighbouring columns, which go to target + at[j] (a column does not exist where at[j] is
// negative) and `stride` floats further for each row; added to what stands there if `add`. With `vectors` they are
// neighbours in memory and aligned. `bias` is one value a row, or null.
template <class Tile>
__device__ __forceinline__ void store_columns(const Sums<Tile>& sums, int block, float* target,
                                              const int64 (&at)[Tile::WIDTH], bool vectors, int64 stride, int row,
                                              int rows, const float* bias, bool add, bool relu) {
    constexpr int WIDTH = Tile::WIDTH;
#pragma unroll
    for (int i = 0; i < Tile::ROWS; ++i) {
        const int m = row + Tile::row(i);
        if (m >= rows) continue;
        const float row_bias = bias ? bias[m] : 0.0f;
        float* line = target + m * stride;
        if (vectors) {
            if (at[0] < 0) continue;
            float values[WIDTH] = {};
            if (add) load_values<WIDTH>(line + at[0], values);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j)
                values[j] = finish(values[j] + Tile::sum(sums, i, block, j) + row_bias, relu);
            store_values<WIDTH>(line + at[0], values);
        } else {
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) {
                if (at[j] < 0) continue;
                const float before = add ? line[at[j]] : 0.0f;
                line[at[j]] = finish(before + Tile::sum(sums, i, block, j) + row_bias, relu);
            }
        }
    }
}
