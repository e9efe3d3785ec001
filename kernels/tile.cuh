// Pieces of register-tiled products Σ_k left[k][row] · right[k][column]: gemm.cu and the implicit-GEMM convolutions.
//
// A block keeps both operands in shared memory with k outermost, each k a row of EXTENT + 4 floats. A warp's lanes
// stand 4 × 8; a lane owns 4 rows and 4 columns in each of GROUPS_M × GROUPS_N groups, 16 rows and 32 columns apart, so
// that it reads its values as float4 and stores its results as float4, 128 bytes of a row a warp.
// - Lane map: the row group is bits 0 and 4 of the lane, the column group bits 1 to 3. Lanes n and n^1, or n and n^2,
//   then read the same address, and every LDS.128 takes 2 passes instead of 4.
// - Padding by 4: eight k × four rows written word by word, (4·k + row) mod 32, fall into 32 different banks.
#pragma once
#include "ptx.cuh"

constexpr int PAD = 4;
constexpr int GROUP_ROWS = 16, GROUP_COLUMNS = 32;  // 4 × 4 and 8 × 4: what one group of a warp's lanes covers

__device__ __forceinline__ int lane_row(int lane) { return ((lane & 1) | (lane >> 3 & 2)) * 4; }
__device__ __forceinline__ int lane_column(int lane) { return (lane >> 1 & 7) * 4; }

// This thread's first row and column in a block's tile of TILE_N columns; warps stand side by side along the columns.
template <int TILE_N, int GROUPS_M, int GROUPS_N>
__device__ __forceinline__ int thread_row() {
    const int warp = threadIdx.x / WARP_SIZE;
    return warp / (TILE_N / (GROUP_COLUMNS * GROUPS_N)) * GROUP_ROWS * GROUPS_M + lane_row(threadIdx.x % WARP_SIZE);
}
template <int TILE_N, int GROUPS_M, int GROUPS_N>
__device__ __forceinline__ int thread_column() {
    const int warp = threadIdx.x / WARP_SIZE;
    const int lane = threadIdx.x % WARP_SIZE;
    return warp % (TILE_N / (GROUP_COLUMNS * GROUPS_N)) * GROUP_COLUMNS * GROUPS_N + lane_column(lane);
}

// sums[i][j] += Σ_k left[k][i] · right[k][j] over TERMS; both pointers at this thread's first row and column.
template <int TERMS, int TILE_M, int TILE_N, int GROUPS_M, int GROUPS_N>
__device__ __forceinline__ void multiply_tiles(const float* left, const float* right,
                                               float (&sums)[4 * GROUPS_M][4 * GROUPS_N]) {
#pragma unroll
    for (int k = 0; k < TERMS; ++k) {
        float rows[4 * GROUPS_M], columns[4 * GROUPS_N];
#pragma unroll
        for (int g = 0; g < GROUPS_M; ++g) unpack(load4(left + k * (TILE_M + PAD) + g * GROUP_ROWS), rows + 4 * g);
#pragma unroll
        for (int g = 0; g < GROUPS_N; ++g)
            unpack(load4(right + k * (TILE_N + PAD) + g * GROUP_COLUMNS), columns + 4 * g);
#pragma unroll
        for (int i = 0; i < 4 * GROUPS_M; ++i) {
#pragma unroll
            for (int j = 0; j < 4 * GROUPS_N; ++j) sums[i][j] = multiply_add(rows[i], columns[j], sums[i][j]);
        }
    }
}

// Where a tile of EXTENT rows keeps its values in shared memory.
template <int EXTENT>
struct Padded {
    static constexpr int PITCH = EXTENT + PAD, SWAP = 0;  // SWAP: a bit of terms that changes places of rows
    static __device__ __forceinline__ int at(int term, int row) { return term * PITCH + row; }
};

// Copies tiles of a matrix whose terms are contiguous, EXTENT rows × TERMS terms each, to shared [term][row], tile
// after tile along the terms. Eight lanes read a sector of 32 bytes, so the copy is made of words and needs no
// alignment. Rows past the matrix repeat its last one; terms past it are zeros.
template <int EXTENT, int TERMS, int THREADS, class Layout = Padded<EXTENT>>
struct TermsContiguous {
    static constexpr int LANES = 8, ROWS = THREADS / LANES, PASSES = EXTENT / ROWS;
    static_assert(EXTENT % ROWS == 0 && TERMS % LANES == 0, "whole passes");
    const float* source;
    int64 stride;
    int term, row, steps;

    __device__ __forceinline__ TermsContiguous(const float* matrix, int64 row_stride, int first_row, int rows,
                                               int first_term) {
        stride = row_stride;
        term = threadIdx.x % LANES;
        row = threadIdx.x / LANES;
        source = matrix + min(first_row + row, rows - 1) * stride + first_term + term;
        steps = (rows - 1 - first_row - row) / ROWS;
    }

    // The next tile, of which `left` terms exist.
    __device__ __forceinline__ void copy(float* tile, int left) {
        float* target = tile + Layout::at(term, row);  // LANES terms and ROWS rows on is the same place of the layout
        const float* from = source;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
#pragma unroll
            for (int k = 0; k < TERMS; k += LANES)
                copy_async4(target + k * Layout::PITCH + pass * ROWS, from + k, term + k < left);
            if (pass < steps) from += ROWS * stride;
        }
        source += TERMS;
    }
};

// The same of a matrix whose rows' values are contiguous for each term, `stride` floats from term to term: by 16 bytes
// where base, stride and the number of rows allow it, else by words. Rows and terms past the matrix are zeros.
template <int EXTENT, int TERMS, int THREADS, class Layout = Padded<EXTENT>>
struct RowsContiguous {
    static constexpr int QUAD_STEP = THREADS * 4 / EXTENT, WORD_STEP = THREADS / EXTENT;  // terms copied at a time
    static_assert(WORD_STEP > 0 && TERMS % QUAD_STEP == 0, "whole passes");
    const float* source;
    int64 stride;
    int term, row;
    bool vectors, exists;

    __device__ __forceinline__ RowsContiguous(const float* matrix, int64 term_stride, int first_row, int rows,
                                              int first_term) {
        stride = term_stride;
        vectors = is_aligned16(matrix) && stride % 4 == 0 && rows % 4 == 0;
        const int width = vectors ? 4 : 1;
        term = threadIdx.x * width / EXTENT;
        row = threadIdx.x * width % EXTENT;
        exists = first_row + row < rows;
        source = matrix + (first_term + term) * stride + first_row + row;
    }

    __device__ __forceinline__ void copy(float* tile, int left) {
        static_assert(QUAD_STEP % 8 == 0 || Layout::SWAP == 0, "copies of 16 bytes keep their place in the layout");
        static_assert(WORD_STEP <= 4, "term + k has the bit SWAP where k has it");
        float* const target = tile + Layout::at(term, row);
        if (vectors) {
#pragma unroll
            for (int k = 0; k < TERMS; k += QUAD_STEP)
                copy_async16(target + k * Layout::PITCH, source + k * stride, exists && term + k < left ? 16 : 0);
        } else {
#pragma unroll
            for (int k = 0; k < TERMS; k += WORD_STEP)
                copy_async4(tile + Layout::at(term, row ^ (k & Layout::SWAP)) + k * Layout::PITCH, source + k * stride,
                            exists && term + k < left);
        }
        source += TERMS * stride;
    }
};
