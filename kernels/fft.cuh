// Fourier transforms of up to 64 points in one thread's registers, and of real t × t tiles by a block.
//
// Without bit reversal: the forward transform takes points in natural order (decimation in frequency) and leaves frequency
// f at position reverse(f); the inverse (decimation in time, not divided by the length) takes them so. What happens
// between, products of spectra, does not care. The negative of the frequency at position p > 1 is at 3·2^k − 1 − p, where
// 2^k ≤ p < 2^(k+1); positions 0 and 1, zero and half the length, are their own. Twiddles are literals.
//
// A real tile x(t,t): columns first, t real values as t/2 complex ones, of which t/2 complex rows come, the row of
// frequency 0 with that of t/2 as its imaginary part; then rows. So t²/2 + 2 numbers, "bins", describe the tile: the
// number at position q of row p > 0 is bin p·t + q. Row 0 holds two real sequences' spectra a + i·b, of which half is
// redundant: a at position q of each pair and b at its partner's; b of positions 0 and 1 are bins t²/2 and t²/2 + 1.
//
// Between columns and rows the tile goes through shared memory, float2 [item][row][column ^ swizzle]: half a warp writes
// 16 neighbouring columns of a row, and reads one column of 16 (item, row), each without conflicts.
#pragma once
#include "common.cuh"

constexpr int FFT_THREADS = 128;  // as the entry points say

template <int T>
struct FftTile {
    static constexpr int ROWS = T / 2, BINS = T * T / 2 + 2;
    static constexpr int ITEMS = FFT_THREADS / ROWS;                // tiles of a block: a thread has one row
    static constexpr int COLUMN_PASSES = ITEMS * T / FFT_THREADS;   // and two columns, one after the other
    static constexpr int SWIZZLED_ROWS = ITEMS < 16 ? 16 / ITEMS : 1;
    static_assert(T >= 16 && T <= 64, "twiddles are those of 64 points, swizzles of at least 16 columns");

    // Where a number stands in shared memory, in floats.
    static __device__ __forceinline__ int place(int item, int row, int column) {
        const int swizzle = item + ITEMS * (row % SWIZZLED_ROWS);
        return 2 * ((item * ROWS + row) * T + (column ^ swizzle));
    }
};

__device__ __forceinline__ float2 add(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
__device__ __forceinline__ float2 subtract(float2 a, float2 b) { return make_float2(a.x - b.x, a.y - b.y); }
__device__ __forceinline__ float2 conjugate(float2 a) { return make_float2(a.x, -a.y); }
__device__ __forceinline__ float2 times_i(float2 a) { return make_float2(-a.y, a.x); }

// cos(2π·k/64) for k from 0 to 32.
__device__ __forceinline__ float cosine64(int k) {
    constexpr float COSINES[17] = {1.0f,         0.995184727f, 0.98078528f,  0.956940336f, 0.923879533f, 0.881921264f,
                                   0.831469612f, 0.773010453f, 0.707106781f, 0.634393284f, 0.555570233f, 0.471396737f,
                                   0.382683432f, 0.290284677f, 0.195090322f, 0.0980171403f, 0.0f};
    return k <= 16 ? COSINES[k] : -COSINES[32 - k];
}

// v · exp(DIRECTION·2πi·k/64), 0 ≤ k < 32, where k is known at compile time.
template <int DIRECTION>
__device__ __forceinline__ float2 rotate(float2 v, int k) {
    if (k == 0) return v;
    if (k == 16) return DIRECTION > 0 ? times_i(v) : make_float2(v.y, -v.x);
    const float c = cosine64(k), s = DIRECTION * (k <= 16 ? cosine64(16 - k) : cosine64(k - 16));
    return make_float2(multiply_add(v.x, c, -(v.y * s)), multiply_add(v.y, c, v.x * s));
}

template <int N, int LENGTH = N>
__device__ __forceinline__ void transform(float2 (&z)[N]) {
#pragma unroll
    for (int first = 0; first < N; first += LENGTH) {
#pragma unroll
        for (int j = 0; j < LENGTH / 2; ++j) {
            const float2 a = z[first + j], b = z[first + j + LENGTH / 2];
            z[first + j] = add(a, b);
            z[first + j + LENGTH / 2] = rotate<-1>(subtract(a, b), j * (64 / LENGTH));
        }
    }
    if constexpr (LENGTH > 2) transform<N, LENGTH / 2>(z);
}

template <int N, int LENGTH = 2>
__device__ __forceinline__ void invert(float2 (&z)[N]) {
#pragma unroll
    for (int first = 0; first < N; first += LENGTH) {
#pragma unroll
        for (int j = 0; j < LENGTH / 2; ++j) {
            const float2 a = z[first + j], b = rotate<1>(z[first + j + LENGTH / 2], j * (64 / LENGTH));
            z[first + j] = add(a, b);
            z[first + j + LENGTH / 2] = subtract(a, b);
        }
    }
    if constexpr (LENGTH < N) invert<N, 2 * LENGTH>(z);
}

// visit(p, partner) for every pair of positions with opposite frequencies, but for positions 0 and 1.
template <int N, int BASE = 2, class Visit>
__device__ __forceinline__ void for_opposite(const Visit& visit) {
#pragma unroll
    for (int p = BASE; p < BASE + BASE / 2; ++p) visit(p, 3 * BASE - 1 - p);
    if constexpr (2 * BASE < N) for_opposite<N, 2 * BASE>(visit);
}

// The frequency at position p of N.
template <int N>
__device__ __forceinline__ constexpr int frequency(int p) {
    int reversed = 0;
#pragma unroll
    for (int bit = 1, mirrored = N / 2; bit < N; bit *= 2, mirrored /= 2)
        if (p & bit) reversed |= mirrored;
    return reversed;
}

// Twice the spectrum of 2·N real values, given as N complex ones: frequencies below N at their positions, that of N as the
// imaginary part of position 0.
template <int N>
__device__ __forceinline__ void transform_real(float2 (&z)[N]) {
    transform(z);
    z[0] = make_float2(2.0f * (z[0].x + z[0].y), 2.0f * (z[0].x - z[0].y));
    z[1] = make_float2(2.0f * z[1].x, -2.0f * z[1].y);
    for_opposite<N>([&](int p, int partner) {
        const float2 even = add(z[p], conjugate(z[partner])), difference = subtract(z[p], conjugate(z[partner]));
        const float2 odd = times_i(rotate<-1>(difference, frequency<N>(p) * (32 / N)));
        z[p] = subtract(even, odd);
        z[partner] = conjugate(add(even, odd));
    });
}

// The inverse of it but for a factor: 2·N times the values whose spectrum is given.
template <int N>
__device__ __forceinline__ void invert_real(float2 (&z)[N]) {
    z[0] = make_float2(z[0].x + z[0].y, z[0].x - z[0].y);
    z[1] = make_float2(2.0f * z[1].x, -2.0f * z[1].y);
    for_opposite<N>([&](int p, int partner) {
        const float2 even = add(z[p], conjugate(z[partner])), difference = subtract(z[p], conjugate(z[partner]));
        const float2 odd = times_i(rotate<1>(difference, frequency<N>(p) * (32 / N)));
        z[p] = add(even, odd);
        z[partner] = conjugate(subtract(even, odd));
    });
    invert(z);
}

// Row 0, spectra a + i·b of two real sequences: a at one position of each pair and b at the other; b of positions 0 and 1
// is what they have as imaginary parts, and is returned beside them by `parts`.
template <int N>
__device__ __forceinline__ void split_row(float2 (&z)[N], float2 (&parts)[2]) {
#pragma unroll
    for (int p = 0; p < 2; ++p) {
        parts[p] = make_float2(z[p].y, 0.0f);
        z[p].y = 0.0f;
    }
    for_opposite<N>([&](int p, int partner) {
        const float2 u = z[p], v = conjugate(z[partner]), d = subtract(u, v);
        z[p] = make_float2(0.5f * (u.x + v.x), 0.5f * (u.y + v.y));
        z[partner] = make_float2(0.5f * d.y, -0.5f * d.x);
    });
}

template <int N>
__device__ __forceinline__ void join_row(float2 (&z)[N], const float2 (&parts)[2]) {
#pragma unroll
    for (int p = 0; p < 2; ++p) z[p].y = parts[p].x;
    for_opposite<N>([&](int p, int partner) {
        const float2 a = z[p], ib = times_i(z[partner]);
        z[p] = add(a, ib);
        z[partner] = conjugate(subtract(a, ib));
    });
}
