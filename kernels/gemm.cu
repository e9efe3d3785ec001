// c[n] = a[n] · b[n] for n < B: a (B,M,K), b (B,K,N), c (B,M,N), float32, row-major or transposed by strides; then bias
// and ReLU. c is overwritten.
//
// Layouts: in a, the terms (k) are contiguous ("n") or the rows are ("t"); in b, the columns ("n") or the terms ("t");
// not both "t". c's columns are contiguous. The other axis and the batch have any stride, also 0 for a shared matrix.
//
// Accuracy: a chain of CHUNK products is summed in registers and then added to c, so the error of a sum of 1e5 terms
// stays below 2e-6 of its norm. A block with few neighbours takes only a part of the terms, a "split": it writes to its
// own plane of a workspace, and gemm_add_splits adds the planes in their order. So the bits never depend on timing.
//
// Tiles, floats of c a block: 128x128 (8 × 8 a thread), 64x64 (8 × 4), 32x32 (4 × 4); two stages of shared memory, the
// next tiles arriving while these are multiplied, one barrier a step.
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

template <class Tile, class Left, class Right>
__device__ __forceinline__ void gemm(const float* a, const float* b, float* c, const float* bias,
                                     const GemmShape& shape) {
    SHARED(float, tiles, [2 * Tile::STAGE]);
    const Position at = block_position<Tile::TILE_M, Tile::TILE_N>(shape, blockIdx.x);
    const int first_term = at.split * shape.split_terms, terms = min(shape.split_terms, shape.K - first_term);
    const int steps = ceil_div(terms, Tile::TERMS);
    const int64 a_term = Left::term_stride(shape.a_stride), b_term = Right::term_stride(shape.b_stride);
    const Left left(a + at.batch * shape.a_batch + first_term * a_term, shape.a_stride, at.row, shape.M);
    const Right right(b + at.batch * shape.b_batch + first_term * b_term, shape.b_stride, at.column, shape.N);
    Operands<Tile, Left, Right> load{left, right, terms - (steps - 1) * Tile::TERMS};

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

#define GEMM(layout, Left, Right, M, N, terms, groups_m, groups_n, threads, blocks)                                \
    KERNEL(threads, blocks) gemm_##layout##_##M##x##N(const float* a, const float* b, float* c, const float* bias, \
                                                      GemmShape shape) {                                           \
        gemm<Tiling<M, N, terms, groups_m, groups_n>, Left<M, terms, threads>, Right<N, terms, threads>>(          \
            a, b, c, bias, shape);                                                                                 \
    }

GEMM(nn, TermsContiguous, RowQuads, 128, 128, 16, 2, 2, 256, 2)
GEMM(nt, TermsContiguous, TermsContiguous, 128, 128, 16, 2, 2, 256, 2)
GEMM(tn, RowQuads, RowQuads, 128, 128, 16, 2, 2, 256, 2)
GEMM(nn, TermsContiguous, RowQuads, 64, 64, 16, 2, 1, 128, 4)
GEMM(nt, TermsContiguous, TermsContiguous, 64, 64, 16, 2, 1, 128, 4)
GEMM(tn, RowQuads, RowQuads, 64, 64, 16, 2, 1, 128, 4)
GEMM(nn, TermsContiguous, RowQuads, 32, 32, 16, 1, 1, 64, 12)
GEMM(nt, TermsContiguous, TermsContiguous, 32, 32, 16, 1, 1, 64, 12)
GEMM(tn, RowQuads, RowQuads, 32, 32, 16, 1, 1, 64, 12)
// Where rows do not begin at 16 bytes.
GEMM(nn_words, TermsContiguous, RowWords, 128, 128, 16, 2, 2, 256, 2)
GEMM(tn_words, RowWords, RowWords, 128, 128, 16, 2, 2, 256, 2)
GEMM(nn_words, TermsContiguous, RowWords, 64, 64, 16, 2, 1, 128, 4)
GEMM(tn_words, RowWords, RowWords, 64, 64, 16, 2, 1, 128, 4)
GEMM(nn_words, TermsContiguous, RowWords, 32, 32, 16, 1, 1, 64, 12)
GEMM(tn_words, RowWords, RowWords, 32, 32, 16, 1, 1, 64, 12)

// c = Σ planes of the workspace (splits,B,M,N), in their order, plus bias, ReLU; `count` = B·M·N. c is overwritten.
KERNEL(256, 4) gemm_add_splits(const float* workspace, float* c, const float* bias, GemmShape shape, int count) {
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) {
        const unsigned line = i / shape.N, column = i % shape.N, row = line % shape.M, batch = line / shape.M;
        float sum = 0.0f;
#pragma unroll 4
        for (int split = 0; split < shape.splits; ++split) sum += workspace[split * static_cast<int64>(count) + i];
        if (bias) sum += bias[shape.bias_per_row ? row : column];
        c[batch * shape.c_batch + row * shape.c_stride + column] = finish(sum, shape.relu);
    }
}
