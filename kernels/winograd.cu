// 3×3 convolution of stride 1 by Winograd's F(2×2,3×3), in one kernel: y = b + x ∗ w, then max(·, 0) if `relu`. y is
// overwritten; b may be null. Also the gradient of the input, of gy and rotated filters (winograd_filters.cu), where
// the padding is 2 − padding and may be below 0.
//
// A block computes 32 tiles of 2×2 outputs of 64 filters (the rows and columns of winograd.cuh): at each step it takes
// TERMS channels of transformed filters from u, and of x, which it transforms on the way to shared memory, two stages
// deep with one barrier between the steps. What is transformed never goes to global memory but for u. After CHANNEL_CHUNK
// channels the sums are transformed to outputs and added to y, so that the error of long sums stays below 1e-6.
//
// Layouts: x (N,C,H,W) by strides; u as winograd_filters writes it; y (N,K,P,Q) contiguous. Warps read neighbouring
// tiles of one channel, or with `channels_last` neighbouring channels of four tiles. Grid: x blocks of filters, then of
// tiles; z groups.
#include "winograd.cuh"

constexpr int CHANNEL_CHUNK = 512;                                // channels summed in one go
constexpr int IMAGE_CHANNELS = 8;                         // of a step's transformed filters as they stand in u
constexpr int IMAGE = COMPONENTS * IMAGE_CHANNELS * COLUMNS;

// Copies the transformed filters of TERMS channels. Steps of 4, for GPUs without cp.async, wait in registers.
template <int TERMS>
struct FilterLoader {
    static constexpr bool HELD = TERMS < IMAGE_CHANNELS;
    static constexpr int COPIES = COMPONENTS * TERMS * COLUMNS / 4 / WINOGRAD_THREADS, LINE = TERMS * COLUMNS / 4;
    static constexpr int COPY_STEP = WINOGRAD_THREADS / LINE * IMAGE_CHANNELS * COLUMNS;
    static_assert(WINOGRAD_THREADS % LINE == 0, "whole components at a time");
    const float* source;  // what the thread copies first of the next step
    float4 held[HELD ? COPIES : 1];

    __device__ __forceinline__ explicit FilterLoader(const float* image) {
        source = image + threadIdx.x / LINE * IMAGE_CHANNELS * COLUMNS + threadIdx.x % LINE * 4;
    }
    __device__ __forceinline__ void load(float* target, int channel) {
#pragma unroll
        for (int copy = 0; copy < COPIES; ++copy) {
            if (HELD)
                held[copy] = load4(source + copy * COPY_STEP);
            else
                copy_async16(target + 4 * (copy * WINOGRAD_THREADS + threadIdx.x), source + copy * COPY_STEP, 16);
        }
        copy_async_commit();
        source += HELD && channel % IMAGE_CHANNELS == 0 ? TERMS * COLUMNS : IMAGE - (IMAGE_CHANNELS - TERMS) * COLUMNS;
    }
    __device__ __forceinline__ void finish(float* target) {
        copy_async_wait<0>();
#pragma unroll
        for (int copy = 0; HELD && copy < COPIES; ++copy)
            store4(target + 4 * (copy * WINOGRAD_THREADS + threadIdx.x), held[copy]);
    }
};

// Loads a thread's 4×4 pixels of one channel, and transforms them to shared memory.
template <int TERMS>
struct TileLoader {
    const float* source;  // of the next step's channel, even if outside the image
    int64 step;
    unsigned bits;
    int term, row;        // the thread's channel of a step, and tile; threads past the last term have none
    float values[16];

    __device__ __forceinline__ TileLoader(const float* x, const WinogradShape& s, const ImageStrides& strides,
                                          int first_tile) {
        term = s.channels_last ? threadIdx.x % TERMS : threadIdx.x / ROWS;
        row = s.channels_last ? threadIdx.x / TERMS : threadIdx.x % ROWS;
        int rest, column;
        const int n = divide(first_tile + row, s.by_image, rest), h = divide(rest, s.by_row, column) * 2 - s.padding_h;
        const int w = 2 * column - s.padding_w;
        bits = first_tile + row < s.tiles ? inside_bits(h, w, s.height, s.width) : 0;
        step = TERMS * strides.channel;
        source = x + n * strides.image + h * strides.row + w * strides.column +
                 (static_cast<int64>(blockIdx.z) * s.channels + term) * strides.channel;
    }
    __device__ __forceinline__ bool active() const {
        return TERMS * ROWS == WINOGRAD_THREADS || threadIdx.x < TERMS * ROWS;
    }
    __device__ __forceinline__ void load(int channel, const WinogradShape& s, const ImageStrides& strides) {
        if (!active()) return;
        const int row_step = opaque(strides.row), column_step = opaque(strides.column);  // see load_tile
        load_tile<4>(source, channel + term < s.channels ? bits : 0, row_step, column_step, values);
        source += step;
    }
    __device__ __forceinline__ void finish(float* target) {
        if (!active()) return;
        transform_input(values);
        target += term * ROWS + swizzled<TERMS>(term, row);
#pragma unroll
        for (int i = 0; i < COMPONENTS; ++i) target[i * TERMS * ROWS] = values[i];
    }
};

__device__ __forceinline__ float activated(float value, bool relu) { return relu && value < 0.0f ? 0.0f : value; }

// Two outputs side by side, of which `count` exist; added to those there are if `add`.
__device__ __forceinline__ void store_pair(float* target, float first, float second, float bias, bool vector, int count,
                                           bool add, bool relu) {
    if (add) first += target[0], second += count > 1 ? target[1] : 0.0f;
    first = activated(first + bias, relu), second = activated(second + bias, relu);
    if (vector) {
        store2(target, first, second);
    } else {
        target[0] = first;
        if (count > 1) target[1] = second;
    }
}

// Transforms the sums and writes a lane's tile of the outputs.
__device__ __forceinline__ void store_outputs(const ComponentSums& sums, float* shared, const float* bias, float* y,
                                              const WinogradShape& s, bool add, bool last) {
    // From the indices of the block anew, so that nothing of it takes registers in the main loop.
    const int block = opaque(blockIdx.x), group = opaque(blockIdx.z), filter_blocks = ceil_div(s.filters, COLUMNS);
    const int first_filter = block % filter_blocks * COLUMNS;
    const int tile = block / filter_blocks * ROWS + threadIdx.x % WARP_SIZE;
    int rest, q;
    const int n = divide(tile, s.by_image, rest), p = divide(rest, s.by_row, q) * 2;
    q *= 2;
    const int rows = tile < s.tiles ? min(2, s.out_height - p) : 0, columns = min(2, s.out_width - q);
    const int64 plane = static_cast<int64>(s.out_height) * s.out_width;
    float* target = y + (static_cast<int64>(n) * gridDim.z + group) * s.filters * plane + p * s.out_width + q;
    const bool vector = s.out_width % 2 == 0 && is_aligned8(y), relu = last && s.relu;
    for_each_result(sums, shared, [&](int column, const float (&m)[16]) {
        const int filter = first_filter + column;
        if (filter >= s.filters) return;
        const float value = last && bias ? bias[group * s.filters + filter] : 0.0f;
        float above[4], below[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            above[j] = m[j] + m[4 + j] + m[8 + j];
            below[j] = m[4 + j] - m[8 + j] + m[12 + j];
        }
        float* line = target + filter * plane;
        if (rows > 0)
            store_pair(line, above[0] + above[1] + above[2], above[1] - above[2] + above[3], value, vector, columns,
                       add, relu);
        if (rows > 1)
            store_pair(line + s.out_width, below[0] + below[1] + below[2], below[1] - below[2] + below[3], value,
                       vector, columns, add, relu);
    });
}

template <int TERMS>
__device__ __forceinline__ void convolve(const float* x, const float* u, const float* bias, float* y,
                                         const WinogradShape& s, const ImageStrides& strides) {
    DYNAMIC_SHARED(float, shared);
    const int filter_blocks = ceil_div(s.filters, COLUMNS);
    const int64 block = static_cast<int64>(blockIdx.z) * filter_blocks + blockIdx.x % filter_blocks;
    FilterLoader<TERMS> filters(u + block * ceil_div(s.channels, IMAGE_CHANNELS) * IMAGE);
    TileLoader<TERMS> tiles(x, s, strides, blockIdx.x / filter_blocks * ROWS);
#pragma unroll 1
    for (int begin = 0; begin < s.channels; begin += CHANNEL_CHUNK) {
        const int end = min(begin + CHANNEL_CHUNK, s.channels);
        ComponentSums sums = {};
        if (begin > 0) __syncthreads();  // the results before have been read
#pragma unroll 1
        for (int channel = begin - TERMS, stage = 1; channel < end; channel += TERMS, stage ^= 1) {
            float* next = shared + (stage ^ 1) * Stage<TERMS>::FLOATS;
            const bool more = channel + TERMS < end;
            if (more) {
                filters.load(next + Stage<TERMS>::LEFT, channel + TERMS);
                tiles.load(channel + TERMS, s, strides);
            }
            if (channel >= begin) multiply_components<TERMS, false>(shared, stage * Stage<TERMS>::FLOATS, sums);
            if (more) {
                tiles.finish(next);
                filters.finish(next + Stage<TERMS>::LEFT);
            }
            __syncthreads();  // the next stage is there, and this one is no longer read
        }
        store_outputs(sums, shared, bias, y, s, begin > 0, end == s.channels);
    }
}

#define WINOGRAD(TERMS)                                                                                                \
    KERNEL(256, 1) winograd_64x32x##TERMS(const float* x, const float* u, const float* bias, float* y,                 \
                                          WinogradShape shape, ImageStrides strides) {                                 \
        convolve<TERMS>(x, u, bias, y, shape, strides);                                                                \
    }

WINOGRAD(8)  // 96 KB of shared memory
WINOGRAD(4)  // 48 KB
