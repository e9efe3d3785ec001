// Products of spectra, one complex matrix product a bin: c[bin][n][m] = Σ_k a[bin][k][m] · conj(b[bin][k][n]), float2,
// added to c if `add`, else c is overwritten. Rows m and columns n are even in number and contiguous in a and b.
//
// Long sums are flushed to c every CHUNK terms. Where few tiles leave multiprocessors idle the terms are split: each split
// writes to its own plane of c (splits,bins,N,M), and fft_inverse_tiles adds the planes in their order.
//
// Tiles of 128 × 64 complex numbers (8 × 4 a thread) or 32 × 32 (4 × 4), 8 terms at a step, two stages of shared memory.
// Lanes stand 8 along m × 4 along n, two numbers a float4: as in tile.cuh, neighbours agree in pairs, so that every
// LDS.128 takes 2 passes.
#include "fft_multiply.cuh"

constexpr int CHUNK = 1024;  // terms summed in one go
// Two blocks fit a multiprocessor everywhere without a spill; from sm_100 on KERNEL asks for one less than it is told.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int LARGE_TILE_BLOCKS = 3;
#else
constexpr int LARGE_TILE_BLOCKS = 2;
#endif
constexpr int GROUP_M = 16, GROUP_N = 8;  // complex numbers that one group of a warp's lanes covers

template <int ROWS_OF_WARPS, int COLUMNS_OF_WARPS, int ROW_GROUPS, int COLUMN_GROUPS>
struct ComplexTile {
    static constexpr int GROUPS_M = ROW_GROUPS, GROUPS_N = COLUMN_GROUPS, WARPS_M = ROWS_OF_WARPS;
    static constexpr int M = ROWS_OF_WARPS * GROUP_M * GROUPS_M, N = COLUMNS_OF_WARPS * GROUP_N * GROUPS_N;
    static constexpr int THREADS = ROWS_OF_WARPS * COLUMNS_OF_WARPS * WARP_SIZE;
    static_assert(CHUNK % (2 * TERMS) == 0, "a chunk ends in the second stage, so the next may begin in the first");
};

template <class Tile>
struct ComplexSums {
    float2 of[2 * Tile::GROUPS_M][2 * Tile::GROUPS_N];
};

// sums += a · conj(b) of one stage; pointers at the thread's first numbers.
template <class Tile>
__device__ __forceinline__ void multiply_spectra(const float* a, const float* b, ComplexSums<Tile>& sums) {
#pragma unroll
    for (int k = 0; k < TERMS; ++k) {
        float rows[4 * Tile::GROUPS_M], columns[4 * Tile::GROUPS_N];
#pragma unroll
        for (int g = 0; g < Tile::GROUPS_M; ++g) unpack(load4(a + k * 2 * Tile::M + g * 2 * GROUP_M), rows + 4 * g);
#pragma unroll
        for (int g = 0; g < Tile::GROUPS_N; ++g) unpack(load4(b + k * 2 * Tile::N + g * 2 * GROUP_N), columns + 4 * g);
#pragma unroll
        for (int i = 0; i < 2 * Tile::GROUPS_M; ++i) {
#pragma unroll
            for (int j = 0; j < 2 * Tile::GROUPS_N; ++j) {
                float2& sum = sums.of[i][j];
                const float re = rows[2 * i], im = rows[2 * i + 1];
                sum.x = multiply_add(im, columns[2 * j + 1], multiply_add(re, columns[2 * j], sum.x));
                sum.y = multiply_add(-re, columns[2 * j + 1], multiply_add(im, columns[2 * j], sum.y));
            }
        }
    }
}

// Writes a thread's sums to c at its first number (m, n), of which M × `columns` exist.
template <class Tile>
__device__ __forceinline__ void store_spectra(const ComplexSums<Tile>& sums, float* c, int m, int n, int M, int columns,
                                              bool add) {
#pragma unroll
    for (int j = 0; j < 2 * Tile::GROUPS_N; ++j) {
        const int column = n + j / 2 * GROUP_N + j % 2;
        if (column >= columns) continue;
        float* line = c + column * 2 * static_cast<int64>(M);
#pragma unroll
        for (int g = 0; g < Tile::GROUPS_M; ++g) {
            const int row = m + g * GROUP_M;
            if (row >= M) continue;
            const float2 one = sums.of[2 * g][j], two = sums.of[2 * g + 1][j];
            float4 value = make_float4(one.x, one.y, two.x, two.y);
            if (add) {
                const float4 before = load4(line + 2 * row);
                value = make_float4(value.x + before.x, value.y + before.y, value.z + before.z, value.w + before.w);
            }
            store4(line + 2 * row, value);
        }
    }
}

template <class Tile>
__device__ __forceinline__ void multiply(const float* a, const float* b, float* c, const FftProduct& p) {
    SHARED(float, a_tiles, [2][TERMS * 2 * Tile::M]);
    SHARED(float, b_tiles, [2][TERMS * 2 * Tile::N]);
    const ProductPlace at = find_product<Tile>(p, blockIdx.x);
    const int first_term = at.split * p.split_terms, terms = min(p.split_terms, p.K - first_term);
    const int64 first = static_cast<int64>(at.bin) * p.K + first_term;
    SpectraLoader<Tile::M, Tile::THREADS, 2 * Tile::M> left(a + first * 2 * p.M, p.M, at.row);
    SpectraLoader<Tile::N, Tile::THREADS, 2 * Tile::N> right(b + first * 2 * p.N, p.N, at.column);
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const int m = warp % Tile::WARPS_M * GROUP_M * Tile::GROUPS_M + (lane >> 1 & 7) * 2;
    const int n = warp / Tile::WARPS_M * GROUP_N * Tile::GROUPS_N + ((lane & 1) | (lane >> 3 & 2)) * 2;

    for (int done = 0; done == 0 || done < terms; done += CHUNK) {
        ComplexSums<Tile> sums = {};
        const int chunk = min(CHUNK, terms - done);
        if (chunk > 0) {
            left.copy(a_tiles[0], chunk);
            right.copy(b_tiles[0], chunk);
            copy_async_commit();
        }
        for (int k = 0, stage = 0; k < chunk; k += TERMS, stage ^= 1) {
            copy_async_wait<0>();
            __syncthreads();  // this stage has arrived, and the other is no longer read
            if (k + TERMS < chunk) {
                left.copy(a_tiles[stage ^ 1], chunk - k - TERMS);
                right.copy(b_tiles[stage ^ 1], chunk - k - TERMS);
                copy_async_commit();
            }
            multiply_spectra<Tile>(a_tiles[stage] + 2 * m, b_tiles[stage] + 2 * n, sums);
        }
        // Computed anew: in the loop above every register counts.
        const ProductPlace to = find_product<Tile>(p, opaque(blockIdx.x));
        const int64 plane = (static_cast<int64>(to.split) * p.bins + to.bin) * p.c_columns;
        store_spectra<Tile>(sums, c + plane * 2 * p.M, to.row + m, to.column + n, p.M, p.c_columns, done > 0 || p.add);
    }
}

#define FFT_MULTIPLY(M, N, warps_m, warps_n, groups_m, groups_n, threads, blocks)                              \
    KERNEL(threads, blocks) fft_multiply_##M##x##N(const float* a, const float* b, float* c, FftProduct product) { \
        multiply<ComplexTile<warps_m, warps_n, groups_m, groups_n>>(a, b, c, product);                          \
    }

FFT_MULTIPLY(128, 64, 2, 4, 4, 2, 256, LARGE_TILE_BLOCKS)
FFT_MULTIPLY(32, 32, 1, 2, 2, 2, 64, 8)
