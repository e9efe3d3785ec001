// Implicit-GEMM convolutions in bfloat16 and float16, from sm_80: tiles, and the ring that feeds them to tensor cores.
//
// A block computes TILE_M × TILE_N sums, 32 terms a step, from a ring of stages in shared memory: while one is multiplied,
// the copies of the next ones are under way. An operand stands in a stage in one of two forms of the same size:
// - rows: [row][term], 64 bytes a row, whose 16-byte chunk c is at c ^ (row / 2 % 4)
// - terms: [term][row], whose chunk c is at c ^ (term % 8); ldmatrix transposes it
// Either way the eight rows of a matrix of ldmatrix, and what a warp writes at a time, fall into different banks.
//
// Sums stay in float32 in the tensor core, which cuts them off at 2^-24 twice in 16 terms: of positive terms, n lose up to
// n / 8 · 2^-24 of their sum. That is below the rounding of a 16-bit result up to 10^5 terms; longer sums, those of the
// weights' gradient, are added up outside.
#pragma once
#include "ptx.cuh"
#include "ptx_convert.cuh"
#include "ptx_mma.cuh"

constexpr int UNIT = 8;  // 16-bit values of a 16-byte copy

template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma<bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bf16(d, a, b);
}
template <>
__device__ __forceinline__ void mma<float16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_f16(d, a, b);
}

template <int M, int N, int WARP_M_, int WARP_N_, int STAGES_>
struct HalfTiling {
    static constexpr int TILE_M = M, TILE_N = N, TERMS = 32, WARP_M = WARP_M_, WARP_N = WARP_N_, STAGES = STAGES_;
    static constexpr int THREADS = M / WARP_M * (N / WARP_N) * WARP_SIZE;
    static constexpr int RIGHT = M * TERMS, STAGE = (M + N) * TERMS;  // values of 16 bits
    static constexpr int ROW_TILES = WARP_M / 16, COLUMN_TILES = WARP_N / 8;
    static_assert(COLUMN_TILES % 2 == 0 && M % 64 == 0 && N % 64 == 0, "pairs of products, whole swizzles");
    struct Sums {
        float values[ROW_TILES][COLUMN_TILES][4];
    };
    static __device__ __forceinline__ int warp_row() { return threadIdx.x / WARP_SIZE / (N / WARP_N) * WARP_M; }
    static __device__ __forceinline__ int warp_column() { return threadIdx.x / WARP_SIZE % (N / WARP_N) * WARP_N; }
};

// Where chunk number `chunk` stands in an operand of either form.
__device__ __forceinline__ int row_place(int row, int chunk) { return row * 32 + (chunk ^ (row >> 1 & 3)) * UNIT; }
template <int EXTENT>
__device__ __forceinline__ int term_place(int term, int chunk) {
    return term * EXTENT + (chunk ^ (term & 7)) * UNIT;
}

template <class T>
__device__ __forceinline__ void copy_unit(T* shared, const T* source, bool valid) {
    copy_async16(reinterpret_cast<float*>(shared), reinterpret_cast<const float*>(source), valid ? 16 : 0);
}
template <class T>
__device__ __forceinline__ void store_pair(T* address, uint32_t pair) {
    *reinterpret_cast<uint32_t*>(address) = pair;
}
template <class T>
__device__ __forceinline__ void move_unit(T* to, const T* from) {
    store4(reinterpret_cast<float*>(to), load4(reinterpret_cast<const float*>(from)));
}

// sums += left · right over a stage. In a form of rows a further 16 terms are chunk ^ 2; in one of terms a further 16 rows
// are chunk ^ 2, ^ 4 and so on, because a warp's rows start at a multiple of their number.
template <class T, class Tile, bool LEFT_TERMS, bool RIGHT_TERMS>
__device__ __forceinline__ void multiply_stage(const T* stage, typename Tile::Sums& sums) {
    const int lane = threadIdx.x % WARP_SIZE, row = Tile::warp_row(), column = Tile::warp_column();
    const int left = LEFT_TERMS ? term_place<Tile::TILE_M>(lane % 8 + lane / 16 * 8, row / UNIT + lane / 8 % 2)
                                : row_place(row + lane % 16, lane / 16);
    const int right = RIGHT_TERMS ? term_place<Tile::TILE_N>(lane % 16, column / UNIT + lane / 16)
                                  : row_place(column + lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < Tile::TERMS / 16; ++k) {
        uint32_t b[Tile::COLUMN_TILES / 2][4];
#pragma unroll
        for (int n = 0; n < Tile::COLUMN_TILES / 2; ++n) {
            const int place = RIGHT_TERMS ? (right ^ n * 2 * UNIT) + k * 16 * Tile::TILE_N : (right ^ k * 2 * UNIT) + n * 16 * 32;
            load_matrices<4, RIGHT_TERMS>(b[n], stage + Tile::RIGHT + place);
        }
#pragma unroll
        for (int m = 0; m < Tile::ROW_TILES; ++m) {
            uint32_t a[4];
            const int place = LEFT_TERMS ? (left ^ m * 2 * UNIT) + k * 16 * Tile::TILE_M : (left ^ k * 2 * UNIT) + m * 16 * 32;
            load_matrices<4, LEFT_TERMS>(a, stage + place);
#pragma unroll
            for (int n = 0; n < Tile::COLUMN_TILES; ++n) {
                const uint32_t two[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
                mma<T>(sums.values[m][n], a, two);
            }
        }
    }
}

// Adds the products of so many steps. load.fetch(stage) starts the copies of the next step, and load.put(stage) writes what
// came to registers meanwhile. Afterwards no copy is under way, and the ring may be used for something else.
template <class T, class Tile, class Load>
__device__ __forceinline__ void multiply_ring(Load& load, int steps, T* ring, typename Tile::Sums& sums) {
    constexpr int AHEAD = Tile::STAGES - 1;
#pragma unroll 1
    for (int stage = 0; stage < AHEAD; ++stage) {
        if (stage < steps) {
            load.fetch(ring + stage * Tile::STAGE);
            load.put(ring + stage * Tile::STAGE);
        }
        copy_async_commit();  // an empty group counts, too
    }
    int reading = 0, writing = AHEAD * Tile::STAGE;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        copy_async_wait<AHEAD - 1>();
        __syncthreads();  // the stage to read has arrived, and the one to write is no longer read
        const bool more = step + AHEAD < steps;
        if (more) load.fetch(ring + writing);
        copy_async_commit();
        multiply_stage<T, Tile, Load::LEFT_TERMS, Load::RIGHT_TERMS>(ring + reading, sums);
        if (more) load.put(ring + writing);
        reading = reading == AHEAD * Tile::STAGE ? 0 : reading + Tile::STAGE;
        writing = writing == AHEAD * Tile::STAGE ? 0 : writing + Tile::STAGE;
    }
    copy_async_wait<0>();
    __syncthreads();
}
