// c[n] = a[n] · b[n] for n < B, as gemm.cu, in sums of two levels: after every FLUSH terms the sums of a block go to
// shared memory. A sum of 4096 terms then has the rounding error of chains of 64, which Winograd's transforms, that
// magnify errors, need. c is overwritten, or added to with `add`.
//
// Layouts: "tn" has a (K,M) and b (K,N), rows and columns contiguous, with a_stride and b_stride multiples of 4 and all
// matrices aligned to 16 bytes; "nt" has a (M,K) and b (N,K), terms contiguous, K and
// split_terms multiples of 16.
// A split of the terms has its own plane of c, c_split floats further on; one that has no terms is zero.
//
// Dynamic shared memory: TILE_M × TILE_N floats, where there are more than FLUSH terms. A thread's sums stand there as
// float4 of its own, side by side for all threads, so that they take no barrier and no more passes than their bytes.
#include "gemm.cuh"

constexpr int FLUSH = 64;  // terms summed in registers

// RowsContiguous of tile.cuh for rows that are `stride` floats long, a multiple of 4, and aligned: of those past the
// last row of the product, what stands there is read.
template <int EXTENT, int TERMS, int THREADS>
struct RowsAligned {
    static constexpr int STEP = THREADS * 4 / EXTENT;  // terms copied at a time
    static_assert(TERMS % STEP == 0, "whole passes");
    const float* source;
    int64 stride;
    int term, row;
    bool exists;

    __device__ __forceinline__ RowsAligned(const float* matrix, int64 term_stride, int first_row, int, int first_term) {
        stride = term_stride;
        term = threadIdx.x * 4 / EXTENT;
        row = threadIdx.x * 4 % EXTENT;
        exists = first_row + row < stride;
        source = matrix + (first_term + term) * stride + first_row + row;
    }

    __device__ __forceinline__ void copy(float* tile, int left) {
#pragma unroll
        for (int k = 0; k < TERMS; k += STEP)
            copy_async16(tile + (term + k) * (EXTENT + PAD) + row, source + k * stride,
                         exists && term + k < left ? 16 : 0);
        source += TERMS * stride;
    }
};

// TermsContiguous of tile.cuh for terms in whole steps.
template <int EXTENT, int TERMS, int THREADS>
struct TermsAligned {
    static constexpr int LANES = 8, ROWS = THREADS / LANES, PASSES = EXTENT / ROWS;
    static_assert(EXTENT % ROWS == 0 && TERMS % LANES == 0, "whole passes");
    const float* source;
    int64 stride;
    int steps;

    __device__ __forceinline__ TermsAligned(const float* matrix, int64 row_stride, int first_row, int rows,
                                            int first_term) {
        const int row = first_row + threadIdx.x / LANES;
        stride = row_stride;
        source = matrix + min(row, rows - 1) * stride + first_term + threadIdx.x % LANES;
        steps = (rows - 1 - row) / ROWS;
    }

    __device__ __forceinline__ void copy(float* tile, int) {
        float* target = tile + threadIdx.x % LANES * (EXTENT + PAD) + threadIdx.x / LANES;
        const float* from = source;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
#pragma unroll
            for (int k = 0; k < TERMS; k += LANES)
                copy_async4(target + k * (EXTENT + PAD) + pass * ROWS, from + k, true);
            if (pass < steps) from += ROWS * stride;
        }
        source += TERMS;
    }
};

// sums += flushed
template <int THREADS, int ROWS, int COLUMNS>
__device__ __forceinline__ void add_flushed(float (&sums)[ROWS][COLUMNS], const float* flushed) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j += 4) {
            float before[4];
            unpack(load4(flushed + ((i * COLUMNS + j) / 4 * THREADS + threadIdx.x) * 4), before);
#pragma unroll
            for (int k = 0; k < 4; ++k) sums[i][j + k] = before[k] + sums[i][j + k];
        }
    }
}

// flushed += sums (= with `first`), then sums = 0.
template <int THREADS, int ROWS, int COLUMNS>
__device__ __forceinline__ void flush(float (&sums)[ROWS][COLUMNS], float* flushed, bool first) {
    if (!first) add_flushed<THREADS>(sums, flushed);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j += 4) {
            store4(flushed + ((i * COLUMNS + j) / 4 * THREADS + threadIdx.x) * 4,
                   make_float4(sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]));
            sums[i][j] = sums[i][j + 1] = sums[i][j + 2] = sums[i][j + 3] = 0.0f;
        }
    }
}

template <int TILE_M, int TILE_N, int TERMS, int GROUPS_M, int GROUPS_N, template <int, int, int> class Left,
          template <int, int, int> class Right>
__device__ __forceinline__ void gemm_flush(const float* a, const float* b, float* c, const GemmShape& shape, bool add) {
    constexpr int THREADS = TILE_M * TILE_N / (16 * GROUPS_M * GROUPS_N);
    static_assert(FLUSH % TERMS == 0, "a flush comes after a whole step");
    SHARED(float, left_tiles, [2][TERMS * (TILE_M + PAD)]);
    SHARED(float, right_tiles, [2][TERMS * (TILE_N + PAD)]);
    DYNAMIC_SHARED(float, flushed);
    const Position at = block_position<TILE_M, TILE_N>(shape, blockIdx.x);
    const int first_term = at.split * shape.split_terms, terms = min(shape.split_terms, shape.K - first_term);
    Left<TILE_M, TERMS, THREADS> left(a + at.batch * shape.a_batch, shape.a_stride, at.row, shape.M, first_term);
    Right<TILE_N, TERMS, THREADS> right(b + at.batch * shape.b_batch, shape.b_stride, at.column, shape.N, first_term);
    const int row = thread_row<TILE_N, GROUPS_M, GROUPS_N>(), column = thread_column<TILE_N, GROUPS_M, GROUPS_N>();

    float sums[4 * GROUPS_M][4 * GROUPS_N] = {};
    if (terms > 0) {
        left.copy(left_tiles[0], terms);
        right.copy(right_tiles[0], terms);
        copy_async_commit();
    }
    for (int k = 0, stage = 0; k < terms; k += TERMS, stage ^= 1) {
        copy_async_wait<0>();
        __syncthreads();  // this stage has arrived, and the other is no longer read
        if (k > 0 && k % FLUSH == 0) flush<THREADS>(sums, flushed, k == FLUSH);
        if (k + TERMS < terms) {
            left.copy(left_tiles[stage ^ 1], terms - k - TERMS);
            right.copy(right_tiles[stage ^ 1], terms - k - TERMS);
            copy_async_commit();
        }
        multiply_tiles<TERMS, TILE_M, TILE_N, GROUPS_M, GROUPS_N>(left_tiles[stage] + row, right_tiles[stage] + column,
                                                                  sums);
    }
    if (terms > FLUSH) add_flushed<THREADS>(sums, flushed);
    // Computed anew: in the loop above every register counts.
    const Position to = block_position<TILE_M, TILE_N>(shape, opaque(blockIdx.x));
    float* target = c + to.batch * shape.c_batch + to.split * shape.c_split;
    store_sums<GROUPS_M, GROUPS_N>(sums, target, nullptr, shape, to.row + row, to.column + column, add, false);
}

#define GEMM_FLUSH(layout, Operand, M, N, terms, groups_m, groups_n, threads, blocks)                                  \
    KERNEL(threads, blocks) gemm_##layout##_flush_##M##x##N(const float* a, const float* b, float* c, GemmShape shape, \
                                                            int add) {                                                 \
        gemm_flush<M, N, terms, groups_m, groups_n, Operand, Operand>(a, b, c, shape, add);                            \
    }

GEMM_FLUSH(tn, RowsAligned, 128, 128, 16, 2, 2, 256, 2)
GEMM_FLUSH(nt, TermsAligned, 128, 128, 16, 2, 2, 256, 2)
GEMM_FLUSH(tn, RowsAligned, 64, 64, 16, 2, 1, 128, 4)
GEMM_FLUSH(nt, TermsAligned, 64, 64, 16, 2, 1, 128, 4)
