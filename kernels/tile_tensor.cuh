// Products of tiles on tensor cores: what tile.cuh is for the float32 units, from the same stages of shared memory.
//
// A warp owns WARP_M × WARP_N of a block's tile as 16 × 8 products of mma.sync (ptx_mma.cuh). Operands stay float32 in
// shared memory, k outermost; fragments are read word by word and brought to tf32 in registers:
// - Tf32: each value rounded to the nearest tf32, one product; sums stay in the tensor core.
// - Float32Tensor: each value is split, x = high + low + what 2^-22 leaves, both tf32; low·high, high·low and high·high
//   are summed over one step in the tensor core, which cuts sums off, and then added to float32 sums outside it, which
//   rounds to nearest (Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022). An infinity
//   becomes NaN, and so does what rounds to one, from 3.4e38 on.
//
// Rows in shared memory have 8 floats more, and in every other four terms the groups of four rows change places: a
// fragment's 4 terms × 8 rows, and the 8 terms × 4 rows that are written at a time, fall into 32 different banks, and four
// rows stay together for copies of 16 bytes.
#pragma once
#include "ptx_mma.cuh"
#include "tile.cuh"

// Tiles of M × N, 16 terms a step, by warps of WARP_M × WARP_N.
template <class Arithmetic_, int M, int N, int WARP_M_, int WARP_N_>
struct TensorTiling {
    using Arithmetic = Arithmetic_;
    static constexpr int TILE_M = M, TILE_N = N, TERMS = 16, WARP_M = WARP_M_, WARP_N = WARP_N_;
    static constexpr int THREADS = M / WARP_M * (N / WARP_N) * WARP_SIZE;
    static constexpr int GAP = 8, SWAP = 4, PITCH_M = M + GAP, PITCH_N = N + GAP;
    static constexpr int RIGHT = TERMS * PITCH_M, STAGE = TERMS * (PITCH_M + PITCH_N);
    static constexpr int CHUNK_STEPS = CHUNK / TERMS;
    static constexpr int ROW_TILES = WARP_M / 16, COLUMN_TILES = WARP_N / 8;
    static constexpr int ROWS = 2 * ROW_TILES, BLOCKS = COLUMN_TILES, WIDTH = 2;
    struct Sums {
        float values[ROW_TILES][COLUMN_TILES][4];
    };
    static __device__ __forceinline__ int warp_row() { return opaque(threadIdx.x) / WARP_SIZE / (N / WARP_N) * WARP_M; }
    static __device__ __forceinline__ int warp_column() { return opaque(threadIdx.x) / WARP_SIZE % (N / WARP_N) * WARP_N; }
    static __device__ __forceinline__ int thread_row() { return warp_row() + threadIdx.x % WARP_SIZE / 4; }
    static __device__ __forceinline__ int thread_column() { return warp_column() + threadIdx.x % 4 * 2; }
    static __device__ __forceinline__ int row(int i) { return i * 8; }
    static __device__ __forceinline__ int column(int block) { return block * 8; }
    static __device__ __forceinline__ float sum(const Sums& sums, int i, int block, int j) {
        return sums.values[i / 2][block][i % 2 * 2 + j];
    }
};

// Where a lane's values of one operand stand: of terms t, and of terms t + 4. All its others are whole eights of terms and
// of rows further on, at constant distances.
template <int PITCH>
struct LanePlaces {
    SharedFloats lower, upper;
    __device__ __forceinline__ LanePlaces(SharedFloats tile, int first) {
        const int lane = threadIdx.x % WARP_SIZE, term = lane % 4, row = first + lane / 4;
        lower = opaque(tile + (term * PITCH + row));
        upper = opaque(tile + ((term + 4) * PITCH + (row ^ 4)));
    }
    __device__ __forceinline__ void move(int distance) {
        lower += distance;
        upper += distance;
    }
    // `half`: the first or second four of the eight terms from k on.
    __device__ __forceinline__ float load(int k, int half, int row) const {
        return load1((half ? upper : lower) + (k * PITCH + row));
    }
};

struct Tf32 {
    template <class Tile>
    static __device__ __forceinline__ void multiply(const LanePlaces<Tile::PITCH_M>& left,
                                                    const LanePlaces<Tile::PITCH_N>& right, typename Tile::Sums& sums) {
#pragma unroll
        for (int k = 0; k < Tile::TERMS; k += 8) {
            uint32_t b[Tile::COLUMN_TILES][2];
#pragma unroll
            for (int n = 0; n < Tile::COLUMN_TILES; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) b[n][i] = round_tf32(right.load(k, i, n * 8));
            }
#pragma unroll
            for (int m = 0; m < Tile::ROW_TILES; ++m) {
                uint32_t a[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) a[i] = round_tf32(left.load(k, i / 2, m * 16 + i % 2 * 8));
#pragma unroll
                for (int n = 0; n < Tile::COLUMN_TILES; ++n) mma_tf32(sums.values[m][n], a, b[n]);
            }
        }
    }
};

struct Float32Tensor {
    static __device__ __forceinline__ void split(float value, uint32_t& high, uint32_t& low) {
        high = round_tf32(value);
        low = round_tf32(value - __uint_as_float(high));
    }

    template <class Tile>
    static __device__ __forceinline__ void multiply(const LanePlaces<Tile::PITCH_M>& left,
                                                    const LanePlaces<Tile::PITCH_N>& right, typename Tile::Sums& sums) {
        typename Tile::Sums products = {};
#pragma unroll
        for (int k = 0; k < Tile::TERMS; k += 8) {
            uint32_t b_high[Tile::COLUMN_TILES][2], b_low[Tile::COLUMN_TILES][2];
#pragma unroll
            for (int n = 0; n < Tile::COLUMN_TILES; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) split(right.load(k, i, n * 8), b_high[n][i], b_low[n][i]);
            }
#pragma unroll
            for (int m = 0; m < Tile::ROW_TILES; ++m) {
                uint32_t high[4], low[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) split(left.load(k, i / 2, m * 16 + i % 2 * 8), high[i], low[i]);
#pragma unroll
                for (int n = 0; n < Tile::COLUMN_TILES; ++n) {
                    mma_tf32(products.values[m][n], low, b_high[n]);
                    mma_tf32(products.values[m][n], high, b_low[n]);
                    mma_tf32(products.values[m][n], high, b_high[n]);
                }
            }
        }
#pragma unroll
        for (int m = 0; m < Tile::ROW_TILES; ++m) {
#pragma unroll
            for (int n = 0; n < Tile::COLUMN_TILES; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) sums.values[m][n][i] += products.values[m][n][i];
            }
        }
    }
};

template <class Arithmetic, int M, int N, int WARP_M, int WARP_N>
struct Reader<TensorTiling<Arithmetic, M, N, WARP_M, WARP_N>> {
    using Tile = TensorTiling<Arithmetic, M, N, WARP_M, WARP_N>;
    LanePlaces<Tile::PITCH_M> left;
    LanePlaces<Tile::PITCH_N> right;
    __device__ __forceinline__ explicit Reader(SharedFloats tiles)
        : left(tiles, Tile::warp_row()), right(tiles + Tile::RIGHT, Tile::warp_column()) {}
    __device__ __forceinline__ void multiply(typename Tile::Sums& sums) const {
        Arithmetic::template multiply<Tile>(left, right, sums);
    }
    __device__ __forceinline__ void move(int distance) {
        left.move(distance);
        right.move(distance);
    }
};
