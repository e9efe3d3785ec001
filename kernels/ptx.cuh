// Hardware primitives of float32 kernels, each with two bodies: PTX on the device, its meaning in the simulator.
//
// cp.async copies to shared memory while the thread computes on. It exists from sm_80; on sm_75 the copy is made at once
// through a register, so the same pipeline works there, without the overlap.
#pragma once
#include "common.cuh"

#if defined(__CUDACC__)
#define GPUCNN_CP_ASYNC (__CUDA_ARCH__ >= 800)
#endif

// Floats in shared memory by their address, which takes one register of 32 bits where a pointer takes two.
#if defined(__CUDACC__)
typedef unsigned SharedAddress;
constexpr int SHARED_FLOAT = 4;
#else
typedef float* SharedAddress;
constexpr int SHARED_FLOAT = 1;
#endif
struct SharedFloats {
    SharedAddress address;
    __device__ __forceinline__ SharedFloats operator+(int floats) const { return {address + floats * SHARED_FLOAT}; }
    __device__ __forceinline__ void operator+=(int floats) { address += floats * SHARED_FLOAT; }
};
__device__ __forceinline__ SharedFloats shared_floats(float* shared) {
#if defined(__CUDACC__)
    return {static_cast<unsigned>(__cvta_generic_to_shared(shared))};
#else
    return {shared};
#endif
}
__device__ __forceinline__ float load1(SharedFloats shared) {
#if defined(__CUDACC__)
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(shared.address));
    return value;
#else
    return *shared.address;
#endif
}
// Four floats in one access; the address must be a multiple of 16.
__device__ __forceinline__ float4 load4(SharedFloats shared) {
#if defined(__CUDACC__)
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(shared.address));
    return v;
#else
    return load4(shared.address);
#endif
}
__device__ __forceinline__ void store4(SharedFloats shared, float4 v) {
#if defined(__CUDACC__)
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(shared.address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
#else
    store4(shared.address, v);
#endif
}

// Copies 4 bytes; `valid` false writes a zero instead and does not read the source.
__device__ __forceinline__ void copy_async4(SharedFloats shared, const float* source, bool valid) {
#if !defined(__CUDACC__)
    simulator::copy_async(shared.address, source, 4, valid ? 4 : 0, {__FILE__, __LINE__});
#elif GPUCNN_CP_ASYNC
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared.address), "l"(source), "r"(valid ? 4 : 0)
                 : "memory");
#else
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared.address), "f"(valid ? *source : 0.0f) : "memory");
#endif
}
__device__ __forceinline__ void copy_async4(float* shared, const float* source, bool valid) {
    copy_async4(shared_floats(shared), source, valid);
}

// Copies 16 bytes, both addresses multiples of 16; of which only the first `valid_bytes` are read, the rest are zeros.
__device__ __forceinline__ void copy_async16(SharedFloats shared, const float* source, int valid_bytes) {
#if !defined(__CUDACC__)
    simulator::copy_async(shared.address, source, 16, valid_bytes, {__FILE__, __LINE__});
#elif GPUCNN_CP_ASYNC
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared.address), "l"(source), "r"(valid_bytes)
                 : "memory");
#else
    float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (valid_bytes == 16) {
        value = load4(source);
    } else {
        if (valid_bytes > 0) value.x = source[0];
        if (valid_bytes > 4) value.y = source[1];
        if (valid_bytes > 8) value.z = source[2];
    }
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(shared.address), "f"(value.x), "f"(value.y),
                 "f"(value.z), "f"(value.w)
                 : "memory");
#endif
}
__device__ __forceinline__ void copy_async16(float* shared, const float* source, int valid_bytes) {
    copy_async16(shared_floats(shared), source, valid_bytes);
}

// Ends a group of copies.
__device__ __forceinline__ void copy_async_commit() {
#if !defined(__CUDACC__)
    simulator::copy_async_commit();
#elif GPUCNN_CP_ASYNC
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most GROUPS of this thread's groups are under way; others see its copies after a barrier.
template <int GROUPS>
__device__ __forceinline__ void copy_async_wait() {
#if !defined(__CUDACC__)
    simulator::copy_async_wait(GROUPS);
#elif GPUCNN_CP_ASYNC
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

// 16 bits of global memory, or where not `valid` zeros without reading; a predicate, never a branch, so that many such
// loads are under way together.
__device__ __forceinline__ uint32_t load_bits16(const void* address, bool valid) {
#if defined(__CUDACC__)
    unsigned short bits;
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; mov.b16 %0, 0; @p ld.global.b16 %0, [%1]; }"
                 : "=h"(bits) : "l"(address), "r"(static_cast<int>(valid)));
    return bits;
#else
    return valid ? *static_cast<const unsigned short*>(address) : 0;
#endif
}

// The same value, of which the compiler knows nothing: what is computed from it stays where it stands, instead of being
// computed before a loop and kept in registers through it.
__device__ __forceinline__ int opaque(int value) {
#if defined(__CUDACC__)
    asm volatile("" : "+r"(value));
#endif
    return value;
}
__device__ __forceinline__ SharedFloats opaque(SharedFloats value) {
#if defined(__CUDACC__)
    asm volatile("" : "+r"(value.address));
#endif
    return value;
}
