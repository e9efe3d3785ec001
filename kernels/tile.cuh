// Pieces of register-tiled products Σ_k left[k][row] · right[k][column]: gemm.cu and the implicit-GEMM convolutions.
//
// A block keeps both operands in shared memory with k outermost, each k a row of EXTENT + 4 floats, in two stages: while
// one is multiplied, the next tiles arrive in the other, and one barrier parts the steps. A warp's lanes stand 4 × 8; a
// lane owns 4 rows and 4 columns in each of GROUPS_M × GROUPS_N groups, 16 rows and 32 columns apart, so that it reads
// its values as float4 and stores its results as float4, 128 bytes of a row a warp.
// - Lane map: the row group is bits 0 and 4 of the lane, the column group bits 1 to 3. Lanes n and n^1, or n and n^2,
//   then read the same address, and every LDS.128 takes 2 passes instead of 4.
// - Padding by 4: eight k × four rows written word by word, (4·k + row) mod 32, fall into 32 different banks.
//
// Every instruction of the main loop that is not a multiply-add costs its share of the speed. So a loader's first tile is
// the one that may be incomplete, and those in the loop are copied without asking which terms exist.
//
// Accuracy: a chain of CHUNK products is summed in registers and then added to the output, so the error of a sum of 1e5
// terms stays below 2e-6 of its norm.
#pragma once
#include "ptx.cuh"

constexpr int CHUNK = 1024;  // terms summed in one go
constexpr int PAD = 4;
constexpr int GROUP_ROWS = 16, GROUP_COLUMNS = 32;  // 4 × 4 and 8 × 4: what one group of a warp's lanes covers

__device__ __forceinline__ int lane_row(int lane) { return ((lane & 1) | (lane >> 3 & 2)) * 4; }
__device__ __forceinline__ int lane_column(int lane) { return (lane >> 1 & 7) * 4; }

// Tiles of M × N, K terms at a step, by threads of 4·ROW_GROUPS × 4·COLUMN_GROUPS sums.
template <int M, int N, int K, int ROW_GROUPS, int COLUMN_GROUPS>
struct Tiling {
    static constexpr int TILE_M = M, TILE_N = N, TERMS = K, GROUPS_M = ROW_GROUPS, GROUPS_N = COLUMN_GROUPS;
    static constexpr int THREADS = M * N / (16 * GROUPS_M * GROUPS_N);
    static constexpr int GAP = PAD, SWAP = 0;  // floats between rows; a bit of the term with which groups of rows change places
    static constexpr int PITCH_M = M + GAP, PITCH_N = N + GAP;
    static constexpr int RIGHT = K * PITCH_M, STAGE = K * (PITCH_M + PITCH_N);  // floats of shared memory
    static constexpr int CHUNK_STEPS = CHUNK / K;
    // A thread's sums: ROWS rows of BLOCKS times WIDTH neighbouring columns.
    static constexpr int ROWS = 4 * GROUPS_M, BLOCKS = GROUPS_N, WIDTH = 4;
    using Sums = float[ROWS][WIDTH * BLOCKS];
    // Warps stand side by side along the columns.
    static __device__ __forceinline__ int thread_row() {
        const int warp = threadIdx.x / WARP_SIZE;
        return warp / (N / (GROUP_COLUMNS * GROUPS_N)) * GROUP_ROWS * GROUPS_M + lane_row(threadIdx.x % WARP_SIZE);
    }
    static __device__ __forceinline__ int thread_column() {
        const int warp = threadIdx.x / WARP_SIZE;
        return warp % (N / (GROUP_COLUMNS * GROUPS_N)) * GROUP_COLUMNS * GROUPS_N + lane_column(threadIdx.x % WARP_SIZE);
    }
    static __device__ __forceinline__ int row(int i) { return i / 4 * GROUP_ROWS + i % 4; }
    static __device__ __forceinline__ int column(int block) { return block * GROUP_COLUMNS; }
    static __device__ __forceinline__ float sum(const Sums& sums, int i, int block, int j) { return sums[i][WIDTH * block + j]; }
    static_assert(CHUNK % (2 * K) == 0, "a chunk ends in the second stage, so the next may begin in the first");
};

// A thread's sums of products.
template <class Tile>
using Sums = typename Tile::Sums;

// Where a tile's operands keep a value.
template <class Tile>
__device__ __forceinline__ int left_place(int term, int row) { return term * Tile::PITCH_M + (row ^ (term & Tile::SWAP)); }
template <class Tile>
__device__ __forceinline__ int right_place(int term, int column) {
    return Tile::RIGHT + term * Tile::PITCH_N + (column ^ (term & Tile::SWAP));
}

// This thread's first row and column in a block's tile.
template <class Tile>
__device__ __forceinline__ int thread_row() {
    return Tile::thread_row();
}
template <class Tile>
__device__ __forceinline__ int thread_column() {
    return Tile::thread_column();
}

// sums[i][j] += Σ_k left[k][i] · right[k][j] over a step; both addresses at this thread's first row and column.
template <class Tile>
__device__ __forceinline__ void multiply_tiles(SharedFloats left, SharedFloats right, Sums<Tile>& sums) {
#pragma unroll
    for (int k = 0; k < Tile::TERMS; ++k) {
        float rows[4 * Tile::GROUPS_M], columns[4 * Tile::GROUPS_N];
#pragma unroll
        for (int g = 0; g < Tile::GROUPS_M; ++g)
            unpack(load4(left + (k * Tile::PITCH_M + g * GROUP_ROWS)), rows + 4 * g);
#pragma unroll
        for (int g = 0; g < Tile::GROUPS_N; ++g)
            unpack(load4(right + (k * Tile::PITCH_N + g * GROUP_COLUMNS)), columns + 4 * g);
#pragma unroll
        for (int i = 0; i < 4 * Tile::GROUPS_M; ++i) {
#pragma unroll
            for (int j = 0; j < 4 * Tile::GROUPS_N; ++j) sums[i][j] = multiply_add(rows[i], columns[j], sums[i][j]);
        }
    }
}

// What a thread reads of the stages.
template <class Tile>
struct Reader {
    SharedFloats left, right;
    __device__ __forceinline__ explicit Reader(SharedFloats tiles)
        : left(opaque(tiles + thread_row<Tile>())), right(opaque(tiles + (Tile::RIGHT + thread_column<Tile>()))) {}
    __device__ __forceinline__ void multiply(Sums<Tile>& sums) const { multiply_tiles<Tile>(left, right, sums); }
    __device__ __forceinline__ void move(int distance) {
        left += distance;
        right += distance;
    }
};

// Adds the products of so many steps. load.first(tiles) copies a step to the first stage, and load(distance) the next one
// to the stage `distance` floats from that of the step before; after(left) may change the sums when `left` steps are left.
template <class Tile, class Load, class After>
__device__ __forceinline__ void multiply_steps(Load& load, int steps, SharedFloats tiles, Sums<Tile>& sums,
                                               const After& after) {
    if (steps <= 0) return;
    Reader<Tile> reader(tiles);
    load.first(tiles);
    copy_async_commit();
    int distance = Tile::STAGE;
    bool more;
#pragma unroll 1
    do {
        copy_async_wait<0>();
        __syncthreads();  // this stage has arrived, and the other is no longer read
        more = --steps > 0;
        if (more) {
            load(distance);
            copy_async_commit();
        }
        reader.multiply(sums);
        after(steps);
        reader.move(distance);
        distance = -distance;
    } while (more);
}
template <class Tile, class Load>
__device__ __forceinline__ void multiply_steps(Load& load, int steps, SharedFloats tiles, Sums<Tile>& sums) {
    multiply_steps<Tile>(load, steps, tiles, sums, [](int) {});
}

// Copies a matrix whose terms are contiguous, EXTENT rows × TERMS terms a step, to shared [term][row]. Eight lanes read a
// sector of 32 bytes, so the copy is made of words and needs no alignment. Rows past the matrix are zeros.
template <int EXTENT, class Tile>
struct TermsContiguous {
    static constexpr int TERMS = Tile::TERMS, PITCH = EXTENT + Tile::GAP;
    static constexpr int LANES = 8, ROWS = Tile::THREADS / LANES, PASSES = EXTENT / ROWS;
    static_assert(EXTENT % ROWS == 0 && TERMS % LANES == 0, "whole passes");
    static_assert(LANES % 8 == 0 && ROWS % 8 == 0, "copies of a thread keep to the order of its first");
    static __device__ __forceinline__ int64 term_stride(int64) { return 1; }
    SharedFloats target;
    const float* source;
    int64 step;  // from row to row of the thread
    int passes;  // how many of its rows exist

    __device__ __forceinline__ TermsContiguous(const float* matrix, int64 row_stride, int first_row, int rows) {
        const int term = threadIdx.x % LANES, row = threadIdx.x / LANES;
        source = matrix + (first_row + row) * row_stride + term;
        step = ROWS * row_stride;
        passes = ceil_div(rows - first_row - row, ROWS);
    }

    // A step of `terms` terms, then zeros.
    __device__ __forceinline__ void first(SharedFloats tile, int terms) {
        const int term = threadIdx.x % LANES;
        target = opaque(tile + (term * PITCH + (threadIdx.x / LANES ^ term & Tile::SWAP)));
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
#pragma unroll
            for (int k = 0; k < TERMS; k += LANES)
                copy_async4(target + (k * PITCH + pass * ROWS), source + pass * step + k,
                            pass < passes && term + k < terms);
        }
        source += terms;
    }
    __device__ __forceinline__ void operator()(int distance) {
        target += distance;
        const float* from = source;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass, from += step) {
#pragma unroll
            for (int k = 0; k < TERMS; k += LANES)
                copy_async4(target + (k * PITCH + pass * ROWS), from + k, pass < passes);
        }
        source += TERMS;
    }
};

// How threads of which STEP have different terms share those of a step: thread number t of them copies term(t) and the
// terms `further(i)` on. All of a thread's terms agree in the bit SWAP, so its copies stand at constant distances.
template <class Tile, int STEP>
struct Spread {
    static constexpr bool IN_TURN = Tile::SWAP == 0 || STEP % (2 * Tile::SWAP) == 0;
    static constexpr int COPIES = Tile::TERMS / STEP;
    static_assert(STEP > 0 && COPIES * STEP == Tile::TERMS && (IN_TURN || STEP == 2), "whole copies");
    static __device__ __forceinline__ int term(int t) { return IN_TURN ? t : t * Tile::SWAP; }
    static __device__ __forceinline__ constexpr int further(int i) {
        return IN_TURN ? i * STEP : i % Tile::SWAP + i / Tile::SWAP * 2 * Tile::SWAP;
    }
};

// The same of a matrix whose rows' values are contiguous for each term, `stride` floats from term to term; WIDTH of them
// are copied at a time: 4 where base, stride and the number of rows are multiples of 4, or 1.
template <int EXTENT, class Tile, int WIDTH>
struct RowsContiguous {
    static constexpr int TERMS = Tile::TERMS, PITCH = EXTENT + Tile::GAP;
    using Own = Spread<Tile, Tile::THREADS * WIDTH / EXTENT>;
    static __device__ __forceinline__ int64 term_stride(int64 stride) { return stride; }
    static __device__ __forceinline__ int term() { return Own::term(threadIdx.x * WIDTH / EXTENT); }
    SharedFloats target;
    const float* source;
    int64 stride;
    bool exists;

    __device__ __forceinline__ RowsContiguous(const float* matrix, int64 term_stride, int first_row, int rows) {
        const int row = first_row + threadIdx.x * WIDTH % EXTENT;
        source = matrix + term() * term_stride + row;
        stride = term_stride;
        exists = row < rows;
    }

    static __device__ __forceinline__ void copy(SharedFloats to, const float* from, bool valid) {
        if constexpr (WIDTH == 4) {
            copy_async16(to, from, valid ? 16 : 0);
        } else {
            copy_async4(to, from, valid);
        }
    }
    __device__ __forceinline__ void first(SharedFloats tile, int terms) {
        target = opaque(tile + (term() * PITCH + (threadIdx.x * WIDTH % EXTENT ^ term() & Tile::SWAP)));
#pragma unroll
        for (int i = 0; i < Own::COPIES; ++i) {
            const int k = Own::further(i);
            copy(target + k * PITCH, source + k * stride, exists && term() + k < terms);
        }
        source += terms * stride;
    }
    __device__ __forceinline__ void operator()(int distance) {
        target += distance;
#pragma unroll
        for (int i = 0; i < Own::COPIES; ++i) {
            const int k = Own::further(i);
            copy(target + k * PITCH, source + k * stride, exists);
        }
        source += TERMS * stride;
    }
};
template <int EXTENT, class Tile>
using RowQuads = RowsContiguous<EXTENT, Tile, 4>;
template <int EXTENT, class Tile>
using RowWords = RowsContiguous<EXTENT, Tile, 1>;
