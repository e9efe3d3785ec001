// Sums in a fixed order, so that they have the same bits on every run: y = scale · Σ x over the middle axis of
// x (outer, length, inner), in chunks of it: y (outer, chunks, inner) is overwritten. A long sum takes more launches,
// each over the partial sums of the one before; a thread adds at most 64 numbers one after the other, and the rest is a
// tree, so the error grows with the logarithm of the length rather than with the length.
//
//   sum_rows        inner = 1, a block for each chunk of a row
//   sum_short_rows  inner = 1, a warp for each row, which is one chunk
//   sum_columns     any inner, a block for each chunk of 32 columns
//   sum_squares     Σ x² of each of several arrays, cut into as many parts as the grid has blocks along x
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP_SIZE;

struct Value {
    static __device__ __forceinline__ float of(float x) { return x; }
};
struct Square {
    static __device__ __forceinline__ float of(float x) { return x * x; }
};

// This thread's part of Σ f(x) over x[begin, end), of which the threads of `stride` in all take four at a time.
template <class F>
__device__ __forceinline__ float sum_range(const float* x, int64 begin, int64 end, int64 thread, int64 stride) {
    float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const int64 quads = is_aligned16(x + begin) ? (end - begin) / 4 : 0;
    for (int64 i = thread; i < quads; i += stride) {
        const float4 value = load4(x + begin + 4 * i);
        sums.x += F::of(value.x);
        sums.y += F::of(value.y);
        sums.z += F::of(value.z);
        sums.w += F::of(value.w);
    }
    for (int64 i = begin + 4 * quads + thread; i < end; i += stride) sums.x += F::of(x[i]);
    return (sums.x + sums.y) + (sums.z + sums.w);
}

KERNEL(256, 4) sum_rows(const float* x, float* y, int64 length, int chunk, float scale) {
    const int64 chunks = ceil_div(length, static_cast<int64>(chunk));
    const int64 begin = blockIdx.x % chunks * chunk;
    const float* const row = x + blockIdx.x / chunks * length;
    const float part = sum_range<Value>(row, begin, min(begin + chunk, length), threadIdx.x, THREADS);
    const float total = block_reduce<Sum, THREADS>(part);
    if (threadIdx.x == 0) y[blockIdx.x] = scale * total;
}

KERNEL(256, 4) sum_short_rows(const float* x, float* y, int64 rows, int length, float scale) {
    const int64 row = static_cast<int64>(blockIdx.x) * WARPS + threadIdx.x / WARP_SIZE;
    if (row >= rows) return;
    float part = 0.0f;
    for (int i = threadIdx.x % WARP_SIZE; i < length; i += WARP_SIZE) part += x[row * length + i];
    const float total = warp_reduce<Sum>(part);
    if (threadIdx.x % WARP_SIZE == 0) y[row] = scale * total;
}

KERNEL(256, 4) sum_columns(const float* x, float* y, int64 length, int64 inner, int chunk, float scale) {
    SHARED(float, partial, [WARPS][WARP_SIZE]);
    const int64 tiles = ceil_div(inner, static_cast<int64>(WARP_SIZE));
    const int64 chunks = max(ceil_div(length, static_cast<int64>(chunk)), 1ll);  // of an empty axis one, whose sum is 0
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const int64 column = blockIdx.x % tiles * WARP_SIZE + lane;
    const int64 part = blockIdx.x / tiles;  // of outer · chunks
    const int64 begin = part % chunks * chunk, end = min(begin + chunk, length);
    const float* const plane = x + part / chunks * length * inner;
    float sum = 0.0f;
    if (column < inner) {
#pragma unroll 4
        for (int64 i = begin + warp; i < end; i += WARPS) sum += plane[i * inner + column];
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= inner) return;
    for (int other = 1; other < WARPS; ++other) sum += partial[other][lane];
    y[part * inner + column] = scale * sum;
}

// partial (arrays, gridDim.x) is overwritten; a block of blockIdx.y takes its part of that array.
KERNEL(256, 4) sum_squares(const Pointers arrays, const Sizes sizes, float* partial) {
    const int64 count = sizes.count[blockIdx.y];
    const float part = sum_range<Square>(arrays.data[blockIdx.y], 0, count, global_thread(), global_threads());
    const float total = block_reduce<Sum, THREADS>(part);
    if (threadIdx.x == 0) partial[blockIdx.y * gridDim.x + blockIdx.x] = total;
}
