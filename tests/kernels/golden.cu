// Small programs, one for each hardware primitive that the float32 kernels use, whose outputs a GPU and the simulator must
// have in common bit by bit. gpucnn.bench.golden runs them; outputs are overwritten.
#include "common.cuh"
#include "ptx.cuh"

// tile = five copies of 32 · 16 bytes, of which 0, 4, 8, 12 and 16 are read; y (640) = the tile backwards.
KERNEL(32, 1) golden_copy16(const float* x, float* y) {
    SHARED(float, tile, [640]);
    for (int i = threadIdx.x; i < 640; i += 32) tile[i] = -1.0f;
    __syncthreads();
    for (int part = 0; part < 5; ++part) {
        const int start = (part * 32 + threadIdx.x) * 4;
        copy_async16(&tile[start], x + start, part * 4);
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    for (int i = threadIdx.x; i < 640; i += 32) y[i] = tile[639 - i];
}

// As golden_copy16 with 128 copies of 4 bytes, of which every third is a zero.
KERNEL(32, 1) golden_copy4(const float* x, float* y) {
    SHARED(float, tile, [128]);
    for (int i = threadIdx.x; i < 128; i += 32) tile[i] = -1.0f;
    __syncthreads();
    for (int i = threadIdx.x; i < 128; i += 32) copy_async4(&tile[i], x + i, i % 3 != 0);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    for (int i = threadIdx.x; i < 128; i += 32) y[i] = tile[127 - i];
}

// A pipeline of three stages over `tiles` tiles of 64 values: y = each tile backwards, plus its number.
KERNEL(64, 1) golden_copy_groups(const float* x, float* y, int tiles) {
    SHARED(float, ring, [3][64]);
    for (int tile = 0; tile < 2; ++tile) {
        if (tile < tiles) copy_async4(&ring[tile][threadIdx.x], x + tile * 64 + threadIdx.x, true);
        copy_async_commit();
    }
    for (int tile = 0; tile < tiles; ++tile) {
        copy_async_wait<1>();
        __syncthreads();
        const int next = tile + 2;
        if (next < tiles) copy_async4(&ring[next % 3][threadIdx.x], x + next * 64 + threadIdx.x, true);
        copy_async_commit();
        y[tile * 64 + threadIdx.x] = ring[tile % 3][63 - threadIdx.x] + static_cast<float>(tile);
    }
}

// For widths 32, 16, …, 2 and amounts 0 … 31: a row each of shuffles by xor, down, up, and by index; y (5, 32, 4, 32).
KERNEL(32, 1) golden_shuffle(const int* x, int* y) {
    const int value = x[threadIdx.x];
    int* row = y + threadIdx.x;
    for (int width = 32; width > 1; width /= 2)
        for (int amount = 0; amount < 32; ++amount, row += 4 * 32) {
            row[0] = __shfl_xor_sync(ALL_LANES, value, amount, width);
            row[32] = __shfl_down_sync(ALL_LANES, value, amount, width);
            row[64] = __shfl_up_sync(ALL_LANES, value, amount, width);
            row[96] = __shfl_sync(ALL_LANES, value, amount, width);
        }
}

// Bit `lane` of words[i] is the lane's predicate: ballot, any, all over the warp, then over its first half, where the
// others are done; y (count, 6, 32), in which the second half of the last three rows is 0.
KERNEL(32, 1) golden_vote(const unsigned* words, unsigned* y, int count) {
    for (int i = 0; i < count; ++i) {
        const bool holds = words[i] >> threadIdx.x & 1;
        unsigned* const row = y + i * 192 + threadIdx.x;
        row[0] = __ballot_sync(ALL_LANES, holds);
        row[32] = __any_sync(ALL_LANES, holds) ? 1 : 0;
        row[64] = __all_sync(ALL_LANES, holds) ? 1 : 0;
        row[96] = row[128] = row[160] = 0;
    }
    if (threadIdx.x >= 16) return;
    for (int i = 0; i < count; ++i) {
        const bool holds = words[i] >> threadIdx.x & 1;
        unsigned* const row = y + i * 192 + threadIdx.x;
        row[96] = __ballot_sync(0x0000ffffu, holds);
        row[128] = __any_sync(0x0000ffffu, holds) ? 1 : 0;
        row[160] = __all_sync(0x0000ffffu, holds) ? 1 : 0;
    }
}

// y = x in fours from the end, each four backwards: x backwards, by 16-byte loads and stores.
KERNEL(64, 1) golden_vector(const float* x, float* y, int fours) {
    for (int i = threadIdx.x; i < fours; i += 64) {
        const float4 v = load4(x + 4 * i);
        store4(y + 4 * (fours - 1 - i), make_float4(v.w, v.z, v.y, v.x));
    }
}

// Sums and maxima over warps, whose last bits tell the order of the additions.
KERNEL(96, 1) golden_warp_reduce(const float* x, float* sums, float* maxima) {
    sums[threadIdx.x] = warp_reduce<Sum>(x[threadIdx.x]);
    maxima[threadIdx.x] = warp_reduce<Maximum>(x[threadIdx.x]);
}

#define GOLDEN_BLOCK_REDUCE(THREADS)                                                                     \
    KERNEL(THREADS, 1) golden_block_reduce_##THREADS(const float* x, float* sums, float* maxima) {       \
        const int64 i = global_thread();                                                                 \
        sums[i] = block_reduce<Sum, THREADS>(x[i]);                                                      \
        maxima[i] = block_reduce<Maximum, THREADS>(x[i]);                                                \
    }
GOLDEN_BLOCK_REDUCE(32)
GOLDEN_BLOCK_REDUCE(96)
GOLDEN_BLOCK_REDUCE(256)
GOLDEN_BLOCK_REDUCE(1024)

// 1 where a maximum over the warp with a NaN in lane `i` of the i-th row of 32 is NaN.
KERNEL(32, 1) golden_maximum_nan(const float* x, int* y) {
    for (int i = 0; i < 32; ++i) {
        const float found = warp_reduce<Maximum>(static_cast<int>(threadIdx.x) == i ? NAN : x[threadIdx.x]);
        y[i * 32 + threadIdx.x] = found != found ? 1 : 0;
    }
}

KERNEL(64, 1) golden_multiply_high(const unsigned* a, const unsigned* b, unsigned* y, int count) {
    for (int i = threadIdx.x; i < count; i += 64) y[i] = __umulhi(a[i], b[i]);
}

// One rounding on a GPU, two in the simulator: recorded, and known to differ.
KERNEL(64, 1) golden_multiply_add(const float* a, const float* b, const float* c, float* y, int count) {
    for (int i = threadIdx.x; i < count; i += 64) y[i] = multiply_add(a[i], b[i], c[i]);
}
