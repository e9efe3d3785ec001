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
#include "gemm.cuh"
#include "tile.cuh"

constexpr int CHUNK = 1024;     // terms summed in one go

// Writes a thread's sums to c, added to what stands there if `add`; `bias` is null but for the last chunk.
template <int GROUPS_M, int GROUPS_N>
__device__ __forceinline__ void store_sums(float (&sums)[4 * GROUPS_M][4 * GROUPS_N], float* c, const float* bias,
                                           const GemmShape& shape, int row, int column, bool add, bool relu) {
    const bool vectors = is_aligned16(c) && shape.c_stride % 4 == 0;
#pragma unroll
    for (int g = 0; g < GROUPS_N; ++g, column += GROUP_COLUMNS) {
        float column_bias[4] = {};
        if (bias && !shape.bias_per_row)
            for (int j = 0; j < 4; ++j) column_bias[j] = column + j < shape.N ? bias[column + j] : 0.0f;
#pragma unroll
        for (int i = 0; i < 4 * GROUPS_M; ++i) {
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

template <int TILE_M, int TILE_N, int TERMS, int GROUPS_M, int GROUPS_N, template <int, int, int> class Left,
          template <int, int, int> class Right>
__device__ __forceinline__ void gemm(const float* a, const float* b, float* c, const float* bias,
                                     const GemmShape& shape) {
    constexpr int THREADS = TILE_M * TILE_N / (16 * GROUPS_M * GROUPS_N);
    static_assert(CHUNK % (2 * TERMS) == 0, "a chunk ends in the second stage, so the next may begin in the first");
    SHARED(float, left_tiles, [2][TERMS * (TILE_M + PAD)]);
    SHARED(float, right_tiles, [2][TERMS * (TILE_N + PAD)]);
    const Position at = block_position<TILE_M, TILE_N>(shape, blockIdx.x);
    const int first_term = at.split * shape.split_terms, terms = min(shape.split_terms, shape.K - first_term);
    Left<TILE_M, TERMS, THREADS> left(a + at.batch * shape.a_batch, shape.a_stride, at.row, shape.M, first_term);
    Right<TILE_N, TERMS, THREADS> right(b + at.batch * shape.b_batch, shape.b_stride, at.column, shape.N, first_term);
    const int row = thread_row<TILE_N, GROUPS_M, GROUPS_N>(), column = thread_column<TILE_N, GROUPS_M, GROUPS_N>();

    for (int done = 0; done == 0 || done < terms; done += CHUNK) {
        float sums[4 * GROUPS_M][4 * GROUPS_N] = {};
        const int chunk = min(CHUNK, terms - done);
        left.copy(left_tiles[0], chunk);
        right.copy(right_tiles[0], chunk);
        copy_async_commit();
        for (int k = 0, stage = 0; k < chunk; k += TERMS, stage ^= 1) {
            copy_async_wait<0>();
            __syncthreads();  // this stage has arrived, and the other is no longer read
            if (k + TERMS < chunk) {
                left.copy(left_tiles[stage ^ 1], chunk - k - TERMS);
                right.copy(right_tiles[stage ^ 1], chunk - k - TERMS);
                copy_async_commit();
            }
            multiply_tiles<TERMS, TILE_M, TILE_N, GROUPS_M, GROUPS_N>(left_tiles[stage] + row,
                                                                      right_tiles[stage] + column, sums);
        }
        const bool last = done + CHUNK >= terms;
        // Computed anew: in the loop above every register counts.
        const Position to = block_position<TILE_M, TILE_N>(shape, opaque(blockIdx.x));
        float* target = c + to.batch * shape.c_batch + to.split * shape.c_split;
        store_sums<GROUPS_M, GROUPS_N>(sums, target, last ? bias : nullptr, shape, to.row + row, to.column + column,
                                       done > 0, last && shape.relu);
    }
}

#define GEMM(layout, Left, Right, M, N, terms, groups_m, groups_n, threads, blocks)                             \
    KERNEL(threads, blocks) gemm_##layout##_##M##x##N(const float* a, const float* b, float* c, const float* bias, \
                                                      GemmShape shape) {                                         \
        gemm<M, N, terms, groups_m, groups_n, Left, Right>(a, b, c, bias, shape);                                \
    }

GEMM(nn, TermsContiguous, RowsContiguous, 128, 128, 16, 2, 2, 256, 2)
GEMM(nt, TermsContiguous, TermsContiguous, 128, 128, 16, 2, 2, 256, 2)
GEMM(tn, RowsContiguous, RowsContiguous, 128, 128, 16, 2, 2, 256, 2)
GEMM(nn, TermsContiguous, RowsContiguous, 64, 64, 16, 2, 1, 128, 4)
GEMM(nt, TermsContiguous, TermsContiguous, 64, 64, 16, 2, 1, 128, 4)
GEMM(tn, RowsContiguous, RowsContiguous, 64, 64, 16, 2, 1, 128, 4)
GEMM(nn, TermsContiguous, RowsContiguous, 32, 32, 16, 1, 1, 64, 12)
GEMM(nt, TermsContiguous, TermsContiguous, 32, 32, 16, 1, 1, 64, 12)
GEMM(tn, RowsContiguous, RowsContiguous, 32, 32, 16, 1, 1, 64, 12)

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
