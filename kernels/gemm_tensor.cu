// c[n] = a[n] · b[n] on tensor cores, from float32 in memory: gemm.cu with the arithmetic of tile_tensor.cuh, from sm_80.
//
// Layouts, batch, splits, bias and ReLU are gemm.cu's; gemm_add_splits there adds the planes. Tiles, floats of c a block:
// 128x128 (eight warps of 64 × 32) and 64x64 (four of 32 × 32).
#include "gemm.cuh"
#include "tile_tensor.cuh"

#define GEMM_TENSOR(layout, Left, Right, arithmetic, Arithmetic, M, N, warp_m, warp_n, threads, blocks)                 \
    KERNEL(threads, blocks) gemm_##layout##_##arithmetic##_##M##x##N(const float* a, const float* b, float* c,           \
                                                                     const float* bias, GemmShape shape) {              \
        using Tile = TensorTiling<Arithmetic, M, N, warp_m, warp_n>;                                                    \
        gemm<Tile, Left<M, Tile>, Right<N, Tile>>(a, b, c, bias, shape);                                                \
    }

GEMM_TENSOR(nn, TermsContiguous, RowQuads, tf32, Tf32, 128, 128, 64, 32, 256, 2)
GEMM_TENSOR(nt, TermsContiguous, TermsContiguous, tf32, Tf32, 128, 128, 64, 32, 256, 2)
GEMM_TENSOR(tn, RowQuads, RowQuads, tf32, Tf32, 128, 128, 64, 32, 256, 2)
GEMM_TENSOR(nn, TermsContiguous, RowQuads, tf32, Tf32, 64, 64, 32, 32, 128, 4)
GEMM_TENSOR(nt, TermsContiguous, TermsContiguous, tf32, Tf32, 64, 64, 32, 32, 128, 4)
GEMM_TENSOR(tn, RowQuads, RowQuads, tf32, Tf32, 64, 64, 32, 32, 128, 4)
GEMM_TENSOR(nn_words, TermsContiguous, RowWords, tf32, Tf32, 128, 128, 64, 32, 256, 2)
GEMM_TENSOR(tn_words, RowWords, RowWords, tf32, Tf32, 128, 128, 64, 32, 256, 2)
GEMM_TENSOR(nn_words, TermsContiguous, RowWords, tf32, Tf32, 64, 64, 32, 32, 128, 4)
GEMM_TENSOR(tn_words, RowWords, RowWords, tf32, Tf32, 64, 64, 32, 32, 128, 4)

GEMM_TENSOR(nn, TermsContiguous, RowQuads, float32_tensor, Float32Tensor, 128, 128, 64, 32, 256, 1)
GEMM_TENSOR(nt, TermsContiguous, TermsContiguous, float32_tensor, Float32Tensor, 128, 128, 64, 32, 256, 1)
GEMM_TENSOR(tn, RowQuads, RowQuads, float32_tensor, Float32Tensor, 128, 128, 64, 32, 256, 1)
GEMM_TENSOR(nn, TermsContiguous, RowQuads, float32_tensor, Float32Tensor, 64, 64, 32, 32, 128, 3)
GEMM_TENSOR(nt, TermsContiguous, TermsContiguous, float32_tensor, Float32Tensor, 64, 64, 32, 32, 128, 3)
GEMM_TENSOR(tn, RowQuads, RowQuads, float32_tensor, Float32Tensor, 64, 64, 32, 32, 128, 3)
GEMM_TENSOR(nn_words, TermsContiguous, RowWords, float32_tensor, Float32Tensor, 128, 128, 64, 32, 256, 1)
GEMM_TENSOR(tn_words, RowWords, RowWords, float32_tensor, Float32Tensor, 128, 128, 64, 32, 256, 1)
GEMM_TENSOR(nn_words, TermsContiguous, RowWords, float32_tensor, Float32Tensor, 64, 64, 32, 32, 128, 3)
GEMM_TENSOR(tn_words, RowWords, RowWords, float32_tensor, Float32Tensor, 64, 64, 32, 32, 128, 3)
