// The register tiles: the inner loops on which every matrix product and im2col convolution of the extension runs.
//
// Multiply:  c[i][j] = (c[i][j] if add) + (bias[i] if bias) + sum over k < depth of a[i][k] * b[offsets[k] + j]
//     for i < rows, j < columns. a is a packed tile: row-major with the constant row stride A_STRIDE. Row k of b starts at
//     offsets[k], so b may be a packed block, or an image whose shifted copies are addressed instead of made. The whole of
//     c's tile stays in registers: per k, `columns` elements of b are loaded as one or two vectors, and each of a's rows is
//     broadcast and multiplied with them (rows * vectors FMAs).
// Dots:  out[i][t] = sum over images and j < length of g[image][i][j] * x[image][offsets[t] + j],  i < rows, t < DOT_TAPS
//     with one vector of partial sums for each of the rows * DOT_TAPS results; length is a multiple of MAX_LANES.
//
// Compiled for AVX-512 (14 rows x 2 vectors of 64 bytes), AVX2 + FMA (6 x 2 of 32) and any CPU (6 x 2 of 16); the best that
// the CPU has is chosen at run time. The order of every sum is the order of k, whatever the tile's size.
#pragma once

#include <cstdint>

namespace gpucnn {

using std::int64_t;

// Terms of a sum that one tile call adds up; longer sums are cut, which keeps a's tile (15 KB) in the first-level cache, and
// is more accurate than one long chain.
constexpr int64_t MAX_DEPTH = 256;
constexpr int64_t A_STRIDE = MAX_DEPTH + 16;  // not a power of two: rows fall into different cache sets
constexpr int MAX_TILE_ROWS = 14;
constexpr int64_t MAX_TILE_COLUMNS = 32;

// Rows of b that multiply asks for this many terms ahead, about the latency of the second-level cache: `offsets` goes on for
// so many more entries, which need only be valid addresses.
constexpr int64_t PREFETCHED = 8;

constexpr int DOT_TAPS = 4;
constexpr int MAX_DOT_ROWS = 6;
constexpr int64_t MAX_LANES = 16;

// `images` matrices one after the other, image_stride apart; row_stride is that of g's rows and has no meaning for x.
template <class T>
struct Images {
    const T* data;
    int64_t image_stride, row_stride;
};

template <class T>
struct Tile {
    using Multiply = void (*)(int64_t depth, const T* a, const T* b, const int64_t* offsets, T* c, int64_t c_stride,
                              const T* bias, bool add);
    using Dots = void (*)(int64_t images, int64_t length, Images<T> g, Images<T> x, const int64_t* offsets, T* out);
    const char* name;
    int64_t rows;     // the most rows
    int64_t columns;  // of the wide tile; the narrow one has half
    Multiply wide[MAX_TILE_ROWS + 1];  // by number of rows, from 1
    Multiply narrow[MAX_TILE_ROWS + 1];
    int64_t dot_rows;  // the most rows of dots
    Dots dots[MAX_DOT_ROWS + 1];  // by number of rows, from 1
    // out[j * out_stride + i] = in[i * in_stride + j], i < rows, j < columns
    void (*transpose)(int64_t rows, int64_t columns, const T* in, int64_t in_stride, T* out, int64_t out_stride);
};

// The best tile for this CPU; T is float or double.
template <class T>
const Tile<T>& best_tile();

}  // namespace gpucnn
