// What matrix products share: gemm.cu, and gemm_flush.cu, which sums in two levels. Blocks are numbered along one axis;
// the batch is outermost, so blocks that run at a time read the same matrices.
#pragma once
#include "tile.cuh"

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

// Writes a thread's sums to c, added to what stands there if `add`; `bias` is null but for the last chunk.
template <class Tile>
__device__ __forceinline__ void store_sums(Sums<Tile>& sums, float* c, const float* bias, const GemmShape& shape, int row,
                                           int column, bool add, bool relu) {
    const bool vectors = is_aligned16(c) && shape.c_stride % 4 == 0;
#pragma unroll
    for (int g = 0; g < Tile::GROUPS_N; ++g, column += GROUP_COLUMNS) {
        float column_bias[4] = {};
        if (bias && !shape.bias_per_row)
            for (int j = 0; j < 4; ++j) column_bias[j] = column + j < shape.N ? bias[column + j] : 0.0f;
#pragma unroll
        for (int i = 0; i < 4 * Tile::GROUPS_M; ++i) {
            const int m = row + i / 4 * GROUP_ROWS + i % 4;
            if (m >= shape.M) continue;
            const float row_bias = bias && shape.bias_per_row ? bias[m] : 0.0f;
            float* target = c + m * shape.c_stride + column;
            float values[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) values[j] = sums[i][4 * g + j];
            if (vectors && column + 4 <= shape.N) {
                float before[4] = {};
                if (add) unpack(load4(target), before);
#pragma unroll
                for (int j = 0; j < 4; ++j) values[j] = finish(values[j] + before[j] + row_bias + column_bias[j], relu);
                store4(target, make_float4(values[0], values[1], values[2], values[3]));
            } else {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (column + j >= shape.N) continue;
                    const float before = add ? target[j] : 0.0f;
                    target[j] = finish(values[j] + before + row_bias + column_bias[j], relu);
                }
            }
        }
    }
}

// A block's two operands.
template <class Tile, class Left, class Right>
struct Operands {
    Left left;
    Right right;
    int terms;  // of the first step

    __device__ __forceinline__ void first(SharedFloats tiles) {
        left.first(tiles, terms);
        right.first(tiles + Tile::RIGHT, terms);
        terms = Tile::TERMS;
    }
    __device__ __forceinline__ void operator()(int distance) {
        left(distance);
        right(distance);
    }
};

// A block's operands, at the first of `terms` terms.
template <class Tile, class Left, class Right>
__device__ __forceinline__ Operands<Tile, Left, Right> block_operands(const float* a, const float* b, const GemmShape& shape,
                                                                      int& steps) {
    const Position at = block_position<Tile::TILE_M, Tile::TILE_N>(shape, blockIdx.x);
    const int first_term = at.split * shape.split_terms, terms = min(shape.split_terms, shape.K - first_term);
    steps = ceil_div(terms, Tile::TERMS);
    const int64 a_term = Left::term_stride(shape.a_stride), b_term = Right::term_stride(shape.b_stride);
    const Left left(a + at.batch * shape.a_batch + first_term * a_term, shape.a_stride, at.row, shape.M);
    const Right right(b + at.batch * shape.b_batch + first_term * b_term, shape.b_stride, at.column, shape.N);
    return {left, right, terms - (steps - 1) * Tile::TERMS};
}
