// Barriers of Hopper kernels (sm_90 and up), each primitive with two bodies: PTX on the device, its meaning in the
// simulator. On older architectures the functions do nothing: launches are refused by the operations that use them.
//
// An mbarrier in shared memory counts arrivals and bytes. Its phases are numbered from 0; a phase ends when all its
// arrivals have come and all bytes that were announced for it have been written, and the next begins at once with the
// same number of arrivals to come. A wait names the parity of the phase that must have ended: on a fresh barrier, a wait
// for parity 1 passes. In a ring of S stages, iteration k uses stage k % S; consumers wait for parity k / S & 1 of the
// stage's `full` barrier, the producer for the other parity of its `empty` barrier.
//
//     if (threadIdx.x == 0) {
//         barrier_init(&full[s], 1), barrier_init(&empty[s], consumers);   // of all stages
//         barrier_init_fence();
//     }
//     __syncthreads();
#pragma once
#include "common.cuh"

#if defined(__CUDACC__)
#define GPUCNN_BARRIERS (__CUDA_ARCH__ >= 900)
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GPUCNN_SETMAXNREG 1
#else
#define GPUCNN_SETMAXNREG 0
#endif
#endif

struct alignas(8) Barrier {  // in shared memory; touched by the functions below only
    uint64_t state;
};

#if defined(__CUDACC__)
__device__ __forceinline__ unsigned barrier_address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}
#else
// Before any launch; then mode "race" keeps clocks.
__attribute__((constructor)) SIMULATOR_INTERNAL static void note_barriers() { simulator::uses_barriers = true; }
#endif

// Phase 0 begins, and `arrivals` end each phase. One thread does it; the block's others may use it after
// barrier_init_fence by that thread and __syncthreads (in a cluster: cluster_wait).
__device__ __forceinline__ void barrier_init(Barrier* barrier, int arrivals) {
#if !defined(__CUDACC__)
    simulator::barrier_init(barrier, arrivals, {__FILE__, __LINE__});
#elif GPUCNN_BARRIERS
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier_address(barrier)), "r"(arrivals) : "memory");
#endif
}
// Makes initialised barriers known to TMA and to the blocks of the cluster.
__device__ __forceinline__ void barrier_init_fence() {
#if !defined(__CUDACC__)
    simulator::barrier_init_fence();
#elif GPUCNN_BARRIERS
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// The end of a barrier's life: its memory may be used for other things, or initialised again.
__device__ __forceinline__ void barrier_invalidate(Barrier* barrier) {
#if !defined(__CUDACC__)
    simulator::barrier_invalidate(barrier, {__FILE__, __LINE__});
#elif GPUCNN_BARRIERS
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(barrier_address(barrier)) : "memory");
#endif
}

// One arrival; what this thread did before is visible to those that wait for the phase.
__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
#if !defined(__CUDACC__)
    simulator::barrier_arrive(barrier, 0, {__FILE__, __LINE__});
#elif GPUCNN_BARRIERS
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier_address(barrier)) : "memory");
#endif
}
// One arrival that announces `bytes`, which asynchronous copies will bring in this phase.
__device__ __forceinline__ void barrier_arrive_expect(Barrier* barrier, int bytes) {
#if !defined(__CUDACC__)
    simulator::barrier_arrive(barrier, bytes, {__FILE__, __LINE__});
#elif GPUCNN_BARRIERS
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier_address(barrier)), "r"(bytes)
                 : "memory");
#endif
}
// One arrival at the barrier in the same place of another block of the cluster.
__device__ __forceinline__ void barrier_arrive_cluster(Barrier* barrier, int block) {
#if !defined(__CUDACC__)
    simulator::barrier_arrive_cluster(barrier, block, {__FILE__, __LINE__});
#elif GPUCNN_BARRIERS
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(barrier_address(barrier)),
        "r"(block)
        : "memory");
#endif
}

// Whether the phase of that parity has ended: the current one, or the one before it; older ones must not be asked for.
// The hardware may let some time pass before it says no.
__device__ __forceinline__ bool barrier_try_wait(Barrier* barrier, int parity) {
#if !defined(__CUDACC__)
    return simulator::barrier_test(barrier, parity, {__FILE__, __LINE__});
#elif GPUCNN_BARRIERS
    unsigned done;
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.b32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(barrier_address(barrier)), "r"(parity)
        : "memory");
    return done != 0;
#else
    return true;
#endif
}
__device__ __forceinline__ void barrier_wait(Barrier* barrier, int parity) {
#if !defined(__CUDACC__)
    simulator::barrier_wait(barrier, parity, {__FILE__, __LINE__});
#else
    while (!barrier_try_wait(barrier, parity)) {
    }
#endif
}

// What this thread wrote to shared memory, or read there, is over for TMA and wgmma, once a barrier orders them after it.
__device__ __forceinline__ void fence_async_shared() {
#if !defined(__CUDACC__)
    simulator::fence_async();
#elif GPUCNN_BARRIERS
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Waits until `threads` threads, whole warps, have come to barrier `number`: 1 to 15, 0 being __syncthreads' own.
__device__ __forceinline__ void named_barrier_wait(int number, int threads) {
#if !defined(__CUDACC__)
    simulator::named_barrier_wait(number, threads, {__FILE__, __LINE__});
#else
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
#endif
}

// A warpgroup gets REGISTERS a thread, and waits until the block's others have given up as many; or keeps only so many.
// They need an entry count: KERNEL(threads, 1).
template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256, "multiples of 8");
#if !defined(__CUDACC__)
    simulator::set_registers(REGISTERS, true, {__FILE__, __LINE__});
#elif GPUCNN_SETMAXNREG
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}
template <int REGISTERS>
__device__ __forceinline__ void give_registers() {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256, "multiples of 8");
#if !defined(__CUDACC__)
    simulator::set_registers(REGISTERS, false, {__FILE__, __LINE__});
#elif GPUCNN_SETMAXNREG
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

// The block's position in its cluster; 0 without one.
__device__ __forceinline__ int cluster_rank() {
#if !defined(__CUDACC__)
    return simulator::cluster_rank();
#elif GPUCNN_BARRIERS
    unsigned rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return static_cast<int>(rank);
#else
    return 0;
#endif
}
// All threads of all blocks of the cluster wait for each other.
__device__ __forceinline__ void cluster_wait() {
#if !defined(__CUDACC__)
    simulator::cluster_wait({__FILE__, __LINE__});
#elif GPUCNN_BARRIERS
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}
