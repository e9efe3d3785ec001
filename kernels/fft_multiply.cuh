// What the products of spectra share, on the float32 units (fft_multiply.cu) and on tensor cores
// (fft_multiply_tensor.cu): arguments, copies of tiles to shared memory, and which tile, bin and split a block has.
#pragma once
#include "ptx.cuh"

constexpr int TERMS = 8;  // at a step

struct FftProduct {
    int M, N, K, bins;         // N: of b; c has `c_columns` of them
    int c_columns, splits, split_terms, add;
};

// Copies tiles of 8 terms × EXTENT complex numbers by 16 bytes to rows of PITCH floats; zeros past the last.
template <int EXTENT, int THREADS, int PITCH>
struct SpectraLoader {
    static constexpr int LINE = EXTENT / 2, PASS = THREADS / LINE, PASSES = TERMS / PASS;  // LINE: copies of a term
    static_assert(THREADS % LINE == 0 && TERMS % PASS == 0, "whole passes");
    const float* source;
    int64 pitch;
    bool exists;

    __device__ __forceinline__ SpectraLoader(const float* matrix, int width, int first) {
        const int at = first + threadIdx.x % LINE * 2;
        pitch = 2 * static_cast<int64>(width);
        exists = at < width;
        source = matrix + threadIdx.x / LINE * pitch + 2 * at;
    }
    __device__ __forceinline__ void copy(float* tile, int remaining) {
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass, source += PASS * pitch) {
            const int term = pass * PASS + threadIdx.x / LINE;
            copy_async16(tile + term * PITCH + threadIdx.x % LINE * 4, source, exists && term < remaining ? 16 : 0);
        }
    }
};

struct ProductPlace {
    int row, column, bin, split;
};
template <class Tile>
__device__ __forceinline__ ProductPlace find_product(const FftProduct& p, unsigned number) {
    const unsigned tiles_m = ceil_div(p.M, Tile::M), tiles_n = ceil_div(p.N, Tile::N);
    const unsigned tile = number % (tiles_m * tiles_n), rest = number / (tiles_m * tiles_n);
    return {static_cast<int>(tile % tiles_m) * Tile::M, static_cast<int>(tile / tiles_m) * Tile::N,
            static_cast<int>(rest % p.bins), static_cast<int>(rest / p.bins)};
}
