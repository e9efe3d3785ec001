// Kernels with one misuse of wgmma each, which the simulator must find, and a sound one beside them.
#include "ptx_mma.cuh"
#include "ptx_wgmma.cuh"
#if __has_include("ptx_barrier.cuh")
#include "ptx_barrier.cuh"
#else
__device__ __forceinline__ void fence_async_shared() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
#endif

constexpr int TILE_WORDS = 64 * 32;  // 64 rows of 128 bytes

__device__ __forceinline__ uint64_t planted_descriptor(const void* start) { return matrix_descriptor<128>(start, 16, 1024); }

// What a kernel does between the setting and the storing of d: first and second are tiles of 64 rows of 64 bf16, a and b
// their descriptors.
#define BODY(name)                                                                                                      \
    __device__ __forceinline__ void name(const unsigned* x, float* y, uint32_t* first, uint32_t* second, float (&d)[32], \
                                         uint64_t a, uint64_t b, int warp)
#define ISSUE(a, b) wgmma<bfloat16, 64>(d, a, b, true)

BODY(sound) {
    wgmma_fence();
    ISSUE(a, b);
    wgmma_commit();
    ISSUE(a + 2, b + 2);
    wgmma_commit();
    wgmma_wait<1>();
    ISSUE(a + 4, b + 4);
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < 32; ++i) d[i] *= 2.0f;
    wgmma_fence();
    ISSUE(a + 6, b + 6);
    wgmma_commit();
    wgmma_wait<0>();
}
BODY(read_before_wait) {
    wgmma_fence();
    ISSUE(a, b);
    wgmma_commit();
    wgmma_wait<1>();
    float early[32];
    for (int i = 0; i < 32; ++i) early[i] = d[i];
    wgmma_wait<0>();
    for (int i = 0; i < 32; ++i) d[i] = early[i];
}
BODY(write_before_wait) {
    wgmma_fence();
    ISSUE(a, b);
    wgmma_commit();
    d[7] = 3.0f;
    wgmma_wait<0>();
}
BODY(no_fence) {
    ISSUE(a, b);
    wgmma_commit();
    wgmma_wait<0>();
}
BODY(no_fence_after_change) {
    wgmma_fence();
    ISSUE(a, b);
    wgmma_commit();
    wgmma_wait<0>();
    d[31] += 1.0f;
    ISSUE(a, b);
    wgmma_commit();
    wgmma_wait<0>();
}
BODY(no_commit) {
    wgmma_fence();
    ISSUE(a, b);
    wgmma_wait<0>();
}
BODY(no_wait) {
    wgmma_fence();
    ISSUE(a, b);
    wgmma_commit();
}
BODY(start_inside_pattern) {
    wgmma_fence();
    ISSUE(planted_descriptor(&first[32]), b);
}
BODY(reserved_bits) {
    wgmma_fence();
    ISSUE(a | 1ull << 46, b);
}
BODY(base_offset) {
    wgmma_fence();
    ISSUE(a, b | 1ull << 49);
}
BODY(outside_memory) {
    wgmma_fence();
    ISSUE(a, matrix_descriptor<128>(&second[0], 16, 65536));
}
BODY(past_the_array) {
    wgmma_fence();
    ISSUE(a, planted_descriptor(&second[256]));
    wgmma_commit();
    wgmma_wait<0>();
}
BODY(lanes_differ) {
    wgmma_fence();
    ISSUE(a + 2 * (threadIdx.x % 2), b);
}
BODY(warps_differ) {
    wgmma_fence();
    ISSUE(a, b + 2 * warp);
    wgmma_commit();
    wgmma_wait<0>();
}
BODY(warp_missing) {
    wgmma_fence();
    if (warp != 2) ISSUE(a, b);
    wgmma_commit();
    wgmma_wait<0>();
}
BODY(lane_missing) {
    wgmma_fence();
    if (threadIdx.x != 5) ISSUE(a, b);
    wgmma_commit();
    wgmma_wait<0>();
}
BODY(two_warps) {
    wgmma_fence();
    ISSUE(a, b);
}
BODY(other_shape) {
    wgmma_fence();
    ISSUE(a, b);
    wgmma<bfloat16, 32>(*reinterpret_cast<float(*)[16]>(&d[16]), a, b, true);
}
BODY(a_changed_before_wait) {
    uint32_t left[4] = {x[0], x[1], x[2], x[3]};
    wgmma_fence();
    wgmma_registers<bfloat16, 64>(d, left, b, true);
    wgmma_commit();
    left[2] ^= 1;
    wgmma_wait<0>();
    y[0] = static_cast<float>(left[2]);
}
BODY(a_changed_without_fence) {
    uint32_t left[4] = {x[0], x[1], x[2], x[3]};
    wgmma_fence();
    for (int k = 0; k < 2; ++k) {
        wgmma_registers<bfloat16, 64>(d, left, b, true);
        wgmma_commit();
        wgmma_wait<0>();
        left[k] ^= 1;
    }
}
BODY(overwritten_before_wait) {
    wgmma_fence();
    ISSUE(a, b);
    wgmma_commit();
    __syncthreads();
    if (threadIdx.x == 0) second[0] = 0;
    wgmma_wait<0>();
}
BODY(released_by_one_warp) {
    wgmma_fence();
    ISSUE(a, b);
    wgmma_commit();
    __syncthreads();
    if (warp == 0) wgmma_wait<0>();
    if (threadIdx.x == 0) second[0] = 0;
    if (warp != 0) wgmma_wait<0>();
}
BODY(outside_shared) {
    wgmma_fence();
    ISSUE(planted_descriptor(x), b);
}

// y (threads,32) = d of a body; the tiles come from x, `words` each.
#define PLANTED(name, threads)                                                                      \
    KERNEL(threads, 1) planted_wgmma_##name(const unsigned* x, float* y, int words) {                \
        SHARED(uint32_t, tiles, [2 * TILE_WORDS]);                                                   \
        uint32_t *const first = &tiles[0], *const second = first + TILE_WORDS;                       \
        for (int i = threadIdx.x; i < words; i += threads) first[i] = x[i], second[i] = x[words + i]; \
        fence_async_shared();                                                                        \
        __syncthreads();                                                                             \
        float d[32];                                                                                 \
        for (int i = 0; i < 32; ++i) d[i] = 1.0f;                                                    \
        name(x, y, first, second, d, planted_descriptor(first), planted_descriptor(second), threadIdx.x / 32); \
        for (int i = 0; i < 32; ++i) y[threadIdx.x * 32 + i] = d[i];                                 \
    }
PLANTED(sound, 128)
PLANTED(read_before_wait, 128)
PLANTED(write_before_wait, 128)
PLANTED(no_fence, 128)
PLANTED(no_fence_after_change, 128)
PLANTED(no_commit, 128)
PLANTED(no_wait, 128)
PLANTED(start_inside_pattern, 128)
PLANTED(reserved_bits, 128)
PLANTED(base_offset, 128)
PLANTED(outside_memory, 128)
PLANTED(past_the_array, 128)
PLANTED(lanes_differ, 128)
PLANTED(warps_differ, 128)
PLANTED(warp_missing, 128)
PLANTED(lane_missing, 128)
PLANTED(two_warps, 64)
PLANTED(other_shape, 128)
PLANTED(a_changed_before_wait, 128)
PLANTED(a_changed_without_fence, 128)
PLANTED(overwritten_before_wait, 128)
PLANTED(released_by_one_warp, 128)
PLANTED(outside_shared, 128)
