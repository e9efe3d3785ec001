// How many passes a 16-byte load from shared memory takes, by which lanes read the same address: timed, never compared.
#include "common.cuh"

constexpr int FOURS = 2048;  // 16-byte groups in shared memory, 32 KB
constexpr int LOADS = 8;     // in flight at a time

// Lane n of each warp reads group first[n], then on in whole rows of all banks; y (256 a block) keeps the loads alive.
KERNEL(256, 1) golden_shared_loads(const int* first, float* y, int rounds) {
    SHARED(float, tile, [FOURS * 4]);
    for (int i = threadIdx.x; i < FOURS * 4; i += 256) tile[i] = 1.0f;
    __syncthreads();
    unsigned group = first[threadIdx.x % WARP_SIZE];
    float sums[LOADS] = {};
    for (int round = 0; round < rounds; ++round) {
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            const float4 v = load4(&tile[(group + i * 32) * 4]);  // group % (LOADS · 32) is below 32: no wrap inside
            sums[i] += (v.x + v.y) + (v.z + v.w);
        }
        group = (group + LOADS * 32) % FOURS;
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < LOADS; ++i) sum += sums[i];
    y[global_thread()] = sum;
}
