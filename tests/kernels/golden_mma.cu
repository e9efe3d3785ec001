// Small programs of the tensor-core primitives, as golden.cu has them for those of float32 kernels.
#include "ptx_mma.cuh"

// y (count,32,4) = a · b + c of each of `count` problems, registers as the lanes hold them: a (count,32,4), b
// (count,32,2), c (count,32,4).
#define GOLDEN_MMA(format)                                                                                           \
    KERNEL(32, 1) golden_mma_##format(const unsigned* a, const unsigned* b, const float* c, float* y, int count) {     \
        for (int i = 0; i < count; ++i) {                                                                            \
            const int lane = i * 32 + threadIdx.x;                                                                   \
            uint32_t left[4], right[2];                                                                              \
            float sums[4];                                                                                           \
            for (int r = 0; r < 4; ++r) left[r] = a[lane * 4 + r], sums[r] = c[lane * 4 + r];                        \
            for (int r = 0; r < 2; ++r) right[r] = b[lane * 2 + r];                                                  \
            mma_##format(sums, left, right);                                                                         \
            for (int r = 0; r < 4; ++r) y[lane * 4 + r] = sums[r];                                                   \
        }                                                                                                            \
    }
GOLDEN_MMA(tf32)
GOLDEN_MMA(bf16)
GOLDEN_MMA(f16)

KERNEL(64, 1) golden_round_tf32(const float* x, unsigned* y, int count) {
    for (int i = threadIdx.x; i < count; i += 64) y[i] = round_tf32(x[i]);
}

// y (2,32,7): the registers of ldmatrix x4, x2 and x1 from 32 rows of 8 halves whose order `rows` gives; then transposed.
KERNEL(32, 1) golden_load_matrices(const unsigned* halves, const int* rows, unsigned* y) {
    SHARED(uint32_t, tile, [32 * 4]);
    for (int i = threadIdx.x; i < 128; i += 32) tile[i] = halves[i];
    __syncthreads();
    const uint32_t* const row = tile + rows[threadIdx.x] * 4;
    uint32_t four[4], two[2], one[1];
    load_matrices<4, false>(four, row);
    load_matrices<2, false>(two, row);
    load_matrices<1, false>(one, row);
    unsigned* to = y + threadIdx.x * 7;
    for (int r = 0; r < 4; ++r) to[r] = four[r];
    for (int r = 0; r < 2; ++r) to[4 + r] = two[r];
    to[6] = one[0];
    load_matrices<4, true>(four, row);
    load_matrices<2, true>(two, row);
    load_matrices<1, true>(one, row);
    to += 32 * 7;
    for (int r = 0; r < 4; ++r) to[r] = four[r];
    for (int r = 0; r < 2; ++r) to[4 + r] = two[r];
    to[6] = one[0];
}
