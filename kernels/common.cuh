// What every kernel includes. Compiled by NVRTC or nvcc it is CUDA; compiled by g++ it is the simulator's meaning of it.
//
// KERNEL(threads, blocks) name(parameters) starts an entry point: `threads` along x in each block, of which at least
// `blocks` fit a multiprocessor. gpucnn.kernel_sources reads these lines; where a macro stamps entry points from a
// template, it reads the macro and the lines that use it, so a name may be pasted with ## from the macro's parameters.
#pragma once

#if defined(__CUDACC__)
// Compilers give the same code more registers on sm_100 and later, so a block less is asked for than elsewhere.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define RESIDENT_BLOCKS(blocks) ((blocks) > 1 ? (blocks) - 1 : 1)
#else
#define RESIDENT_BLOCKS(blocks) (blocks)
#endif
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, RESIDENT_BLOCKS(blocks))
// With `cluster` blocks along x as a cluster, from sm_90 on; the grid must be a multiple of it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define CLUSTER_KERNEL(threads, blocks, cluster) \
    extern "C" __global__ void __cluster_dims__(cluster, 1, 1) __launch_bounds__(threads, RESIDENT_BLOCKS(blocks))
#else
#define CLUSTER_KERNEL(threads, blocks, cluster) KERNEL(threads, blocks)
#endif
#define SHARED(T, name, dims) __shared__ __align__(16) T name dims
// At a multiple of 1024, where the patterns of swizzled tiles start.
#define DYNAMIC_SHARED(T, name)                                      \
    extern __shared__ __align__(1024) unsigned char dynamic_shared[]; \
    T* name = reinterpret_cast<T*>(dynamic_shared)
// NVRTC has no math.h, and nvcc's NaN has other bits.
#undef INFINITY
#undef NAN
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#else
#include "simulator.hpp"
#endif

typedef long long int64;  // as int64 of NumPy

constexpr int WARP_SIZE = 32;
constexpr int MAX_POINTERS = 64;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Several arrays for one launch, which fills as many as it is given from the start: 512 of the 4096 bytes that a
// kernel's parameters may take. Const as a parameter, the arrays are only read.
struct Pointers {
    float* data[MAX_POINTERS];
};
// A number for each of them.
struct Sizes {
    int64 count[MAX_POINTERS];
};

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}

// Position of this thread among all of a launch with a grid along x, and the number of them.
__device__ __forceinline__ int64 global_thread() { return static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64 global_threads() { return static_cast<int64>(gridDim.x) * blockDim.x; }

// a · b + c, rounded once on a GPU; the simulator counts two operations.
__device__ __forceinline__ float multiply_add(float a, float b, float c) {
#if defined(__CUDACC__)
    return fmaf(a, b, c);
#else
#if defined(SIMULATOR_PROFILE)
    simulator::count_flops(2);
#endif
    return a * b + c;
#endif
}

// Four floats in one 16-byte access; the address must be a multiple of 16.
__device__ __forceinline__ float4 load4(const float* address) {
#if defined(__CUDACC__)
    return *reinterpret_cast<const float4*>(address);
#else
    typedef float vector __attribute__((vector_size(16)));
    const vector v = *reinterpret_cast<const vector*>(address);
    return make_float4(v[0], v[1], v[2], v[3]);
#endif
}
__device__ __forceinline__ void store4(float* address, float4 value) {
#if defined(__CUDACC__)
    *reinterpret_cast<float4*>(address) = value;
#else
    typedef float vector __attribute__((vector_size(16)));
    *reinterpret_cast<vector*>(address) = vector{value.x, value.y, value.z, value.w};
#endif
}
// The same of two floats in one 8-byte access, at a multiple of 8.
__device__ __forceinline__ float2 load2(const float* address) {
#if defined(__CUDACC__)
    return *reinterpret_cast<const float2*>(address);
#else
    typedef float vector __attribute__((vector_size(8)));
    const vector v = *reinterpret_cast<const vector*>(address);
    return make_float2(v[0], v[1]);
#endif
}
__device__ __forceinline__ void store2(float* address, float2 value) {
#if defined(__CUDACC__)
    *reinterpret_cast<float2*>(address) = value;
#else
    typedef float vector __attribute__((vector_size(8)));
    *reinterpret_cast<vector*>(address) = vector{value.x, value.y};
#endif
}
__device__ __forceinline__ void unpack(float4 value, float* four) {
    four[0] = value.x, four[1] = value.y, four[2] = value.z, four[3] = value.w;
}
// 2 or 4 floats in one access, aligned to all their bytes.
template <int WIDTH>
__device__ __forceinline__ void load_values(const float* address, float (&values)[WIDTH]) {
    if constexpr (WIDTH == 4) {
        unpack(load4(address), values);
    } else {
        const float2 two = load2(address);
        values[0] = two.x, values[1] = two.y;
    }
}
template <int WIDTH>
__device__ __forceinline__ void store_values(float* address, const float (&values)[WIDTH]) {
    if constexpr (WIDTH == 4) {
        store4(address, make_float4(values[0], values[1], values[2], values[3]));
    } else {
        store2(address, make_float2(values[0], values[1]));
    }
}
template <int WIDTH>
__device__ __forceinline__ bool is_aligned(const void* address) {
    return (reinterpret_cast<uint64_t>(address) & (4 * WIDTH - 1)) == 0;
}
__device__ __forceinline__ bool is_aligned16(const void* address) {
    return (reinterpret_cast<uint64_t>(address) & 15) == 0;
}

struct Sum {
    static __device__ __forceinline__ float of(float a, float b) { return a + b; }
    static __device__ __forceinline__ float identity() { return 0.0f; }
};
// NaN wins, as in every maximum of the library.
struct Maximum {
    static __device__ __forceinline__ float of(float a, float b) { return a != a ? a : (b > a || b != b ? b : a); }
    static __device__ __forceinline__ float identity() { return -INFINITY; }
};

// The reduction over the warp, in every lane; always in the same order.
template <class Operation>
__device__ __forceinline__ float warp_reduce(float value) {
    for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2)
        value = Operation::of(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

// The reduction over a block of THREADS, in every thread, always in the same order; all threads must call it.
template <class Operation, int THREADS>
__device__ __forceinline__ float block_reduce(float value) {
    static_assert(THREADS % WARP_SIZE == 0 && THREADS <= 1024, "whole warps, at most 32 of them");
    constexpr int WARPS = THREADS / WARP_SIZE;
    SHARED(float, partial, [WARPS]);
    value = warp_reduce<Operation>(value);
    __syncthreads();  // an earlier reduction may still be read
    if (threadIdx.x % WARP_SIZE == 0) partial[threadIdx.x / WARP_SIZE] = value;
    __syncthreads();
    float total = partial[0];
    for (int warp = 1; warp < WARPS; ++warp) total = Operation::of(total, partial[warp]);
    return total;
}
