// y = x in another dtype, rounded to nearest, ties to even. y is overwritten.
//
//   cast_<from>_<to>                 element by element, x and y (count)
//   cast_channels_last_<from>_<to>   x (N, C, P) with any strides into y (N, P, C): P pixels. A block takes 32 channels
//                                    and 32 pixels through shared memory, so that reads go along pixels and writes
//                                    along channels; a column of padding keeps the banks apart
#include "elementwise.cuh"

constexpr int THREADS = 256;
constexpr int TILE = 32, ROWS = 8;
static_assert(THREADS == TILE * ROWS, "each thread takes every eighth row of a tile");

// Both in one access: 16 bytes of the wider type.
template <class From, class To>
__device__ __forceinline__ void cast_elements(const From* x, To* y, int64 count) {
    constexpr int COUNT = sizeof(From) == 2 && sizeof(To) == 2 ? 8 : 4;
    int64 i = global_thread();
    if (is_aligned16(x) && is_aligned16(y)) {
        for (; COUNT * (i + 1) <= count; i += global_threads()) {
            float values[COUNT];
            load_neighbours(x + COUNT * i, values);
            store_neighbours(y + COUNT * i, values);
        }
        i = count / COUNT * COUNT + global_thread();
    }
    for (; i < count; i += global_threads()) y[i] = round_to<To>(to_float(x[i]));
}

struct CastShape {
    int channels, pixels, width;  // pixels are rows of `width`
    int64 stride[4];              // of x: images, channels, rows, columns
};

template <class From, class To>
__device__ __forceinline__ void cast_channels_last(const From* x, To* y, const CastShape& shape) {
    SHARED(float, tile, [TILE][TILE + 1]);
    const int lane = threadIdx.x % TILE, row = threadIdx.x / TILE;
    const int pixel_tiles = ceil_div(shape.pixels, TILE);
    const int pixel0 = static_cast<int>(blockIdx.x) % pixel_tiles * TILE, channel0 = blockIdx.y * TILE;
    const int64 n = static_cast<int>(blockIdx.x) / pixel_tiles;
    const int pixel = pixel0 + lane;
    const int64 place = n * shape.stride[0] + pixel / shape.width * shape.stride[2] + pixel % shape.width * shape.stride[3];
    for (int k = row; k < TILE; k += ROWS)
        if (pixel < shape.pixels && channel0 + k < shape.channels)
            tile[k][lane] = to_float(x[place + (channel0 + k) * shape.stride[1]]);
    __syncthreads();
    const int channel = channel0 + lane;
    for (int k = row; k < TILE; k += ROWS)
        if (pixel0 + k < shape.pixels && channel < shape.channels)
            y[(n * shape.pixels + pixel0 + k) * shape.channels + channel] = round_to<To>(tile[lane][k]);
}

#define CAST(from, From, to, To)                                                                              \
    KERNEL(THREADS, 4) cast_##from##_##to(const From* x, To* y, int64 count) { cast_elements(x, y, count); } \
    KERNEL(THREADS, 4) cast_channels_last_##from##_##to(const From* x, To* y, CastShape shape) {             \
        cast_channels_last(x, y, shape);                                                                     \
    }
CAST(float32, float, bfloat16, bfloat16)
CAST(float32, float, float16, float16)
CAST(bfloat16, bfloat16, float32, float)
CAST(float16, float16, float32, float)
CAST(bfloat16, bfloat16, float16, float16)
CAST(float16, float16, bfloat16, bfloat16)
