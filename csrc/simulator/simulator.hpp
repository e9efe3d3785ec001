// What a kernel sees when it is compiled as C++ for the simulator: CUDA's names, with their meaning on one CPU core.
//
// One block runs at a time. Each of its threads is a fiber that runs until it waits: at a barrier, or in a warp operation
// for the other lanes. Whoever arrives last continues, so between two waits a thread is never interrupted.
#pragma once
#include <math.h>
#include <string.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))

// The simulator's own memory accesses are not the kernel's: no check sees them.
#define SIMULATOR_INTERNAL __attribute__((no_sanitize("thread", "address", "undefined")))

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace simulator {

struct Place {
    const char* file;
    int line;
};

// Of the block and thread that run now; the scheduler sets them.
extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;
extern int lane;

[[noreturn]] void fail(const char* kind, const char* message, Place place);

// Memory of `bytes` in the block's shared memory, the same for every thread that asks with this key; filled with 0xFF
// at the block's start. A null key is the dynamic shared memory of the launch.
void* shared_memory(const void* key, size_t bytes, size_t alignment);

void block_barrier(Place place);

// All lanes of `mask` bring an argument; the last to arrive runs `operation` on the arguments of all (null for lanes
// outside the mask) while the others wait.
using Operation = void (*)(void* const* arguments, uint32_t mask);
void warp_operation(uint32_t mask, void* argument, Operation operation, Place place);

// cp.async: `bytes` to shared memory, of which the first `source_bytes` come from `source` and the rest are zeros.
void copy_async(void* destination, const void* source, int bytes, int source_bytes, Place place);
void copy_async_commit();
void copy_async_wait(int groups_in_flight);

// Barriers in shared memory (mbarrier) and others of Hopper kernels; kernels/ptx_barrier.cuh says what they mean.
extern bool uses_barriers;  // whether this library's kernels include that file
void barrier_init(void* barrier, int arrivals, Place place);
void barrier_init_fence();
void barrier_invalidate(void* barrier, Place place);
void barrier_arrive(void* barrier, int bytes, Place place);  // bytes: that the phase expects beside
void barrier_arrive_cluster(void* barrier, int rank, Place place);
bool barrier_test(void* barrier, int parity, Place place);
void barrier_wait(void* barrier, int parity, Place place);
void named_barrier_wait(int number, int threads, Place place);
void fence_async();
void set_registers(int count, bool takes, Place place);
int cluster_rank();
void cluster_wait(Place place);

void count_flops(int count);

// mma.sync, by all lanes of a warp: d (16,8) += a (16,terms) · b (terms,8), each lane with its registers of the matrices.
enum class Format { TF32, BF16, F16 };
void multiply_matrices(Format format, int terms, const uint32_t* a, const uint32_t* b, float* d, Place place);
// TMA: a box of `map` to shared memory, counted at `barrier`, or with offsets by im2col; to the blocks of a cluster in
// `blocks`, or to the own one if it is 0. And from shared memory, in groups of each thread.
void tma_load(void* shared, const void* map, void* barrier, int rank, const int* at, const int* offsets, unsigned blocks);
void tma_store(const void* map, const void* shared, int rank, const int* at);
void tma_store_commit();
void tma_store_wait(int groups_in_flight, bool read_only);

// ldmatrix: every lane brings a row of eight halves and gets its element pairs of up to four 8×8 matrices.
void exchange_matrix_rows(const uint32_t* row, uint32_t* result, int matrices, bool transposed, Place place);
// stmatrix: the inverse; lanes 0 to 8 · matrices − 1 get a row each.
void gather_matrix_rows(const uint32_t* values, uint32_t* row, int matrices, bool transposed, Place place);

// An address in shared memory as instructions take it: the block's memory starts at 0x400.
uint64_t shared_address(const void* address);

// wgmma, of a warp with three others: d (64,columns) = a · b, + d if it accumulates; see wgmma.cpp.
struct WarpgroupProduct {
    Format format;
    int columns;
    bool a_mn_major, b_mn_major, accumulate;
    uint64_t a, b;  // descriptors
    const uint32_t* a_registers;  // four instead of a, or null
    float* d;                     // columns / 2 registers of this lane
};
void multiply_warpgroup(const WarpgroupProduct& product, Place place);
void warpgroup_fence(Place place);
void warpgroup_commit(Place place);
void warpgroup_wait(int groups, Place place);

template <class... Parameters, size_t... I>
SIMULATOR_INTERNAL void call(void (*kernel)(Parameters...), void* const* arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[I])...);
}

template <class... Parameters>
SIMULATOR_INTERNAL void call(void (*kernel)(Parameters...), void* const* arguments) {
    call(kernel, arguments, std::index_sequence_for<Parameters...>());
}

template <class T>
struct Shuffle {
    T value, result;
    int source;
};

template <class T>
SIMULATOR_INTERNAL void shuffle_lanes(void* const* arguments, uint32_t mask) {
    auto* const* lanes = reinterpret_cast<Shuffle<T>* const*>(arguments);
    for (int i = 0; i < 32; ++i) {
        if (!lanes[i]) continue;
        if (!(mask >> lanes[i]->source & 1)) fail("shuffle", "the source lane is outside the mask", {nullptr, 0});
        lanes[i]->result = lanes[lanes[i]->source]->value;
    }
}

template <class T>
SIMULATOR_INTERNAL T shuffle(uint32_t mask, T value, int source, Place place) {
    Shuffle<T> argument{value, value, source};
    warp_operation(mask, &argument, shuffle_lanes<T>, place);
    return argument.result;
}

struct Vote {
    bool predicate;
    uint32_t ballot;
};
void vote_lanes(void* const* arguments, uint32_t mask);

SIMULATOR_INTERNAL inline uint32_t vote(uint32_t mask, bool predicate, Place place) {
    Vote argument{predicate, 0};
    warp_operation(mask, &argument, vote_lanes, place);
    return argument.ballot;
}

void no_lanes(void* const* arguments, uint32_t mask);

}  // namespace simulator

// A kernel's static __shared__ array: a reference into shared memory, found by the address of a static of its declaration.
#define SHARED(T, name, dims)                                                                                   \
    static const char name##_key = 0;                                                                           \
    typedef T name##_type dims;                                                                                 \
    name##_type& name = *static_cast<name##_type*>(simulator::shared_memory(&name##_key, sizeof(name##_type), 16))
#define DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(simulator::shared_memory(nullptr, 0, 1024))
#define KERNEL(threads, blocks) extern "C" __attribute__((noinline)) void
#define CLUSTER_KERNEL(threads, blocks, cluster) KERNEL(threads, blocks)

#define threadIdx simulator::thread_index
#define blockIdx simulator::block_index
#define blockDim simulator::block_size
#define gridDim simulator::grid_size

// Every primitive that waits takes the caller's place, which its messages name.
#define SIMULATOR_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SIMULATOR_PLACE) { simulator::block_barrier({file, line}); }
inline void __syncwarp(uint32_t mask = ~0u, SIMULATOR_PLACE) {
    simulator::warp_operation(mask, &mask, simulator::no_lanes, {file, line});
}

// Lanes are counted inside segments of `width`, a power of two; a source outside the segment gives the lane's own value
// (of a shuffle by xor, only one in a later segment does).
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, SIMULATOR_PLACE) {
    const int first = simulator::lane & ~(width - 1);
    return simulator::shuffle(mask, value, first + (source & (width - 1)), {file, line});
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, SIMULATOR_PLACE) {
    const int source = simulator::lane ^ bits;
    const bool inside = source <= (simulator::lane | (width - 1));  // earlier segments may be read, later ones not
    return simulator::shuffle(mask, value, inside ? source : simulator::lane, {file, line});
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int distance, int width = 32, SIMULATOR_PLACE) {
    const bool inside = (simulator::lane & (width - 1)) + distance < width;
    return simulator::shuffle(mask, value, inside ? simulator::lane + distance : simulator::lane, {file, line});
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, int distance, int width = 32, SIMULATOR_PLACE) {
    const bool inside = (simulator::lane & (width - 1)) - distance >= 0;
    return simulator::shuffle(mask, value, inside ? simulator::lane - distance : simulator::lane, {file, line});
}
inline uint32_t __ballot_sync(uint32_t mask, bool predicate, SIMULATOR_PLACE) {
    return simulator::vote(mask, predicate, {file, line});
}
inline bool __any_sync(uint32_t mask, bool predicate, SIMULATOR_PLACE) {
    return simulator::vote(mask, predicate, {file, line}) != 0;
}
inline bool __all_sync(uint32_t mask, bool predicate, SIMULATOR_PLACE) {
    return simulator::vote(mask, predicate, {file, line}) == mask;
}

template <class T>
T __ldg(const T* address) {
    return *address;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}
