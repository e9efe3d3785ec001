// The textbook's matrix product, c (M,N) = a (M,K) · b (K,N), one element a thread, 16×16 tiles in shared memory: the
// simulator's worst case, with two barriers for 16 multiply-adds of a thread.
#include "common.cuh"

KERNEL(256, 1) sgemm16(const float* a, const float* b, float* c, int M, int N, int K) {
    SHARED(float, a_tile, [16][16]);
    SHARED(float, b_tile, [16][17]);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int row = blockIdx.y * 16 + y, column = blockIdx.x * 16 + x;
    float sum = 0.0f;
    for (int k = 0; k < K; k += 16) {
        a_tile[y][x] = row < M && k + x < K ? a[row * K + k + x] : 0.0f;
        b_tile[y][x] = k + y < K && column < N ? b[(k + y) * N + column] : 0.0f;
        __syncthreads();
        for (int i = 0; i < 16; ++i) sum = multiply_add(a_tile[y][i], b_tile[i][x], sum);
        __syncthreads();
    }
    if (row < M && column < N) c[row * N + column] = sum;
}
