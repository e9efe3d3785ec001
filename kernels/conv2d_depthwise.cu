// Depthwise convolution: groups = C, one input channel a filter. x (N,C,H,W), w (K,1,k,k), y (N,K,P,Q) with K = m·C,
// all contiguous; k×k filters of 3, 5 or 7 with padding (k−1)/2, stride 1 or 2, no dilation. Outputs are overwritten.
//
// - forward: y[n,k] = b[k] + x[n,k/m] ∗ w[k], with relu max(·, 0); b may be null
// - backward_input, m = 1: gx[n,c] = gy[n,c] ∗ w[c] rotated; at stride 2, with the taps that reach each pixel
// - backward_weight: gw[k,0,r,s] = Σ_{n,p,q} gy[n,k,p,q] · x[n, k/m, p·stride + r − padding, …] in partial sums
//   [split][K·k·k], which conv2d_direct_add_splits adds in order
//
// 9 products for 8 bytes: memory is the limit. A thread computes a strip, ROWS × 4 neighbouring outputs of one plane;
// it reads each row of the source once, as float4 where rows are aligned, and adds it to all rows of outputs that
// it meets.
#include "conv2d.cuh"

constexpr int THREADS = 128;
constexpr int QUAD = 4;

// Which tap joins output i and source position j of a strip, along either axis: from 0 to TAPS − 1, or none.
// Source position j is first(output 0) + j.
template <int TAPS, int STRIDE>
struct Reading {  // y from x
    static constexpr int PADDING = TAPS / 2;
    static __host__ __device__ constexpr int sources(int outputs) { return (outputs - 1) * STRIDE + TAPS; }
    static __host__ __device__ constexpr int tap(int output, int source) { return source - output * STRIDE; }
    static __device__ int first(int output) { return output * STRIDE - PADDING; }
};
template <int TAPS>
struct Returning {  // gx from gy, stride 2: output h is reached from (h + padding − tap) / 2, where that is whole
    static constexpr int PADDING = TAPS / 2, BEFORE = PADDING / 2;
    static __host__ __device__ constexpr int sources(int outputs) { return (outputs - 1 + PADDING) / 2 + BEFORE + 1; }
    static __host__ __device__ constexpr int tap(int output, int source) {
        return output + PADDING - 2 * (source - BEFORE);
    }
    static __device__ int first(int output) { return output / 2 - BEFORE; }
};

struct Planes {
    const float *source, *weights, *bias;
    float* output;
    int64 planes;                 // of output: images × channels
    int channels, share;           // output plane p has source plane p / share
    int source_height, source_width, output_height, output_width;
    int rotated, relu;
};

// Values first … first + COUNT − 1 of a row, zeros outside of it. Of an aligned row (its width and start are
// multiples of 4), the values from first + PADDING on are read in float4s, where `VECTORS` are.
template <int COUNT, int PADDING, int VECTORS>
__device__ __forceinline__ void load_row(float (&value)[COUNT], const float* row, int first, int width, bool inside,
                                         bool aligned) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
        const bool in_vector = j >= PADDING && j < PADDING + 4 * VECTORS;
        const int column = first + j;
        if (!in_vector || !aligned) value[j] = inside && column >= 0 && column < width ? row[column] : 0.0f;
    }
    if (!aligned) return;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const int column = first + PADDING + 4 * v;
        float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (inside && column < width) four = load4(row + column);
        const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (PADDING + 4 * v + j < COUNT) value[PADDING + 4 * v + j] = values[j];
    }
}

template <class Map, int TAPS, int ROWS, int VECTORS>
__device__ __forceinline__ void depthwise(const Planes& g) {
    constexpr int SOURCE_ROWS = Map::sources(ROWS), SOURCE_COLUMNS = Map::sources(QUAD);
    const int quads = ceil_div(g.output_width, QUAD), strips = ceil_div(g.output_height, ROWS);
    const int64 item = global_thread(), rest = item / quads, plane = rest / strips;
    if (plane >= g.planes) return;
    const int left = static_cast<int>(item - rest * quads) * QUAD, top = static_cast<int>(rest - plane * strips) * ROWS;
    const int channel = static_cast<int>(plane % g.channels);
    const bool aligned = VECTORS > 0 && g.source_width % 4 == 0 && is_aligned16(g.source);
    float sum[ROWS][QUAD] = {};
    const float* weights = g.weights + static_cast<int64>(channel) * (TAPS * TAPS);
    float weight[TAPS][TAPS];
#pragma unroll
    for (int t = 0; t < TAPS * TAPS; ++t) weight[t / TAPS][t % TAPS] = weights[g.rotated ? TAPS * TAPS - 1 - t : t];
    const float* source = g.source + plane / g.share * g.source_height * g.source_width;
#pragma unroll
    for (int row = 0; row < SOURCE_ROWS; ++row) {
        const int h = Map::first(top) + row;
        const bool inside = h >= 0 && h < g.source_height;
        float value[SOURCE_COLUMNS];
        const int64 offset = inside ? static_cast<int64>(h) * g.source_width : 0;
        load_row<SOURCE_COLUMNS, Map::PADDING, VECTORS>(value, source + offset, Map::first(left), g.source_width,
                                                        inside, aligned);
#pragma unroll
        for (int p = 0; p < ROWS; ++p) {
            const int r = Map::tap(p, row);
            if (r < 0 || r >= TAPS) continue;
#pragma unroll
            for (int q = 0; q < QUAD; ++q)
#pragma unroll
                for (int column = 0; column < SOURCE_COLUMNS; ++column) {
                    const int s = Map::tap(q, column);
                    if (s >= 0 && s < TAPS) sum[p][q] = multiply_add(value[column], weight[r][s], sum[p][q]);
                }
        }
    }
    const float bias = g.bias ? g.bias[channel] : 0.0f;
    const bool whole = g.output_width % 4 == 0 && is_aligned16(g.output);
#pragma unroll
    for (int p = 0; p < ROWS; ++p) {
        if (top + p >= g.output_height) break;
        float* output = g.output + (plane * g.output_height + top + p) * g.output_width + left;
#pragma unroll
        for (int q = 0; q < QUAD; ++q) {
            sum[p][q] += bias;
            if (g.relu && sum[p][q] < 0.0f) sum[p][q] = 0.0f;
            if (!whole && left + q < g.output_width) output[q] = sum[p][q];
        }
        if (whole) store4(output, make_float4(sum[p][0], sum[p][1], sum[p][2], sum[p][3]));
    }
}

// A block sums over items `begin` … `end` − 1 of one filter; an item is a strip of ROWS × 4 pixels of gy in one image.
template <int TAPS, int STRIDE, int ROWS>
__device__ __forceinline__ void depthwise_backward_weight(const float* x, const float* gy, float* partial,
                                                          const ConvShape& c, int split_items) {
    using Map = Reading<TAPS, STRIDE>;
    constexpr int SOURCE_ROWS = Map::sources(ROWS), SOURCE_COLUMNS = Map::sources(QUAD), WARPS = THREADS / WARP_SIZE;
    SHARED(float, warp_sums, [WARPS][TAPS * TAPS]);
    const int filter = blockIdx.x % c.K, split = blockIdx.x / c.K, channel = filter / (c.K / c.C);
    const int quads = ceil_div(c.Q, QUAD), strips = ceil_div(c.P, ROWS);
    const int begin = split * split_items, end = min(begin + split_items, c.N * strips * quads);
    const bool aligned = c.W % 4 == 0 && is_aligned16(x), gy_aligned = c.Q % 4 == 0 && is_aligned16(gy);
    float sum[TAPS][TAPS] = {};
#pragma unroll 1
    for (int item = begin + threadIdx.x; item < end; item += THREADS) {
        const int rest = item / quads, image = rest / strips;
        const int left = (item - rest * quads) * QUAD, top = (rest - image * strips) * ROWS;
        const float* gradients = gy + (static_cast<int64>(image) * c.K + filter) * c.P * c.Q;
        const float* source = x + (static_cast<int64>(image) * c.C + channel) * c.H * c.W;
        float gradient[ROWS][QUAD];
#pragma unroll
        for (int p = 0; p < ROWS; ++p) {
            const bool inside = top + p < c.P;
            const float* row = gradients + (inside ? (top + p) * c.Q : 0);
            load_row<QUAD, 0, 1>(gradient[p], row, left, c.Q, inside, gy_aligned);
        }
#pragma unroll
        for (int row = 0; row < SOURCE_ROWS; ++row) {
            const int h = Map::first(top) + row;
            const bool inside = h >= 0 && h < c.H;
            float value[SOURCE_COLUMNS];
            const float* pixels = source + (inside ? h * c.W : 0);
            load_row<SOURCE_COLUMNS, Map::PADDING, STRIDE>(value, pixels, Map::first(left), c.W,
                                                           inside, aligned);
#pragma unroll
            for (int p = 0; p < ROWS; ++p) {
                const int r = Map::tap(p, row);
                if (r < 0 || r >= TAPS) continue;
#pragma unroll
                for (int s = 0; s < TAPS; ++s)
#pragma unroll
                    for (int q = 0; q < QUAD; ++q)
                        sum[r][s] = multiply_add(gradient[p][q], value[q * STRIDE + s], sum[r][s]);
            }
        }
    }
#pragma unroll
    for (int t = 0; t < TAPS * TAPS; ++t) {
        const float total = warp_reduce<Sum>(sum[t / TAPS][t % TAPS]);
        if (threadIdx.x % WARP_SIZE == 0) warp_sums[threadIdx.x / WARP_SIZE][t] = total;
    }
    __syncthreads();
    if (threadIdx.x >= TAPS * TAPS) return;
    float total = warp_sums[0][threadIdx.x];
    for (int warp = 1; warp < WARPS; ++warp) total += warp_sums[warp][threadIdx.x];
    partial[(static_cast<int64>(split) * c.K + filter) * (TAPS * TAPS) + threadIdx.x] = total;
}

// The rows of a strip are 8 or 4, whatever the direction; at stride 2 both axes of a strip start at even positions.
template <int TAPS, int STRIDE>
struct Back {
    using Map = Reading<TAPS, 1>;
    static constexpr int VECTORS = 1;
};
template <int TAPS>
struct Back<TAPS, 2> {
    using Map = Returning<TAPS>;
    static constexpr int VECTORS = 0;
};

#define DEPTHWISE(TAPS, STRIDE, ROWS, BLOCKS)                                                                          \
    KERNEL(THREADS, BLOCKS) conv2d_forward_depthwise_k##TAPS##s##STRIDE(                                               \
        const float* x, const float* w, const float* b, float* y, ConvShape c, int relu) {                             \
        depthwise<Reading<TAPS, STRIDE>, TAPS, ROWS, STRIDE>(                                                          \
            {x, w, b, y, static_cast<int64>(c.N) * c.K, c.K, c.K / c.C, c.H, c.W, c.P, c.Q, 0, relu});                 \
    }                                                                                                                  \
    KERNEL(THREADS, BLOCKS) conv2d_backward_input_depthwise_k##TAPS##s##STRIDE(                                        \
        const float* gy, const float* w, float* gx, ConvShape c) {                                                     \
        depthwise<Back<TAPS, STRIDE>::Map, TAPS, ROWS, Back<TAPS, STRIDE>::VECTORS>(                                   \
            {gy, w, nullptr, gx, static_cast<int64>(c.N) * c.C, c.C, 1, c.P, c.Q, c.H, c.W, STRIDE == 1, 0});          \
    }

DEPTHWISE(3, 1, 8, 5)
DEPTHWISE(3, 2, 4, 5)
DEPTHWISE(5, 1, 8, 3)
DEPTHWISE(5, 2, 4, 4)
DEPTHWISE(7, 1, 4, 3)
DEPTHWISE(7, 2, 4, 3)

// Not 7×7 at stride 2: its 49 sums and the pixels they wait for spill on sm_100 and later.
#define DEPTHWISE_BACKWARD_WEIGHT(TAPS, STRIDE, BLOCKS)                                                                \
    KERNEL(THREADS, BLOCKS) conv2d_backward_weight_depthwise_k##TAPS##s##STRIDE(                                       \
        const float* x, const float* gy, float* partial, ConvShape c, int split_items) {                               \
        depthwise_backward_weight<TAPS, STRIDE, 4>(x, gy, partial, c, split_items);                                    \
    }

DEPTHWISE_BACKWARD_WEIGHT(3, 1, 4)
DEPTHWISE_BACKWARD_WEIGHT(3, 2, 3)
DEPTHWISE_BACKWARD_WEIGHT(5, 1, 3)
DEPTHWISE_BACKWARD_WEIGHT(5, 2, 3)
DEPTHWISE_BACKWARD_WEIGHT(7, 1, 3)
