// Barriers of Hopper's asynchronous copies and products, each primitive with two bodies: PTX on the device, its meaning in
// the simulator (csrc/simulator/barrier.cpp). For sm_90 alone; elsewhere the functions do nothing.
//
// An mbarrier counts arrivals, and bytes that copies still owe. A phase completes at the instant when both counts are 0;
// then the next begins with all arrivals pending. A wait names its phase by parity: on a new barrier parity 1 passes at
// once, as if a phase before the first had completed. Barriers stand behind the tiles in dynamic shared memory.
#pragma once
#include "common.cuh"

#if defined(__CUDACC__)
#define GPUCNN_BARRIERS (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1000)
#endif

struct alignas(8) Barrier {
    uint64_t state;
};

#if defined(__CUDACC__)
__device__ __forceinline__ unsigned barrier_address(Barrier* barrier) {
    return static_cast<unsigned>(__cvta_generic_to_shared(barrier));
}
#endif

// By one thread; then barrier_init_fence, and a barrier of the block before others use it.
__device__ __forceinline__ void barrier_init(Barrier* barrier, int arrivals) {
#if !defined(__CUDACC__)
    simulator::barrier_init(barrier, arrivals, {__FILE__, __LINE__});
#elif GPUCNN_BARRIERS
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier_address(barrier)), "r"(arrivals) : "memory");
#endif
}
__device__ __forceinline__ void barrier_init_fence() {
#if defined(__CUDACC__) && GPUCNN_BARRIERS
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// One arrival: what the thread did before is seen by those who have waited for the phase.
__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
#if !defined(__CUDACC__)
    simulator::barrier_arrive(barrier, 0, {__FILE__, __LINE__});
#elif GPUCNN_BARRIERS
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier_address(barrier)) : "memory");
#endif
}
// The same, and the phase also waits for `bytes` of copies.
__device__ __forceinline__ void barrier_arrive_expect(Barrier* barrier, int bytes) {
#if !defined(__CUDACC__)
    simulator::barrier_arrive(barrier, bytes, {__FILE__, __LINE__});
#elif GPUCNN_BARRIERS
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier_address(barrier)), "r"(bytes)
                 : "memory");
#endif
}

// Waits until the phase of this parity has completed; only the phase under way or the one before may be asked for.
__device__ __forceinline__ void barrier_wait(Barrier* barrier, int parity) {
#if !defined(__CUDACC__)
    simulator::barrier_wait(barrier, parity, {__FILE__, __LINE__});
#elif GPUCNN_BARRIERS
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(barrier_address(barrier)),
        "r"(parity)
        : "memory");
#endif
}

// What the thread has written to shared memory may be read by copies and products of the hardware (the "async proxy"),
// once a barrier orders them after it.
__device__ __forceinline__ void fence_async_shared() {
#if !defined(__CUDACC__)
    simulator::fence_async();
#elif GPUCNN_BARRIERS
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// A barrier of `threads` threads of the block, whole warps; its number is 1 to 15 (0 is that of __syncthreads).
__device__ __forceinline__ void named_barrier_wait(int number, int threads) {
#if !defined(__CUDACC__)
    simulator::named_barrier_wait(number, threads, {__FILE__, __LINE__});
#else
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
#endif
}

// A warpgroup gives registers back, or takes some that others gave: from then on each of its threads has COUNT.
template <int COUNT>
__device__ __forceinline__ void give_registers() {
    static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "what setmaxnreg takes");
#if !defined(__CUDACC__)
    simulator::set_registers(COUNT, false, {__FILE__, __LINE__});
#elif GPUCNN_BARRIERS && defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
    static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "what setmaxnreg takes");
#if !defined(__CUDACC__)
    simulator::set_registers(COUNT, true, {__FILE__, __LINE__});
#elif GPUCNN_BARRIERS && defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
