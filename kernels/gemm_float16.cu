// c[n] = a[n] · b[n] for n < B in float16 on tensor cores, from sm_80: gemm_half.cuh. In a, the terms are contiguous ("n") or
// the rows ("t"); in b, the columns ("n") or the terms ("t"); "values" is for strides and addresses of any kind.
//
// Tiles of c a block: 128x128 (eight warps of 64 × 32) and 64x64 (four of 32 × 32), four stages of 16 or 8 KB.
#include "gemm_half.cuh"

#define GEMM_HALF(layout, Left, Right, M, N, warp_m, warp_n, threads, blocks)                                               \
    KERNEL(threads, blocks) gemm_##layout##_float16_##M##x##N(                                                                \
        const float16* a, const float16* b, float16* c, float* planes, const float* bias, const float16* residual,                             \
        int64 residual_stride, int64 residual_batch, GemmShape shape) {                                                    \
        using Tile = HalfTiling<M, N, warp_m, warp_n, 4>;                                                                  \
        DYNAMIC_SHARED(float16, ring);                                                                                          \
        const HalfResult<float16> result{c, planes, bias, residual, residual_stride, residual_batch};                           \
        gemm_half<float16, Tile, Left<M, float16, Tile>, Right<N, float16, Tile>>(a, b, result, shape, ring);                             \
    }

GEMM_HALF(nn, TermUnits, RowUnits, 128, 128, 64, 32, 256, 2)
GEMM_HALF(nt, TermUnits, TermUnits, 128, 128, 64, 32, 256, 2)
GEMM_HALF(tn, RowUnits, RowUnits, 128, 128, 64, 32, 256, 2)
GEMM_HALF(nn, TermUnits, RowUnits, 64, 64, 32, 32, 128, 4)
GEMM_HALF(nt, TermUnits, TermUnits, 64, 64, 32, 32, 128, 4)
GEMM_HALF(tn, RowUnits, RowUnits, 64, 64, 32, 32, 128, 4)
GEMM_HALF(nn_values, TermValues, RowValues, 64, 64, 32, 32, 128, 4)
GEMM_HALF(nt_values, TermValues, TermValues, 64, 64, 32, 32, 128, 4)
GEMM_HALF(tn_values, RowValues, RowValues, 64, 64, 32, 32, 128, 4)
GEMM_HALF(nn_values, TermValues, RowValues, 128, 128, 64, 32, 256, 1)
GEMM_HALF(nt_values, TermValues, TermValues, 128, 128, 64, 32, 256, 1)
GEMM_HALF(tn_values, RowValues, RowValues, 128, 128, 64, 32, 256, 1)

// The planes of split sums, added in their order.
KERNEL(256, 4) gemm_add_splits_float16(const float* workspace, float16* c, const float* bias, const float16* residual,
                                  int64 residual_stride, int64 residual_batch, GemmShape shape, int count) {
    add_planes<float16>(workspace, c, bias, residual, residual_stride, residual_batch, shape, count);
}
