// Kernels with one fault each, which the simulator must find, and sound ones beside them, which it must not blame.
#include "common.cuh"
#include "ptx.cuh"

KERNEL(64, 1) planted_sound(const float* x, float* y, int n) {
    SHARED(float, tile, [64]);
    const int i = blockIdx.x * 64 + threadIdx.x;
    tile[threadIdx.x] = i < n ? x[i] : 0.0f;
    __syncthreads();
    if (i < n) y[i] = tile[63 - threadIdx.x];
}

KERNEL(64, 1) planted_read_past_end(const float* x, float* y, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) y[i] = x[i + 1];
}

KERNEL(64, 1) planted_write_past_end(const float* x, float* y, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i <= n) y[i] = x[0];
}

KERNEL(64, 1) planted_write_before_begin(const float* x, float* y, int n) { y[static_cast<int>(threadIdx.x) - 1] = x[0]; }

KERNEL(64, 1) planted_write_to_const(const float* x, float* y, int n) { const_cast<float*>(x)[threadIdx.x] = 1.0f; }

KERNEL(64, 1) planted_shared_past_end(const float* x, float* y, int n) {
    SHARED(float, tile, [64]);
    SHARED(float, after, [64]);
    after[threadIdx.x] = 0.0f;
    float* const first = tile;
    first[threadIdx.x + n] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = first[threadIdx.x] + after[threadIdx.x];
}

KERNEL(64, 1) planted_index_outside_array(const float* x, float* y, int n) {
    float values[4] = {};
    for (int i = 0; i < 4 + n; ++i) values[i] = x[i];
    y[threadIdx.x] = values[threadIdx.x % 4];
}

KERNEL(64, 1) planted_no_barrier_before_read(const float* x, float* y, int n) {
    SHARED(float, tile, [64]);
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

KERNEL(64, 1) planted_no_barrier_after_read(const float* x, float* y, int n) {
    SHARED(float, tile, [64]);
    for (int round = 0; round < 3; ++round) {
        tile[threadIdx.x] = x[threadIdx.x] + round;
        __syncthreads();
        y[threadIdx.x] = tile[63 - threadIdx.x];
    }
}

KERNEL(64, 1) planted_two_writers(const float* x, float* y, int n) {
    SHARED(float, tile, [32]);
    tile[threadIdx.x / 2] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x / 2];
}

KERNEL(64, 1) planted_uninitialised(const float* x, float* y, int n) {
    SHARED(float, tile, [65]);
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x + 1];
}

KERNEL(64, 1) planted_blocks_share_output(const float* x, float* y, int n) {
    if (threadIdx.x == 0) y[0] = y[0] + x[blockIdx.x];
}

KERNEL(64, 1) planted_divergent_barrier(const float* x, float* y, int n) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    y[threadIdx.x] = x[threadIdx.x];
}

KERNEL(64, 1) planted_early_exit(const float* x, float* y, int n) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}

KERNEL(64, 1) planted_lane_missing(const float* x, float* y, int n) {
    float value = x[threadIdx.x];
    if (threadIdx.x % 32 != 7) value = __shfl_xor_sync(ALL_LANES, value, 1);
    y[threadIdx.x] = value;
}

KERNEL(64, 1) planted_source_outside_mask(const float* x, float* y, int n) {
    float value = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) value = __shfl_sync(0xffffu, value, 20);
    y[threadIdx.x] = value;
}

KERNEL(64, 1) planted_misaligned(const float* x, float* y, int n) { store4(y + 4 * (threadIdx.x / 8), load4(x + n)); }

KERNEL(64, 1) planted_overflow(const float* x, float* y, int n) {
    const int big = 2147483647 - 64 + n;
    y[threadIdx.x] = static_cast<float>(big + static_cast<int>(threadIdx.x)) + x[0];
}

KERNEL(64, 1) planted_division_by_zero(const float* x, float* y, int n) { y[threadIdx.x] = x[64 / (n - n)]; }

KERNEL(64, 1) planted_wild_address(const float* x, float* y, int n) { y[threadIdx.x] = x[int64(n) << 40]; }

KERNEL(64, 1) planted_copy_not_awaited(const float* x, float* y, int n) {
    SHARED(float, tile, [64]);
    copy_async4(&tile[threadIdx.x], &x[threadIdx.x], true);
    copy_async_commit();
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

KERNEL(64, 1) planted_copy_awaited_alone(const float* x, float* y, int n) {
    SHARED(float, tile, [64]);
    copy_async4(&tile[threadIdx.x], &x[threadIdx.x], true);
    copy_async_commit();
    copy_async_wait<0>();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

KERNEL(64, 1) planted_copy_wrong_group(const float* x, float* y, int n) {
    SHARED(float, tile, [2][64]);
    for (int stage = 0; stage < 2; ++stage) {
        copy_async4(&tile[stage][threadIdx.x], &x[threadIdx.x], true);
        copy_async_commit();
    }
    copy_async_wait<1>();
    __syncthreads();
    y[threadIdx.x] = tile[1][63 - threadIdx.x];
}

KERNEL(64, 1) planted_copy_sound(const float* x, float* y, int n) {
    SHARED(float, tile, [64]);
    copy_async4(&tile[threadIdx.x], &x[threadIdx.x], static_cast<int>(threadIdx.x) < n);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

KERNEL(96, 1) planted_warp_sums(const float* x, float* y, int n) {
    y[threadIdx.x] = block_reduce<Sum, 96>(x[threadIdx.x]);
    const unsigned votes = __ballot_sync(ALL_LANES, threadIdx.x % 3 == 0);
    if (threadIdx.x == 0) y[0] += static_cast<float>(__popc(votes));
}

// Bytes, sectors and passes that can be counted by hand.
KERNEL(32, 1) planted_counted(const float* x, float* y, int n) {
    SHARED(float, tile, [32 * 32]);
    const int lane = threadIdx.x;
    tile[lane * 32] = x[lane * 8];                    // 32 sectors; 32 passes
    __syncthreads();
    y[lane] = multiply_add(tile[lane * 32], 2.0f, 1.0f);  // 4 sectors
    if (lane < 16) y[lane + 32] = x[lane];            // 2 sectors, half a warp
}

KERNEL(2048, 1) planted_too_many_threads(const float* x, float* y, int n) { y[threadIdx.x] = x[threadIdx.x]; }

// Halves of a warp in operations of their own, one half two of them, then all lanes together.
KERNEL(64, 1) planted_half_warps(const float* x, float* y, int n) {
    float value = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) {
        value += __shfl_xor_sync(0xffffu, value, 1);
        value += __any_sync(0xffffu, value > 1e6f) ? 1.0f : 0.0f;
    } else {
        value += __popc(__ballot_sync(0xffff0000u, threadIdx.x % 2 == 0));
    }
    y[threadIdx.x] = value + __shfl_sync(ALL_LANES, value, 31);
}

KERNEL(64, 1) planted_different_operations(const float* x, float* y, int n) {
    float value = x[threadIdx.x];
    if (threadIdx.x % 32 < 16)
        value += __shfl_xor_sync(ALL_LANES, value, 1);
    else
        value += __popc(__ballot_sync(ALL_LANES, true));
    y[threadIdx.x] = value;
}

KERNEL(64, 1) planted_masks_that_differ(const float* x, float* y, int n) {
    const float value = x[threadIdx.x];
    y[threadIdx.x] = __shfl_sync(threadIdx.x % 32 < 16 ? 0xffffu : ALL_LANES, value, 0);
    __syncthreads();
}
