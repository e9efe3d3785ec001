// Forward pass of a first layer: few channels, whole images. x (N,C,H,W), w (K,C,R,S), y (N,K,P,Q), all contiguous;
// y[n,k,p,q] = b[k] + Σ_{c,r,s} x[n, c, p·stride + r − padding, …] · w[k,c,r,s], with relu max(·, 0); overwritten. b
// may be null. One group, no dilation.
//
// A block computes 4 rows × 64 pixels of 64 filters. It copies rows of x with their halo and the filters' weights to
// shared memory, `channels` at a time, and needs channels · (rows · PITCH + R·S · WEIGHT_PITCH) floats for them,
// where rows = 3·stride_h + R. A thread has 8 pixels along a row × 8 filters: for each (c,r) it reads a window of
// 7·STRIDE + S pixels once and then 8 weights a tap, for 64 products each.
#include "conv2d.cuh"
#include "ptx.cuh"

constexpr int THREADS = 256;
constexpr int TILE_PIXELS = 64, TILE_ROWS = 4, TILE_FILTERS = 64;
constexpr int WEIGHT_PITCH = 72;  // 4 taps × 8 filters, which a warp stores at a time, lie in 32 different banks
static_assert(TILE_PIXELS / 8 * TILE_ROWS == WARP_SIZE, "a warp covers the tile's pixels");
static_assert(TILE_FILTERS / 8 * WARP_SIZE == THREADS, "a warp for each 8 filters");

template <int S, int STRIDE>
struct Rows {
    static constexpr int COLUMNS = (TILE_PIXELS - 1) * STRIDE + S;
    static constexpr int QUADS = ceil_div(COLUMNS, 4);           // float4s
    static constexpr int WINDOW = ceil_div(7 * STRIDE + S, 4);  // float4s
    static_assert(STRIDE == 1 || STRIDE == 2 || STRIDE == 4, "the gaps below are for powers of two");

    // Lanes read float4s that lie 2·STRIDE apart. A gap of one after each 2·STRIDE puts those of 8 lanes in different
    // banks, and keeps their distances.
    static __host__ __device__ constexpr int place(int quad) { return quad + quad / (2 * STRIDE); }
    static constexpr int PITCH = 4 * (QUADS + (QUADS - 1) / (2 * STRIDE));
};

struct Block {
    int image, row, column, filter;  // the tile's first
};

// The filters' tiles are numbered fastest, then those along a row: blocks that run together read the same rows.
__device__ __forceinline__ Block block_of(int64 number, const ConvShape& c) {
    const int filter_tiles = ceil_div(c.K, TILE_FILTERS), column_tiles = ceil_div(c.Q, TILE_PIXELS);
    const int row_tiles = ceil_div(c.P, TILE_ROWS);
    const int filter = static_cast<int>(number % filter_tiles);
    number /= filter_tiles;
    const int column = static_cast<int>(number % column_tiles);
    number /= column_tiles;
    const int row = static_cast<int>(number % row_tiles);
    return {static_cast<int>(number / row_tiles), row * TILE_ROWS, column * TILE_PIXELS, filter * TILE_FILTERS};
}

// Rows of channels first … first + channels − 1, a warp a row; zeros outside of the image.
template <class T>
__device__ __forceinline__ void load_rows(float* rows, const float* x, const ConvShape& c, const Block& at, int first,
                                          int channels) {
    const int lane = threadIdx.x % WARP_SIZE, height = (TILE_ROWS - 1) * c.stride_h + c.R;
    const int left = at.column * c.stride_w - c.padding_w;
    for (int row = threadIdx.x / WARP_SIZE; row < channels * height; row += THREADS / WARP_SIZE) {
        const int channel = row / height, h = at.row * c.stride_h - c.padding_h + row - channel * height;
        const int64 plane = static_cast<int64>(at.image) * c.C + first + channel;
        const bool inside = h >= 0 && h < c.H;
        const float* source = x + (plane * c.H + (inside ? h : 0)) * c.W;
        float* destination = rows + row * T::PITCH;
        for (int column = lane; column < 4 * T::QUADS; column += WARP_SIZE) {
            const int w = left + column;
            const bool valid = inside && w >= 0 && w < c.W;
            copy_async4(destination + 4 * T::place(column / 4) + column % 4, valid ? source + w : x, valid);
        }
    }
}

// weights[tap][filter], where a tap is a (c,r,s); warp i has filters 8·i … 8·i + 7, and zeros beyond the last.
__device__ __forceinline__ void load_weights(float* weights, const float* w, const ConvShape& c, const Block& at,
                                             int first, int channels) {
    const int lane = threadIdx.x % WARP_SIZE, filter = threadIdx.x / WARP_SIZE * 8 + lane % 8, taps = c.R * c.S;
    const bool valid = at.filter + filter < c.K;
    const float* source = w + (valid ? (static_cast<int64>(at.filter + filter) * c.C + first) * taps : 0);
    for (int tap = lane / 8; tap < channels * taps; tap += WARP_SIZE / 8)
        copy_async4(weights + tap * WEIGHT_PITCH + filter, source + (valid ? tap : 0), valid);
}

// Adds one filter row's products: the window's pixels times S taps of 8 filters.
template <class T, int S, int STRIDE>
__device__ __forceinline__ void multiply(float (&sum)[8][8], SharedFloats row, SharedFloats weights) {
    float window[4 * T::WINDOW];
#pragma unroll
    for (int i = 0; i < T::WINDOW; ++i) unpack(load4(row + 4 * T::place(i)), window + 4 * i);
#pragma unroll
    for (int s = 0; s < S; ++s)
#pragma unroll
        for (int f = 0; f < 8; f += 4) {
            const float4 weight = load4(weights + s * WEIGHT_PITCH + f);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                sum[f][i] = multiply_add(window[i * STRIDE + s], weight.x, sum[f][i]);
                sum[f + 1][i] = multiply_add(window[i * STRIDE + s], weight.y, sum[f + 1][i]);
                sum[f + 2][i] = multiply_add(window[i * STRIDE + s], weight.z, sum[f + 2][i]);
                sum[f + 3][i] = multiply_add(window[i * STRIDE + s], weight.w, sum[f + 3][i]);
            }
        }
}

__device__ __forceinline__ void store(const float (&sum)[8][8], const float* b, float* y, const ConvShape& c, int image,
                                      int row, int column, int first_filter, int relu) {
    if (row >= c.P || column >= c.Q) return;
    const bool whole = c.Q % 4 == 0 && is_aligned16(y);
#pragma unroll
    for (int f = 0; f < 8; ++f) {
        const int filter = first_filter + f;
        if (filter >= c.K) return;
        const float bias = b ? b[filter] : 0.0f;
        float* output = y + ((static_cast<int64>(image) * c.K + filter) * c.P + row) * c.Q + column;
        float value[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            value[i] = sum[f][i] + bias;
            if (relu && value[i] < 0.0f) value[i] = 0.0f;
            if (!whole && column + i < c.Q) output[i] = value[i];
        }
        if (!whole) continue;
        store4(output, make_float4(value[0], value[1], value[2], value[3]));
        if (column + 4 < c.Q) store4(output + 4, make_float4(value[4], value[5], value[6], value[7]));
    }
}

template <int S, int STRIDE>
__device__ __forceinline__ void first_layer(const float* x, const float* w, const float* b, float* y,
                                            const ConvShape& c, int channels, int relu) {
    using T = Rows<S, STRIDE>;
    DYNAMIC_SHARED(float, rows);
    const int height = (TILE_ROWS - 1) * c.stride_h + c.R;
    float* weights = rows + channels * height * T::PITCH;
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const int thread_row = lane / 8, thread_quad = T::place(lane % 8 * 2 * STRIDE);
    const Block at = block_of(blockIdx.x, c);
    float sum[8][8] = {};
#pragma unroll 1
    for (int first = 0; first < c.C; first += channels) {
        const int count = min(channels, c.C - first);
        if (first > 0) __syncthreads();
        load_rows<T>(rows, x, c, at, first, count);
        load_weights(weights, w, c, at, first, count);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
#pragma unroll 1
        for (int channel = 0; channel < count; ++channel) {
            const int first_row = (channel * height + thread_row * c.stride_h) * T::PITCH + 4 * thread_quad;
            SharedFloats row = opaque(shared_floats(rows) + first_row);
            SharedFloats weight = opaque(shared_floats(weights) + (channel * c.R * S * WEIGHT_PITCH + warp * 8));
#pragma unroll 1
            for (int r = c.R; r > 0; --r, row += T::PITCH, weight += S * WEIGHT_PITCH) multiply<T, S, STRIDE>(sum, row, weight);
        }
    }
    store(sum, b, y, c, at.image, at.row + thread_row, at.column + lane % 8 * 8, at.filter + warp * 8, relu);
}

#define FIRST_LAYER(S, STRIDE, BLOCKS)                                                                                 \
    KERNEL(THREADS, BLOCKS) conv2d_forward_first_layer_k##S##s##STRIDE(const float* x, const float* w, const float* b, \
                                                                  float* y, ConvShape shape, int channels, int relu) { \
        first_layer<S, STRIDE>(x, w, b, y, shape, channels, relu);                                                     \
    }

FIRST_LAYER(3, 1, 2)
FIRST_LAYER(3, 2, 2)
FIRST_LAYER(5, 1, 2)
FIRST_LAYER(5, 2, 2)
FIRST_LAYER(7, 1, 2)
FIRST_LAYER(7, 2, 2)
FIRST_LAYER(11, 1, 2)
FIRST_LAYER(11, 4, 1)  // two blocks' 128 registers are too few for its window of 40 pixels
