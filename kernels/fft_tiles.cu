// Tiles of images to their spectra and back, for convolutions by the Fourier transform (fft.cuh has the maths).
//
// - fft_tiles_T: spectra (bins,items) of float2 = transforms of T × T tiles of images (N,C,H,W), any strides, times `scale`
//   (half of what it says is the factor, for transform_real gives twice the spectrum). Outside the image, and from row or
//   column `extent` of the tile on, there are zeros: no padded copy is made. Filters are images of one tile.
// - fft_inverse_tiles_T: images (N,C,H,W), contiguous = the first step_h × step_w numbers of each tile's inverse, plus bias
//   (C) or null, ReLU. Spectra come in `splits` planes, which are added in their order.
// Outputs are overwritten.
//
// An item is a tile of a channel: (channel, tile) with the tiles fastest, or (tile, channel). The fast axis has an even
// count, so that rows are aligned for the product of spectra; items past the last are zeros. Neighbouring lanes take
// neighbouring items of a bin: runs of 128, 64 and 32 bytes at T = 16, 32 and 64.
// Dynamic shared memory: FFT_THREADS · T · 8 bytes, 16 to 64 KB.
#include "conv2d.cuh"
#include "fft.cuh"

struct FftTiles {
    int channels, tiles, channels_fast;  // tiles: of all images
    int height, width;                   // of an image
    int origin_h, origin_w;              // of an image's first tile
    int step_h, step_w;                  // from tile to tile, and numbers of a tile that the inverse keeps
    int extent_h, extent_w;              // rows and columns of a tile that are read
    int items, splits, relu;
    unsigned by_fast[3], by_image[3], by_row[3];  // divisors: items of the fast axis, tiles of an image, of a row of tiles
    float scale;
};

// Where an item lies: its channel, its image and its tile's first pixel.
struct TilePlace {
    int channel, image, row, column;
    bool exists;
};
__device__ __forceinline__ TilePlace find_tile(const FftTiles& t, int item) {
    int fast, in_image, tile_column;
    const int slow = divide(item, t.by_fast, fast), channel = t.channels_fast ? fast : slow;
    const int tile = t.channels_fast ? slow : fast, image = divide(tile, t.by_image, in_image);
    const int tile_row = divide(in_image, t.by_row, tile_column);
    return {channel, image, tile_row * t.step_h + t.origin_h, tile_column * t.step_w + t.origin_w,
            channel < t.channels && tile < t.tiles && item < t.items};
}

// One column of a tile into shared memory, transformed.
template <int T>
__device__ __forceinline__ void transform_column(const float* images, const FftTiles& t, const ImageStrides& strides,
                                                 float* tile, int item, int column) {
    const TilePlace at = find_tile(t, blockIdx.x * FftTile<T>::ITEMS + item);
    const int w = at.column + column;
    const bool inside = at.exists && w >= 0 && w < t.width && column < t.extent_w;
    const int first = max(0, -at.row), end = inside ? min(t.extent_h, t.height - at.row) : 0;
    const float* source = images + at.image * strides.image + at.channel * strides.channel + at.row * strides.row +
                          w * strides.column;
    float2 z[T / 2];
#pragma unroll
    for (int i = 0; i < T; ++i, source += strides.row) {
        const float value = i >= first && i < end ? *source : 0.0f;
        (i % 2 ? z[i / 2].y : z[i / 2].x) = value;
    }
#pragma unroll
    for (int i = 0; i < T / 2; ++i) z[i] = make_float2(z[i].x * t.scale, z[i].y * t.scale);
    transform_real(z);
#pragma unroll
    for (int row = 0; row < T / 2; ++row) store2(tile + FftTile<T>::place(item, row, column), z[row]);
}

template <int T>
__device__ __forceinline__ void transform_tiles(const float* images, float* spectra, const FftTiles& t,
                                                const ImageStrides& strides, float* tile) {
    using Tile = FftTile<T>;
#pragma unroll 1
    for (int pass = 0; pass < Tile::COLUMN_PASSES; ++pass) {
        const int number = pass * FFT_THREADS + threadIdx.x;
        transform_column<T>(images, t, strides, tile, number / T, number % T);
    }
    __syncthreads();
    const int item = threadIdx.x % Tile::ITEMS, row = threadIdx.x / Tile::ITEMS;
    float2 z[T], parts[2] = {};
#pragma unroll
    for (int q = 0; q < T; ++q) z[q] = load2(tile + Tile::place(item, row, q));
    transform(z);
    if (row == 0) split_row(z, parts);
    const int number = blockIdx.x * Tile::ITEMS + item;
    if (number >= t.items) return;
    const int64 pitch = 2 * static_cast<int64>(t.items);
    float* target = spectra + row * T * pitch + 2 * number;
#pragma unroll
    for (int q = 0; q < T; ++q, target += pitch) store2(target, z[q]);
    if (row > 0) return;
    target += (Tile::BINS - 2 - T) * pitch;
    store2(target, parts[0]);
    store2(target + pitch, parts[1]);
}

// One column of a tile from shared memory into the image.
template <int T>
__device__ __forceinline__ void invert_column(const float* tile, float* images, const float* bias, const FftTiles& t,
                                              int item, int column) {
    const TilePlace at = find_tile(t, blockIdx.x * FftTile<T>::ITEMS + item);
    float2 z[T / 2];
#pragma unroll
    for (int row = 0; row < T / 2; ++row) z[row] = load2(tile + FftTile<T>::place(item, row, column));
    invert_real(z);
    const int w = at.column + column;
    if (!at.exists || column >= t.step_w || w >= t.width) return;
    const float offset = bias ? bias[at.channel] : 0.0f, least = t.relu ? 0.0f : -INFINITY;
    const int rows = min(t.step_h, t.height - at.row);
    const int64 plane = static_cast<int64>(at.image) * t.channels + at.channel;
    float* target = images + (plane * t.height + at.row) * t.width + w;
#pragma unroll
    for (int i = 0; i < T; ++i, target += t.width) {
        const float value = (i % 2 ? z[i / 2].y : z[i / 2].x) + offset;
        if (i < rows) *target = value < least ? least : value;  // NaN stays
    }
}

// A row of the spectra of an item: its first bin at `source`, `pitch` floats to the next; added to z if ADD.
template <int T, bool ADD>
__device__ __forceinline__ void load_row(const float* source, int64 pitch, int row, float2 (&z)[T], float2 (&parts)[2]) {
#pragma unroll
    for (int q = 0; q < T; ++q, source += pitch) z[q] = ADD ? add(z[q], load2(source)) : load2(source);
    if (row > 0) return;
    source += (FftTile<T>::BINS - 2 - T) * pitch;
#pragma unroll
    for (int p = 0; p < 2; ++p, source += pitch) parts[p] = ADD ? add(parts[p], load2(source)) : load2(source);
}

template <int T>
__device__ __forceinline__ void invert_tiles(const float* spectra, float* images, const float* bias, const FftTiles& t,
                                             float* tile) {
    using Tile = FftTile<T>;
    const int item = threadIdx.x % Tile::ITEMS, row = threadIdx.x / Tile::ITEMS;
    const int64 pitch = 2 * static_cast<int64>(t.items);
    const float* source = spectra + row * T * pitch + 2 * (blockIdx.x * Tile::ITEMS + item);
    const bool exists = blockIdx.x * Tile::ITEMS + item < t.items;
    float2 z[T] = {}, parts[2] = {};
    if (exists) {
        load_row<T, false>(source, pitch, row, z, parts);
#pragma unroll 1
        for (int split = 1; split < t.splits; ++split)
            load_row<T, true>(source + split * (Tile::BINS * pitch), pitch, row, z, parts);
    }
    if (row == 0) join_row(z, parts);
    invert(z);
#pragma unroll
    for (int q = 0; q < T; ++q) store2(tile + Tile::place(item, row, q), z[q]);
    __syncthreads();
#pragma unroll 1
    for (int pass = 0; pass < Tile::COLUMN_PASSES; ++pass) {
        const int number = pass * FFT_THREADS + threadIdx.x;
        invert_column<T>(tile, images, bias, t, number / T, number % T);
    }
}

#define FFT_TILES(T, blocks)                                                                                    \
    KERNEL(128, blocks) fft_tiles_##T(const float* images, float* spectra, FftTiles tiles,              \
                                              ImageStrides strides) {                                           \
        DYNAMIC_SHARED(float, tile);                                                                            \
        transform_tiles<T>(images, spectra, tiles, strides, tile);                                              \
    }                                                                                                           \
    KERNEL(128, blocks) fft_inverse_tiles_##T(const float* spectra, float* images, const float* bias,   \
                                                      FftTiles tiles) {                                         \
        DYNAMIC_SHARED(float, tile);                                                                            \
        invert_tiles<T>(spectra, images, bias, tiles, tile);                                                    \
    }

FFT_TILES(16, 8)
FFT_TILES(32, 4)
FFT_TILES(64, 3)
