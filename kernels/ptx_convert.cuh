// The 16-bit types of storage, and their conversions to and from float32, which all arithmetic is made in.
//
// bfloat16: the upper half of a float32. float16: 5 bits of exponent, 10 of fraction. Both are rounded to nearest, ties to
// even; NaN stays NaN. A register of 32 bits holds two neighbours, the first in its lower half. On sm_75, which has no
// instruction for bfloat16, its conversion is integer arithmetic.
#pragma once
#include "common.cuh"

struct bfloat16 {
    unsigned short bits;
};
struct float16 {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bfloat16 value) {
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
__device__ __forceinline__ float to_float(float16 value) {
#if defined(__CUDACC__)
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
#else
    const unsigned sign = (value.bits & 0x8000u) << 16, magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    // A multiple of 2^-24, or with the exponent brought from bias 15 to 127: exact, subnormals too.
    if (magnitude < 0x400u) return __uint_as_float(sign | __float_as_uint(static_cast<float>(magnitude) * 0x1p-24f));
    return __uint_as_float(sign | ((magnitude << 13) + (112u << 23)));
#endif
}

// The nearest value of type T.
template <class T>
__device__ __forceinline__ T round_to(float value);
template <>
__device__ __forceinline__ float round_to<float>(float value) {
    return value;
}
template <>
__device__ __forceinline__ bfloat16 round_to<bfloat16>(float value) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
    bfloat16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#else
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // NaN, as the instruction writes it
    return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
#endif
}
template <>
__device__ __forceinline__ float16 round_to<float16>(float value) {
#if defined(__CUDACC__)
    float16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#else
    const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
    const unsigned short sign = bits >> 16 & 0x8000u;
    if (magnitude > 0x7f800000u) return {0x7fff};
    if (magnitude >= 0x47800000u) return {static_cast<unsigned short>(sign | 0x7c00u)};  // from 65536 on
    if (magnitude < 0x38800000u) {  // below 2^-14: in steps of 2^-24, by an addition that rounds to them
        const float steps = __uint_as_float(magnitude) + 0.5f;
        return {static_cast<unsigned short>(sign | (__float_as_uint(steps) - 0x3f000000u))};
    }
    const unsigned rounded = magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1);  // 65520 and more become infinity
    return {static_cast<unsigned short>(sign | rounded >> 13)};
#endif
}

// Two values in one register.
template <class T>
__device__ __forceinline__ uint32_t pack(float first, float second) {
    return round_to<T>(first).bits | static_cast<uint32_t>(round_to<T>(second).bits) << 16;
}
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ uint32_t pack<bfloat16>(float first, float second) {
    uint32_t result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));  // its first operand is the upper half
    return result;
}
template <>
__device__ __forceinline__ uint32_t pack<float16>(float first, float second) {
    uint32_t result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
    return result;
}
#endif
template <class T>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
    return make_float2(to_float(T{static_cast<unsigned short>(pair)}), to_float(T{static_cast<unsigned short>(pair >> 16)}));
}
