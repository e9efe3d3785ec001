// c[n] = a[n] · b[n] for n < B, as gemm.cu, in sums of two levels: after every FLUSH terms the sums of a block go to
// shared memory. A sum of 4096 terms then has the rounding error of chains of 64, which Winograd's transforms, that magnify
// errors, need. c is overwritten, or added to with `add`.
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

// sums += flushed
template <int THREADS, int ROWS, int COLUMNS>
__device__ __forceinline__ void add_flushed(float (&sums)[ROWS][COLUMNS], SharedFloats flushed) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j += 4) {
            float before[4];
            unpack(load4(flushed + (i * COLUMNS + j) * THREADS), before);
#pragma unroll
            for (int k = 0; k < 4; ++k) sums[i][j + k] = before[k] + sums[i][j + k];
        }
    }
}

// flushed += sums, then sums = 0.
template <int THREADS, int ROWS, int COLUMNS>
__device__ __forceinline__ void flush(float (&sums)[ROWS][COLUMNS], SharedFloats flushed, bool add) {
    if (add) add_flushed<THREADS>(sums, flushed);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j += 4) {
            store4(flushed + (i * COLUMNS + j) * THREADS,
                   make_float4(sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]));
            sums[i][j] = sums[i][j + 1] = sums[i][j + 2] = sums[i][j + 3] = 0.0f;
        }
    }
}

template <class Tile, class Left, class Right>
__device__ __forceinline__ void gemm_flush(const float* a, const float* b, float* c, const GemmShape& shape, bool add) {
    constexpr int FLUSH_STEPS = FLUSH / Tile::TERMS;
    static_assert(FLUSH % Tile::TERMS == 0, "a flush comes after a whole step");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    if constexpr (4 * (2 * Tile::STAGE + Tile::TILE_M * Tile::TILE_N) > 64 << 10) return;  // all that a block has
#endif
    SHARED(float, tiles, [2 * Tile::STAGE]);
    DYNAMIC_SHARED(float, memory);
    const SharedFloats flushed = opaque(shared_floats(memory) + threadIdx.x * 4);
    int steps;
    auto load = block_operands<Tile, Left, Right>(a, b, shape, steps);
    Sums<Tile> sums = {};
    if (steps > FLUSH_STEPS) flush<Tile::THREADS>(sums, flushed, false);
    multiply_steps<Tile>(load, steps, shared_floats(tiles), sums, [&](int left) {
        if (left % FLUSH_STEPS == 0 && left > 0) flush<Tile::THREADS>(sums, flushed, true);
    });
    // Computed anew: in the loop above every register counts.
    const Position to = block_position<Tile::TILE_M, Tile::TILE_N>(shape, opaque(blockIdx.x));
    if (min(shape.split_terms, shape.K - to.split * shape.split_terms) > FLUSH) add_flushed<Tile::THREADS>(sums, flushed);
    float* target = c + to.batch * shape.c_batch + to.split * shape.c_split;
    store_sums<Tile>(sums, target, nullptr, shape, to.row + thread_row<Tile>(), to.column + thread_column<Tile>(), add,
                     false);
}

#define GEMM_FLUSH(layout, Operand, M, N, terms, groups_m, groups_n, threads, blocks)                                  \
    KERNEL(threads, blocks) gemm_##layout##_flush_##M##x##N(const float* a, const float* b, float* c, GemmShape shape, \
                                                            int add) {                                                 \
        using Tile = Tiling<M, N, terms, groups_m, groups_n>;                                                          \
        gemm_flush<Tile, Operand<M, Tile>, Operand<N, Tile>>(a, b, c, shape, add);                                     \
    }

GEMM_FLUSH(tn, RowQuads, 128, 128, 16, 2, 2, 256, 2)
GEMM_FLUSH(nt, TermsContiguous, 128, 128, 16, 2, 2, 256, 2)
GEMM_FLUSH(tn, RowQuads, 64, 64, 16, 2, 1, 128, 4)
GEMM_FLUSH(nt, TermsContiguous, 64, 64, 16, 2, 1, 128, 4)
