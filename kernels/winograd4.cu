// The transforms of Winograd's convolution F(4×4, 3×3), around 36 matrix products of gemm_flush.cu: float32, 3×3
// filters, stride, dilation and groups 1. Everything that is written is overwritten.
//
//     winograd4_image     V[ξ][c][t] = (Bᵀ d B)[ξ], d the 6×6 pixels from (4·i − padding_h, 4·j − padding_w) on
//     winograd4_filter    U[ξ][row][column] = (G w Gᵀ)[ξ]
//     winograd4_output    y = Aᵀ M[.][k][t] A + bias[k], then ReLU
//     winograd4_gradient  E[ξ][k][t] = (H g Hᵀ)[ξ], g the 4×4 gradients from (4·i, 4·j) on
//     winograd4_weight    gw[k][c] = Fᵀ (Σ planes M[plane][.][k][c]) F
//
// Tile t = (image, i, j) in reading order. Rows of tiles are `padded` floats long, a multiple of 32, and zero past the
// last tile: so they begin at multiples of 128 bytes, and products may run over whole rows. One thread transforms one
// tile of one channel, in registers; neighbouring lanes take neighbouring tiles, and so write whole lines of V, E and
// y. Pixels outside the image are zeros that nothing reads, on every side and also where padding is negative.
#include "winograd4.cuh"

constexpr int THREADS = 256;

// Tiles of images whose channels have `height` × `width` pixels.
struct TileGrid {
    int count, padded, channels;
    int height, width, padding_h, padding_w;
    unsigned by_image[3], by_row[3];  // divisors: tiles of an image, tiles of a row
    unsigned by_group[3];             // divisor: what a warp's number is divided by, see tile_of_thread
};

struct TilePlace {
    int tile, channel;
};

// A warp takes LANE_TILES tiles of 32 / LANE_TILES channels. With 32 tiles, warps go along the tiles of a channel
// (divisor: groups of tiles), as pixels are neighbours in memory; with 8, along the channels (divisor: groups of
// channels), where they are. In both a warp's store has 4 whole sectors.
template <int LANE_TILES>
__device__ __forceinline__ TilePlace tile_of_thread(const TileGrid& grid) {
    constexpr int LANE_CHANNELS = WARP_SIZE / LANE_TILES;
    const int warp = static_cast<int>(global_thread() / WARP_SIZE), lane = threadIdx.x % WARP_SIZE;
    int rest;
    const int group = divide(warp, grid.by_group, rest);
    const int tiles = LANE_CHANNELS == 1 ? rest : group, channels = LANE_CHANNELS == 1 ? group : rest;
    return {tiles * LANE_TILES + lane % LANE_TILES, channels * LANE_CHANNELS + lane / LANE_TILES};
}

// Where a tile's outputs begin.
struct Origin {
    int image, row, column;
};
__device__ __forceinline__ Origin tile_origin(const TileGrid& grid, int tile) {
    int inside, j;
    const int image = divide(tile, grid.by_image, inside), i = divide(inside, grid.by_row, j);
    return {image, i * TILE, j * TILE};
}

template <class Axis, int LANE_TILES>
__device__ __forceinline__ void transform_tiles(const float* images, float* out, const ImageStrides& strides,
                                                const TileGrid& grid) {
    constexpr int SIDE = Axis::IN;
    const TilePlace at = tile_of_thread<LANE_TILES>(grid);
    if (at.channel >= grid.channels || at.tile >= grid.padded) return;
    const Origin origin = tile_origin(grid, at.tile);
    const int first_row = origin.row - grid.padding_h, first_column = origin.column - grid.padding_w;
    const float* line = images + origin.image * strides.image + at.channel * strides.channel + first_row * strides.row +
                        first_column * strides.column;
    const int column_stride = LANE_TILES == WARP_SIZE ? 1 : static_cast<int>(strides.column);
    bool columns[SIDE];
#pragma unroll
    for (int j = 0; j < SIDE; ++j) columns[j] = static_cast<unsigned>(first_column + j) < grid.width;
    float pixels[SIDE][SIDE];
#pragma unroll
    for (int i = 0; i < SIDE; ++i, line += strides.row) {
        const bool row = static_cast<unsigned>(first_row + i) < grid.height && at.tile < grid.count;
#pragma unroll
        for (int j = 0; j < SIDE; ++j) pixels[i][j] = row && columns[j] ? line[j * column_stride] : 0.0f;
    }
    float* target = out + static_cast<int64>(at.channel) * grid.padded + at.tile;
    const int64 step = static_cast<int64>(grid.channels) * grid.padded;
    transform<Axis>(pixels, [&](int, const float (&values)[Axis::OUT]) {
#pragma unroll
        for (int j = 0; j < Axis::OUT; ++j, target += step) *target = values[j];
    });
}

#define TRANSFORM_TILES(name, Axis, along, lane_tiles)                                                           \
    KERNEL(THREADS, 3) winograd4_##name##_##along(const float* images, float* out, ImageStrides strides,         \
                                                  TileGrid grid) {                                               \
        transform_tiles<Axis, lane_tiles>(images, out, strides, grid);                                           \
    }

TRANSFORM_TILES(image, ImageAxis, rows, 32)
TRANSFORM_TILES(image, ImageAxis, channels, 8)
TRANSFORM_TILES(gradient, GradientAxis, rows, 32)
TRANSFORM_TILES(gradient, GradientAxis, channels, 8)

// Filter (row, column) stands at row · row_stride + column · column_stride in w; `turned` by 180 degrees for
// backward_input. Rows of U are `pitch` floats long; what is past the last column is left as it is.
KERNEL(THREADS, 4) winograd4_filter(const float* w, float* u, int rows, int columns, int pitch, int64 row_stride,
                                    int64 column_stride, int turned) {
    const int64 i = global_thread();
    const int row = static_cast<int>(i / columns), column = static_cast<int>(i - static_cast<int64>(row) * columns);
    if (row >= rows) return;
    const float* taps = w + row * row_stride + column * column_stride;
    float filter[3][3];
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) filter[tap / 3][tap % 3] = taps[turned ? 8 - tap : tap];
    float* target = u + static_cast<int64>(row) * pitch + column;
    const int64 step = static_cast<int64>(rows) * pitch;
    transform<FilterAxis>(filter, [&](int, const float (&values)[6]) {
#pragma unroll
        for (int j = 0; j < 6; ++j, target += step) *target = values[j];
    });
}

__device__ __forceinline__ float finish(float value, bool relu) { return relu && value < 0.0f ? 0.0f : value; }

// y (images,K,height,width), contiguous: as float4 where rows of y are whole ones and aligned.
KERNEL(THREADS, 3) winograd4_output(const float* products, const float* bias, float* y, TileGrid grid, int relu) {
    const TilePlace at = tile_of_thread<WARP_SIZE>(grid);
    if (at.channel >= grid.channels || at.tile >= grid.count) return;
    const float* source = products + static_cast<int64>(at.channel) * grid.padded + at.tile;
    const int64 step = static_cast<int64>(grid.channels) * grid.padded;
    float elements[6][6];
#pragma unroll
    for (int e = 0; e < ELEMENTS; ++e, source += step) elements[e / 6][e % 6] = *source;
    const Origin origin = tile_origin(grid, at.tile);
    const float shift = bias ? bias[at.channel] : 0.0f;
    const bool vectors = grid.width % TILE == 0 && is_aligned16(y);
    const int64 plane = static_cast<int64>(origin.image) * grid.channels + at.channel;
    float* line = y + (plane * grid.height + origin.row) * grid.width + origin.column;
    transform<OutputAxis>(elements, [&](int i, const float (&values)[TILE]) {
        if (origin.row + i >= grid.height) return;
        float out[TILE];
#pragma unroll
        for (int j = 0; j < TILE; ++j) out[j] = finish(values[j] + shift, relu);
        if (vectors) {
            store4(line, make_float4(out[0], out[1], out[2], out[3]));
        } else {
#pragma unroll
            for (int j = 0; j < TILE; ++j)
                if (origin.column + j < grid.width) line[j] = out[j];
        }
        line += grid.width;
    });
}

// gw (K,C,3,3), contiguous; filters = K · C. Planes are added in their order; without any, gw is zero.
KERNEL(THREADS, 3) winograd4_weight(const float* products, float* gw, int64 filters, int planes) {
    const int64 i = global_thread();
    if (i >= filters) return;
    float elements[6][6] = {};
    const float* source = products + i;
    for (int plane = 0; plane < planes; ++plane) {
#pragma unroll
        for (int e = 0; e < ELEMENTS; ++e, source += filters) elements[e / 6][e % 6] += *source;
    }
    float* target = gw + i * 9;
    transform<WeightAxis>(elements, [&](int, const float (&values)[3]) {
#pragma unroll
        for (int j = 0; j < 3; ++j) *target++ = values[j];
    });
}
