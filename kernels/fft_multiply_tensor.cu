// Products of spectra as in fft_multiply.cu, on tensor cores with float32's errors, from sm_80:
// c[bin][n][m] = Σ_k a[bin][k][m] · conj(b[bin][k][n]), float2, added to c if `add`, else c is overwritten.
//
// A complex product is a real one of twice the terms: re = (a.re, a.im) · (b.re, b.im), im = (a.im, −a.re) · (b.re,
// b.im). So the 8 terms of mma.sync are 4 complex ones, the real parts first, and what a lane holds of them is a float2
// in memory: spectra stay interleaved, and each number is split once for all four products. Three products instead (of
// sums of parts) would save a quarter, but they are larger than what their difference leaves, and so are their errors.
//
// As Float32Tensor of tile_tensor.cuh: two tf32 parts of each value, three products. The tensor core, which cuts sums
// off, adds up 4 complex terms, float32 registers the rest, and CHAIN terms are flushed to c, or a split's plane of it.
//
// Fragment rows g and g + 8 are rows 2g and 2g + 1 of the tile, and two fragments of 8 columns take turns, so that a
// lane reads two neighbours as a float4 and writes two as a float4. Rows of shared memory have 4 numbers more: 4 terms
// × 2 pairs, a quarter of a warp, fall into different banks.
//
// Tiles of 128 × 64 complex numbers, 32 × 32 a warp, or 32 × 32, 16 × 16 a warp; three stages of shared memory.
#include "fft_multiply.cuh"
#include "ptx_mma.cuh"

constexpr int CHAIN = 2048;    // terms summed in one go, 4 at a time
constexpr int STAGES = 3;      // of shared memory
constexpr int PAIRS = 4;       // numbers between rows of shared memory, beside the tile's
constexpr int MMA_TERMS = 4;   // complex terms of a product on tensor cores
static_assert(CHAIN % TERMS == 0 && TERMS % MMA_TERMS == 0, "whole steps and products");

template <int M_, int N_, int WARP_M_, int WARP_N_>
struct SpectraTile {
    static constexpr int M = M_, N = N_, WARP_M = WARP_M_, WARP_N = WARP_N_, WARPS_M = M / WARP_M;
    static constexpr int THREADS = WARPS_M * (N / WARP_N) * WARP_SIZE;
    static constexpr int PITCH_M = 2 * (M + PAIRS), PITCH_N = 2 * (N + PAIRS);  // floats
    static constexpr int RIGHT = TERMS * PITCH_M, STAGE = TERMS * (PITCH_M + PITCH_N);
    static constexpr int ROW_TILES = WARP_M / 16, COLUMN_PAIRS = WARP_N / 16;
    static_assert(PITCH_M % 32 == 8 && PITCH_N % 32 == 8, "a quarter of a warp reads all banks");
    // A thread's first row and column of the tile.
    static __device__ __forceinline__ int row() {
        return threadIdx.x / WARP_SIZE % WARPS_M * WARP_M + threadIdx.x % WARP_SIZE / 4 * 2;
    }
    static __device__ __forceinline__ int column() { return threadIdx.x / WARP_SIZE / WARPS_M * WARP_N; }
};

template <class Tile>
struct SpectraSums {
    float re[Tile::ROW_TILES][2 * Tile::COLUMN_PAIRS][4], im[Tile::ROW_TILES][2 * Tile::COLUMN_PAIRS][4];
};

// value = high + low + at most a bit of 2^-23: high the nearest tf32, low the rest, cut off, which has 12 bits where
// tf32 keeps 11. By bits, because cvt.rna is four instructions of the ALU, for infinities: here they become NaN, as
// does what rounds to one, and NaN stays in low.
__device__ __forceinline__ void split(float value, uint32_t& high, uint32_t& low) {
    constexpr uint32_t TF32 = 0xffffe000u;
    high = (__float_as_uint(value) + 0x1000u) & TF32;
    low = __float_as_uint(value - __uint_as_float(high)) & TF32;
}

// sum += a · b, all of whose values are in two parts. The tensor core cuts sums off, so it adds up no more than this,
// the small corrections first.
__device__ __forceinline__ void multiply_parts(float (&sum)[4], const uint32_t (&high)[4], const uint32_t (&low)[4],
                                               const uint32_t (&b_high)[2], const uint32_t (&b_low)[2]) {
    float products[4] = {};
    mma_tf32(products, low, b_high);
    mma_tf32(products, high, b_low);
    mma_tf32(products, high, b_high);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += products[i];
}

// (a.im, −a.re) of fragments (a.re, a.im).
__device__ __forceinline__ void turn(const uint32_t (&a)[4], uint32_t (&turned)[4]) {
    constexpr uint32_t SIGN = 0x80000000u;
    turned[0] = a[2], turned[1] = a[3], turned[2] = a[0] ^ SIGN, turned[3] = a[1] ^ SIGN;
}

// sums += a · conj(b) of one stage; addresses of the lane's first numbers.
template <class Tile>
__device__ __forceinline__ void multiply_spectra(SharedFloats left, SharedFloats right, SpectraSums<Tile>& sums) {
    constexpr int COLUMNS = 2 * Tile::COLUMN_PAIRS;
#pragma unroll
    for (int k = 0; k < TERMS; k += MMA_TERMS) {
        uint32_t b_high[COLUMNS][2], b_low[COLUMNS][2];
#pragma unroll
        for (int pair = 0; pair < Tile::COLUMN_PAIRS; ++pair) {
            float values[4];
            unpack(load4(right + (k * Tile::PITCH_N + pair * 32)), values);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                split(values[i], b_high[2 * pair + i / 2][i % 2], b_low[2 * pair + i / 2][i % 2]);
        }
#pragma unroll
        for (int m = 0; m < Tile::ROW_TILES; ++m) {
            float values[4];
            unpack(load4(left + (k * Tile::PITCH_M + m * 32)), values);
            uint32_t high[4], low[4], turned_high[4], turned_low[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) split(values[i % 2 * 2 + i / 2], high[i], low[i]);
            turn(high, turned_high);
            turn(low, turned_low);
#pragma unroll
            for (int n = 0; n < COLUMNS; ++n) {
                multiply_parts(sums.re[m][n], high, low, b_high[n], b_low[n]);
                multiply_parts(sums.im[m][n], turned_high, turned_low, b_high[n], b_low[n]);
            }
        }
    }
}

// Writes a thread's sums to c, whose first of M × `columns` numbers is given, at its rows from m and columns from n on.
template <class Tile>
__device__ __forceinline__ void store_spectra(const SpectraSums<Tile>& sums, float* c, int m, int n, int M, int columns,
                                              bool add) {
#pragma unroll
    for (int j = 0; j < 4 * Tile::COLUMN_PAIRS; ++j) {
        const int tile = j / 4 * 2 + j % 2, i = j / 2 % 2;  // fragments of 8 columns take turns
        const int column = n + j / 4 * 16 + 2 * i + j % 2;
        if (column >= columns) continue;
        float* line = c + column * 2 * static_cast<int64>(M);
#pragma unroll
        for (int rows = 0; rows < Tile::ROW_TILES; ++rows) {
            const int row = m + rows * 16;
            if (row >= M) continue;
            const float *re = sums.re[rows][tile] + i, *im = sums.im[rows][tile] + i;
            float4 value = make_float4(re[0], im[0], re[2], im[2]);
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
    SHARED(float, stages, [STAGES * Tile::STAGE]);
    const ProductPlace at = find_product<Tile>(p, blockIdx.x);
    const int first_term = at.split * p.split_terms, terms = min(p.split_terms, p.K - first_term);
    const int64 first = static_cast<int64>(at.bin) * p.K + first_term;
    SpectraLoader<Tile::M, Tile::THREADS, Tile::PITCH_M> left(a + first * 2 * p.M, p.M, at.row);
    SpectraLoader<Tile::N, Tile::THREADS, Tile::PITCH_N> right(b + first * 2 * p.N, p.N, at.column);
    const int term = threadIdx.x % 4, pair = threadIdx.x % WARP_SIZE / 4 * 2;
    const SharedFloats shared = shared_floats(stages);
    const SharedFloats rows = opaque(shared + (term * Tile::PITCH_M + 2 * Tile::row()));
    const SharedFloats columns = opaque(shared + (Tile::RIGHT + term * Tile::PITCH_N + 2 * (Tile::column() + pair)));
    const auto copy = [&](int step) {
        float* target = stages + step % STAGES * Tile::STAGE;
        if (step * TERMS < terms) {
            left.copy(target, terms - step * TERMS);
            right.copy(target + Tile::RIGHT, terms - step * TERMS);
        }
        copy_async_commit();
    };

    for (int step = 0; step < STAGES - 1; ++step) copy(step);
    int done = 0;
    do {
        SpectraSums<Tile> sums = {};
#pragma unroll 1
        for (const int end = min(terms, done + CHAIN); done < end; done += TERMS) {
            copy_async_wait<STAGES - 2>();
            __syncthreads();  // this stage has arrived, and the one before is no longer read
            const int step = done / TERMS, stage = step % STAGES * Tile::STAGE;
            copy(step + STAGES - 1);
            multiply_spectra<Tile>(rows + stage, columns + stage, sums);
        }
        // Computed anew: in the loop above every register counts.
        const ProductPlace to = find_product<Tile>(p, opaque(blockIdx.x));
        const int64 plane = (static_cast<int64>(to.split) * p.bins + to.bin) * p.c_columns;
        const int m = to.row + Tile::row(), n = to.column + Tile::column() + threadIdx.x % 4 * 4;
        store_spectra<Tile>(sums, c + plane * 2 * p.M, m, n, p.M, p.c_columns, done > CHAIN || p.add);
    } while (done < terms);
}

#define FFT_MULTIPLY_TENSOR(M, N, warp_m, warp_n, threads, blocks)                                                  \
    KERNEL(threads, blocks) fft_multiply_float32_tensor_##M##x##N(const float* a, const float* b, float* c,           \
                                                                  FftProduct product) {                             \
        multiply<SpectraTile<M, N, warp_m, warp_n>>(a, b, c, product);                                              \
    }

FFT_MULTIPLY_TENSOR(128, 64, 32, 32, 256, 1)
FFT_MULTIPLY_TENSOR(32, 32, 16, 16, 128, 4)
