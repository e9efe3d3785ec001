// c[n] = a[n] · b[n] for n < B in bfloat16 on tensor cores, from sm_80: gemm_half.cuh. In a, the terms are contiguous ("n") or
// the rows ("t"); in b, the columns ("n") or the terms ("t"); "values" is for strides and addresses of any kind.
//
// Tiles of c a block: 128x128 (eight warps of 64 × 32) and 64x64 (four of 32 × 32), four stages of 16 or 8 KB.
#include "gemm_half.cuh"

#define GEMM_HALF(layout, Left, Right, M, N, warp_m, warp_n, threads, blocks)                                               \
    KERNEL(threads, blocks) gemm_##layout##_bfloat16_##M##x##N(                                                                \
        const bfloat16* a, const bfloat16* b, bfloat16* c, float* planes, const float* bias, const bfloat16* residual,                             \
        int64 residual_stride, int64 residual_batch, GemmShape shape) {                                                    \
        using Tile = HalfTiling<M, N, warp_m, warp_n, 4>;                                                                  \
        DYNAMIC_SHARED(bfloat16, ring);                                                                                          \
        const HalfResult<bfloat16> result{c, planes, bias, residual, residual_stride, residual_batch};                           \
        gemm_half<bfloat16, Tile, Left<M, bfloat16, Tile>, Right<N, bfloat16, Tile>>(a, b, result, shape, ring);                             \
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
KERNEL(256, 4) gemm_add_splits_bfloat16(const float* workspace, bfloat16* c, const float* bias, const bfloat16* residual,
                                  int64 residual_stride, int64 residual_batch, GemmShape shape, int count) {
    add_planes<bfloat16>(workspace, c, bias, residual, residual_stride, residual_batch, shape, count);
}
// The same of float32, with a residual.
KERNEL(256, 4) gemm_add_splits_residual(const float* workspace, float* c, const float* bias, const float* residual,
                                        int64 residual_stride, int64 residual_batch, GemmShape shape, int count) {
    add_planes<float>(workspace, c, bias, residual, residual_stride, residual_batch, shape, count);
}
