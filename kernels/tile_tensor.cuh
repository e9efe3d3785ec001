// Products of tiles on tensor cores: what tile.cuh is for the float32 units, from the same shared memory.
//
// A warp owns WARP_M × WARP_N of a block's tile as 16 × 8 products of mma.sync (ptx_mma.cuh). Operands stay float32 in
// shared memory, k outermost; fragments are read word by word and brought to tf32 in registers:
// - Tf32: each value rounded to the nearest tf32, one product; sums stay in the tensor core.
// - Float32Tensor: each value is split, x = high + low + what 2^-22 leaves, both tf32; low·high, high·low and high·high
//   are summed over one tile of terms in the tensor core, which cuts sums off, and then added to float32 sums outside it,
//   which rounds to nearest (Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022).
//   An infinity becomes NaN, and so does what rounds to one, from 3.4e38 on.
#pragma once
#include "ptx_mma.cuh"
#include "tile.cuh"

// Rows of EXTENT + 8 values, and in every other four terms the groups of four rows swapped: a fragment's 4 terms × 8
// rows, and the 8 terms × 4 rows that TermsContiguous writes at a time, fall into 32 different banks; four rows stay
// together for copies of 16 bytes.
template <int EXTENT>
struct Swizzled {
    static constexpr int PITCH = EXTENT + 8, SWAP = 4;
    static __device__ __forceinline__ int at(int term, int row) { return term * PITCH + (row ^ (term & SWAP)); }
};

// Where a lane's values of the tile's row or column `first` stand: of terms t, and of terms t + 4. All its others are
// whole terms of eight and rows of eight further on, at constant distances.
template <int EXTENT>
struct LaneOffsets {
    int lower, upper;
    __device__ __forceinline__ explicit LaneOffsets(int first) {
        const int lane = threadIdx.x % WARP_SIZE;
        lower = Swizzled<EXTENT>::at(lane % 4, first + lane / 4);
        upper = Swizzled<EXTENT>::at(lane % 4 + 4, first + lane / 4);
    }
    // Of the k-th eight terms; `half`: the first or second four.
    __device__ __forceinline__ float load(const float* tile, int k, int half, int row) const {
        return tile[(half ? upper : lower) + k * Swizzled<EXTENT>::PITCH + row];
    }
};

template <int WARP_M, int WARP_N>
struct WarpSums {
    static constexpr int ROW_TILES = WARP_M / 16, COLUMN_TILES = WARP_N / 8;
    float values[ROW_TILES][COLUMN_TILES][4] = {};
};

struct Tf32 {
    template <int TERMS, int TILE_M, int TILE_N, int WARP_M, int WARP_N>
    static __device__ __forceinline__ void multiply(const float* left, const float* right,
                                                    const LaneOffsets<TILE_M>& rows, const LaneOffsets<TILE_N>& columns,
                                                    WarpSums<WARP_M, WARP_N>& sums) {
        using Sums = WarpSums<WARP_M, WARP_N>;
#pragma unroll
        for (int k = 0; k < TERMS; k += 8) {
            uint32_t b[Sums::COLUMN_TILES][2];
#pragma unroll
            for (int n = 0; n < Sums::COLUMN_TILES; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) b[n][i] = round_tf32(columns.load(right, k, i, n * 8));
            }
#pragma unroll
            for (int m = 0; m < Sums::ROW_TILES; ++m) {
                uint32_t a[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) a[i] = round_tf32(rows.load(left, k, i / 2, m * 16 + i % 2 * 8));
#pragma unroll
                for (int n = 0; n < Sums::COLUMN_TILES; ++n) mma_tf32(sums.values[m][n], a, b[n]);
            }
        }
    }
};

struct Float32Tensor {
    static __device__ __forceinline__ void split(float value, uint32_t& high, uint32_t& low) {
        high = round_tf32(value);
        low = round_tf32(value - __uint_as_float(high));
    }

    template <int TERMS, int TILE_M, int TILE_N, int WARP_M, int WARP_N>
    static __device__ __forceinline__ void multiply(const float* left, const float* right,
                                                    const LaneOffsets<TILE_M>& rows, const LaneOffsets<TILE_N>& columns,
                                                    WarpSums<WARP_M, WARP_N>& sums) {
        using Sums = WarpSums<WARP_M, WARP_N>;
        Sums products;
#pragma unroll
        for (int k = 0; k < TERMS; k += 8) {
            uint32_t b_high[Sums::COLUMN_TILES][2], b_low[Sums::COLUMN_TILES][2];
#pragma unroll
            for (int n = 0; n < Sums::COLUMN_TILES; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    split(columns.load(right, k, i, n * 8), b_high[n][i], b_low[n][i]);
            }
#pragma unroll
            for (int m = 0; m < Sums::ROW_TILES; ++m) {
                uint32_t high[4], low[4];
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    split(rows.load(left, k, i / 2, m * 16 + i % 2 * 8), high[i], low[i]);
#pragma unroll
                for (int n = 0; n < Sums::COLUMN_TILES; ++n) {
                    mma_tf32(products.values[m][n], low, b_high[n]);
                    mma_tf32(products.values[m][n], high, b_low[n]);
                    mma_tf32(products.values[m][n], high, b_high[n]);
                }
            }
        }
#pragma unroll
        for (int m = 0; m < Sums::ROW_TILES; ++m) {
#pragma unroll
            for (int n = 0; n < Sums::COLUMN_TILES; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) sums.values[m][n][i] += products.values[m][n][i];
            }
        }
    }
};
