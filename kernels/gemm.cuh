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
__device__ __forceinline__ void store_sums(const Sums<Tile>& sums, float* c, const float* bias, const GemmShape& shape,
                                           int row, int column, bool add, bool relu) {
    constexpr int WIDTH = Tile::WIDTH;
    const bool vectors = is_aligned<WIDTH>(c) && shape.c_stride % WIDTH == 0;
#pragma unroll
    for (int block = 0; block < Tile::BLOCKS; ++block) {
        const int n = column + Tile::column(block);
        float column_bias[WIDTH] = {};
        if (bias && !shape.bias_per_row)
            for (int j = 0; j < WIDTH; ++j) column_bias[j] = n + j < shape.N ? bias[n + j] : 0.0f;
#pragma unroll
        for (int i = 0; i < Tile::ROWS; ++i) {
            const int m = row + Tile::row(i);
            if (m >= shape.M) continue;
            const float row_bias = bias && shape.bias_per_row ? bias[m] : 0.0f;
            float* target = c + m * shape.c_stride + n;
            if (vectors && n + WIDTH <= shape.N) {
                float values[WIDTH] = {};
                if (add) load_values<WIDTH>(target, values);
#pragma unroll
                for (int j = 0; j < WIDTH; ++j)
                    values[j] = finish(Tile::sum(sums, i, block, j) + values[j] + row_bias + column_bias[j], relu);
                store_values<WIDTH>(target, values);
            } else {
#pragma unroll
                for (int j = 0; j < WIDTH; ++j) {
                    if (n + j >= shape.N) continue;
                    const float before = add ? target[j] : 0.0f;
                    target[j] = finish(Tile::sum(sums, i, block, j) + before + row_bias + column_bias[j], relu);
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

template <class Tile, class Left, class Right>
__device__ __forceinline__ void gemm(const float* a, const float* b, float* c, const float* bias,
                                     const GemmShape& shape) {
    SHARED(float, tiles, [2 * Tile::STAGE]);
    int steps;
    auto load = block_operands<Tile, Left, Right>(a, b, shape, steps);
    for (int done = 0; done == 0 || done < steps; done += Tile::CHUNK_STEPS) {
        Sums<Tile> sums = {};
        multiply_steps<Tile>(load, min(Tile::CHUNK_STEPS, steps - done), shared_floats(tiles), sums);
        const bool last = done + Tile::CHUNK_STEPS >= steps;
        // Computed anew: in the loop above every register counts.
        const Position to = block_position<Tile::TILE_M, Tile::TILE_N>(shape, opaque(blockIdx.x));
        float* target = c + to.batch * shape.c_batch + to.split * shape.c_split;
        store_sums<Tile>(sums, target, last ? bias : nullptr, shape, to.row + thread_row<Tile>(),
                         to.column + thread_column<Tile>(), done > 0, last && shape.relu);
    }
}
