// Division of integers from 0 by a number that the host knows, without the hardware's slow division (Granlund &
// Montgomery 1994): value / d = (high(value · magic) + value) >> shift for every value below 2^31.
//
// A divisor is {d, magic, shift}, as gpucnn.launch.division.divisor(d) makes it.
#pragma once
#include "common.cuh"

typedef unsigned Divisor[3];

__device__ __forceinline__ int divide(int value, const Divisor& divisor) {
    const unsigned numerator = static_cast<unsigned>(value);
    return static_cast<int>((__umulhi(numerator, divisor[1]) + numerator) >> divisor[2]);
}
__device__ __forceinline__ int divide(int value, const Divisor& divisor, int& remainder) {
    const int quotient = divide(value, divisor);
    remainder = value - quotient * static_cast<int>(divisor[0]);
    return quotient;
}

// Of any value from 0 whose quotient is below 2^31.
__device__ __forceinline__ int divide(int64 value, const Divisor& divisor) {
    if (value <= 0x7fffffff) return divide(static_cast<int>(value), divisor);
    return static_cast<int>(static_cast<uint64_t>(value) / divisor[0]);
}
__device__ __forceinline__ int divide(int64 value, const Divisor& divisor, int& remainder) {
    const int quotient = divide(value, divisor);
    remainder = static_cast<int>(value - static_cast<int64>(quotient) * divisor[0]);
    return quotient;
}
