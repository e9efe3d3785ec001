// Boxes that arrive in shared memory one after the other in the same place, with a fault if `fault` is not 0.
#include "ptx_barrier.cuh"
#include "ptx_tma.cuh"

constexpr int PROXY_THREADS = 64;
constexpr int PROXY_FLOATS = 16 * 32;  // of a box
constexpr int PROXY_BYTES = PROXY_FLOATS * 4;

enum Fault { SOUND, NO_FENCE, FENCE_BEHIND_BARRIER, NO_BARRIER, NO_WAIT_FOR_EMPTY };

// y (steps,16,32) = x: what threads have read, the next load overwrites only behind their fences and a barrier.
KERNEL(PROXY_THREADS, 1) proxies_reload(TENSOR_MAP x, float* y, int steps, int fault) {
    SHARED_BOXES(char, boxes);
    const float* const tile = reinterpret_cast<const float*>(boxes);
    Barrier* const full = reinterpret_cast<Barrier*>(boxes + PROXY_BYTES);
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barrier_init_fence();
    }
    __syncthreads();
    for (int step = 0; step < steps; ++step) {
        if (threadIdx.x == 0) {
            barrier_arrive_expect(full, PROXY_BYTES);
            tma_load(boxes, x, full, {0, step * 16});
        }
        barrier_wait(full, step & 1);
        for (int i = threadIdx.x; i < PROXY_FLOATS; i += PROXY_THREADS) y[step * PROXY_FLOATS + i] = tile[i];
        if (fault != NO_FENCE && fault != FENCE_BEHIND_BARRIER) fence_async_shared();
        if (fault != NO_BARRIER) __syncthreads();
        if (fault == FENCE_BEHIND_BARRIER) fence_async_shared();
    }
}

// y (blocks,steps,16,32): the first block of each pair loads boxes for both, once both have read the one before.
CLUSTER_KERNEL(PROXY_THREADS, 1, 2) proxies_multicast(TENSOR_MAP x, float* y, int steps, int fault) {
    SHARED_BOXES(char, boxes);
    const float* const tile = reinterpret_cast<const float*>(boxes);
    Barrier* const full = reinterpret_cast<Barrier*>(boxes + PROXY_BYTES);
    Barrier* const empty = full + 1;
    const int rank = cluster_rank();
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barrier_init(empty, 2);
        barrier_init_fence();
    }
    cluster_wait();
    for (int step = 0; step < steps; ++step) {
        if (threadIdx.x == 0) {
            barrier_arrive_expect(full, PROXY_BYTES);
            if (rank == 0) {
                if (fault != NO_WAIT_FOR_EMPTY) barrier_wait(empty, step & 1 ^ 1);
                tma_load_multicast(boxes, x, full, {0, step * 16}, 3);
            }
        }
        barrier_wait(full, step & 1);
        for (int i = threadIdx.x; i < PROXY_FLOATS; i += PROXY_THREADS)
            y[(static_cast<int>(blockIdx.x) * steps + step) * PROXY_FLOATS + i] = tile[i];
        if (fault != NO_FENCE) fence_async_shared();
        __syncthreads();
        if (threadIdx.x == 0) barrier_arrive_cluster(empty, 0);
    }
    cluster_wait();
}
