// What a device reaches at most, for percentages of it: multiply-adds on registers alone, and a copy of memory.
//
//   ceiling_multiply_adds   y (threads of the launch): `rounds` rounds of v = v * factor + addend on 8 chains a thread
//   ceiling_copy            y (4 * count) = x, count vectors of 4
#include "common.cuh"

constexpr int CHAINS = 8;

KERNEL(256, 8) ceiling_multiply_adds(float* y, int64 count, int rounds, float factor, float addend) {
    const int64 i = int64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= count) return;
    float values[CHAINS];
#pragma unroll
    for (int chain = 0; chain < CHAINS; ++chain) values[chain] = float(chain);
#pragma unroll 4
    for (int round = 0; round < rounds; ++round) {
#pragma unroll
        for (int chain = 0; chain < CHAINS; ++chain) values[chain] = multiply_add(values[chain], factor, addend);
    }
    float sum = 0.0f;
#pragma unroll
    for (int chain = 0; chain < CHAINS; ++chain) sum += values[chain];
    y[i] = sum;
}

KERNEL(256, 8) ceiling_copy(const float* x, float* y, int64 count) {
    const int64 i = int64(blockIdx.x) * 256 + threadIdx.x;
    if (i < count) store4(y + 4 * i, load4(x + 4 * i));
}
