// The tensor memory accelerator (TMA) of sm_90: one thread asks for the copy of a whole box of a tensor between global
// and shared memory. Each primitive has two bodies: PTX on the device, its meaning in the simulator; elsewhere nothing.
//
// A tensor map says which array, box and swizzle (gpucnn.launch.tensor_map). Coordinates are in elements, those of the
// innermost dimension first. Loads may start before the array or reach past it: what is outside arrives as zeros (or
// NaN), and always the whole box's bytes are counted at the barrier. Stores start inside and leave out what is outside.
// A swizzle exchanges groups of 16 bytes by the *absolute* shared address, so boxes must start where its pattern does:
// at multiples of 8 times its width; without a swizzle at multiples of 128. SHARED_BOXES(T, name) is DYNAMIC_SHARED at
// a multiple of 1024.
//
// In front of a store, the threads that wrote the box run fence_async_shared() and then meet at a barrier. Groups of
// stores belong to the thread that asked for them: it commits, and it waits before the block ends.
#pragma once
#include "common.cuh"

#if defined(__CUDACC__)
#define GPUCNN_TMA (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1000)
#define TENSOR_MAP const __grid_constant__ TensorMap
extern __shared__ __align__(1024) unsigned char shared_boxes[];
#define SHARED_BOXES(T, name) T* name = reinterpret_cast<T*>(shared_boxes)
#else
#define TENSOR_MAP const TensorMap&
#define SHARED_BOXES(T, name) T* name = static_cast<T*>(simulator::shared_memory(nullptr, 0, 1024))
#endif

struct Barrier;  // ptx_barrier.cuh

// 128 bytes by value, as the driver encodes them; a kernel declares the parameter `TENSOR_MAP name`.
struct alignas(64) TensorMap {
    uint64_t words[16];
};

#if defined(__CUDACC__)
#define TMA_SHARED(pointer) static_cast<unsigned>(__cvta_generic_to_shared(pointer))
#define TMA_LOAD(rank, mode) \
    "cp.async.bulk.tensor." rank ".shared::cluster.global." mode ".mbarrier::complete_tx::bytes"
#define TMA_MAP(map) reinterpret_cast<uint64_t>(&(map))
#endif

// Where a byte of a box lies: `offset` from an address at which the pattern starts, in rows of BYTES (128, 64, 32; 16
// means no swizzle). The formula serves loads, stores and wgmma.
template <int BYTES>
__host__ __device__ constexpr unsigned swizzle(unsigned offset) {
    static_assert(BYTES == 128 || BYTES == 64 || BYTES == 32 || BYTES == 16, "widths of a swizzle");
    return offset ^ ((offset >> 7 & (BYTES / 16 - 1)) << 4);
}

// Fetches the map itself ahead of its first use.
__device__ __forceinline__ void tma_prefetch(const TensorMap& map) {
#if !defined(__CUDACC__)
    (void)map;
#elif GPUCNN_TMA
    asm volatile("prefetch.tensormap [%0];" ::"l"(TMA_MAP(map)) : "memory");
#endif
}

// The box that starts at `at`, to `shared`; its bytes are counted at `barrier`, which makes them visible to who waits.
template <int RANK>
__device__ __forceinline__ void tma_load(void* shared, const TensorMap& map, Barrier* barrier, const int (&at)[RANK]) {
    static_assert(RANK >= 1 && RANK <= 5, "ranks of a tensor map");
#if !defined(__CUDACC__)
    simulator::tma_load(shared, &map, barrier, RANK, at, nullptr, 0);
#elif GPUCNN_TMA
    const unsigned destination = TMA_SHARED(shared), count = TMA_SHARED(barrier);
    if constexpr (RANK == 1)
        asm volatile(TMA_LOAD("1d", "tile") " [%0], [%1, {%3}], [%2];"
                     ::"r"(destination), "l"(TMA_MAP(map)), "r"(count), "r"(at[0]) : "memory");
    else if constexpr (RANK == 2)
        asm volatile(TMA_LOAD("2d", "tile") " [%0], [%1, {%3, %4}], [%2];"
                     ::"r"(destination), "l"(TMA_MAP(map)), "r"(count), "r"(at[0]), "r"(at[1]) : "memory");
    else if constexpr (RANK == 3)
        asm volatile(TMA_LOAD("3d", "tile") " [%0], [%1, {%3, %4, %5}], [%2];"
                     ::"r"(destination), "l"(TMA_MAP(map)), "r"(count), "r"(at[0]), "r"(at[1]), "r"(at[2]) : "memory");
    else if constexpr (RANK == 4)
        asm volatile(TMA_LOAD("4d", "tile") " [%0], [%1, {%3, %4, %5, %6}], [%2];"
                     ::"r"(destination), "l"(TMA_MAP(map)), "r"(count), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
                     : "memory");
    else
        asm volatile(TMA_LOAD("5d", "tile") " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];"
                     ::"r"(destination), "l"(TMA_MAP(map)), "r"(count), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]),
                     "r"(at[4]) : "memory");
#endif
}

// The same to every block of the cluster whose bit of `blocks` is set: to the same place in its shared memory, counted
// at its own barrier in the same place.
template <int RANK>
__device__ __forceinline__ void tma_load_multicast(void* shared, const TensorMap& map, Barrier* barrier,
                                                   const int (&at)[RANK], unsigned short blocks) {
    static_assert(RANK >= 2 && RANK <= 5, "ranks that multicasts are written for");
#if !defined(__CUDACC__)
    simulator::tma_load(shared, &map, barrier, RANK, at, nullptr, blocks);
#elif GPUCNN_TMA
    const unsigned destination = TMA_SHARED(shared), count = TMA_SHARED(barrier);
    if constexpr (RANK == 2)
        asm volatile(TMA_LOAD("2d", "tile") ".multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;"
                     ::"r"(destination), "l"(TMA_MAP(map)), "r"(count), "h"(blocks), "r"(at[0]), "r"(at[1]) : "memory");
    else if constexpr (RANK == 3)
        asm volatile(TMA_LOAD("3d", "tile") ".multicast::cluster [%0], [%1, {%4, %5, %6}], [%2], %3;"
                     ::"r"(destination), "l"(TMA_MAP(map)), "r"(count), "h"(blocks), "r"(at[0]), "r"(at[1]), "r"(at[2])
                     : "memory");
    else if constexpr (RANK == 4)
        asm volatile(TMA_LOAD("4d", "tile") ".multicast::cluster [%0], [%1, {%4, %5, %6, %7}], [%2], %3;"
                     ::"r"(destination), "l"(TMA_MAP(map)), "r"(count), "h"(blocks), "r"(at[0]), "r"(at[1]), "r"(at[2]),
                     "r"(at[3]) : "memory");
    else
        asm volatile(TMA_LOAD("5d", "tile") ".multicast::cluster [%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;"
                     ::"r"(destination), "l"(TMA_MAP(map)), "r"(count), "h"(blocks), "r"(at[0]), "r"(at[1]), "r"(at[2]),
                     "r"(at[3]), "r"(at[4]) : "memory");
#endif
}

// Pixels of a channels-last image for one tap of a filter, by a map of the kind im2col, as [pixel][channel]: `at` is
// {channel, w, h, n} of the first pixel, which goes on from there as the map's corners and strides say, over rows and
// images; (offset_w, offset_h), from 0 to 255, is added to where each pixel is read.
__device__ __forceinline__ void tma_load_im2col(void* shared, const TensorMap& map, Barrier* barrier,
                                                const int (&at)[4], int offset_w, int offset_h) {
#if !defined(__CUDACC__)
    const int offsets[2] = {offset_w, offset_h};
    simulator::tma_load(shared, &map, barrier, 4, at, offsets, 0);
#elif GPUCNN_TMA
    asm volatile(TMA_LOAD("4d", "im2col") " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};"
                 ::"r"(TMA_SHARED(shared)), "l"(TMA_MAP(map)), "r"(TMA_SHARED(barrier)), "r"(at[0]), "r"(at[1]),
                 "r"(at[2]), "r"(at[3]), "h"(static_cast<unsigned short>(offset_w)),
                 "h"(static_cast<unsigned short>(offset_h)) : "memory");
#endif
}
__device__ __forceinline__ void tma_load_im2col_multicast(void* shared, const TensorMap& map, Barrier* barrier,
                                                          const int (&at)[4], int offset_w, int offset_h,
                                                          unsigned short blocks) {
#if !defined(__CUDACC__)
    const int offsets[2] = {offset_w, offset_h};
    simulator::tma_load(shared, &map, barrier, 4, at, offsets, blocks);
#elif GPUCNN_TMA
    asm volatile(TMA_LOAD("4d", "im2col") ".multicast::cluster [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;"
                 ::"r"(TMA_SHARED(shared)), "l"(TMA_MAP(map)), "r"(TMA_SHARED(barrier)), "r"(at[0]), "r"(at[1]),
                 "r"(at[2]), "r"(at[3]), "h"(static_cast<unsigned short>(offset_w)),
                 "h"(static_cast<unsigned short>(offset_h)), "h"(blocks) : "memory");
#endif
}

// The box in `shared` to where it starts in the array, `at`, which must not be negative.
template <int RANK>
__device__ __forceinline__ void tma_store(const TensorMap& map, const void* shared, const int (&at)[RANK]) {
    static_assert(RANK >= 1 && RANK <= 5, "ranks of a tensor map");
#if !defined(__CUDACC__)
    simulator::tma_store(&map, shared, RANK, at);
#elif GPUCNN_TMA
    const unsigned source = TMA_SHARED(shared);
    if constexpr (RANK == 1)
        asm volatile("cp.async.bulk.tensor.1d.global.shared::cta.tile.bulk_group [%0, {%2}], [%1];"
                     ::"l"(TMA_MAP(map)), "r"(source), "r"(at[0]) : "memory");
    else if constexpr (RANK == 2)
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];"
                     ::"l"(TMA_MAP(map)), "r"(source), "r"(at[0]), "r"(at[1]) : "memory");
    else if constexpr (RANK == 3)
        asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];"
                     ::"l"(TMA_MAP(map)), "r"(source), "r"(at[0]), "r"(at[1]), "r"(at[2]) : "memory");
    else if constexpr (RANK == 4)
        asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
                     ::"l"(TMA_MAP(map)), "r"(source), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];"
                     ::"l"(TMA_MAP(map)), "r"(source), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
                     : "memory");
#endif
}

// Ends a group of this thread's stores.
__device__ __forceinline__ void tma_store_commit() {
#if !defined(__CUDACC__)
    simulator::tma_store_commit();
#elif GPUCNN_TMA
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

// Waits until at most GROUPS of this thread's groups have still to read shared memory, which may then be written anew.
template <int GROUPS>
__device__ __forceinline__ void tma_store_wait_read() {
#if !defined(__CUDACC__)
    simulator::tma_store_wait(GROUPS, true);
#elif GPUCNN_TMA
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(GROUPS) : "memory");
#endif
}
// The same until they are written.
template <int GROUPS>
__device__ __forceinline__ void tma_store_wait() {
#if !defined(__CUDACC__)
    simulator::tma_store_wait(GROUPS, false);
#elif GPUCNN_TMA
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}
