// What all matrix products share: their shape, and where a block works.
#pragma once
#include "common.cuh"

constexpr int GROUP_TILES = 8;  // neighbouring blocks take tiles 8 rows deep, and so share a and b in the L2 cache

struct GemmShape {
    int M, N, K;
    int splits, split_terms;  // planes of the workspace, and terms of each but the last
    int bias_per_row, relu;
    int64 a_stride, a_batch, b_stride, b_batch, c_stride, c_batch, c_split;
};

// Where a block works: its tile's first row and column, its split and its batch.
struct Position {
    int row, column, split, batch;
};
template <int TILE_M, int TILE_N>
__device__ __forceinline__ Position block_position(const GemmShape& shape, unsigned number) {
    const int tiles_m = ceil_div(shape.M, TILE_M), tiles_n = ceil_div(shape.N, TILE_N);
    const int tile = number % (tiles_m * tiles_n), rest = number / (tiles_m * tiles_n);
    const int first = tile / (GROUP_TILES * tiles_n) * GROUP_TILES;
    const int height = min(GROUP_TILES, tiles_m - first), inside = tile - first * tiles_n;
    return {(first + inside % height) * TILE_M, inside / height * TILE_N, rest % shape.splits, rest / shape.splits};
}

__device__ __forceinline__ float finish(float value, int relu) { return relu && value < 0.0f ? 0.0f : value; }
