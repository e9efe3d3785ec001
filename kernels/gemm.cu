// c[n] = a[n] · b[n] for n < B: a (B,M,K), b (B,K,N), c (B,M,N), float32, row-major or transposed by strides; then bias
// and ReLU. c is overwritten.
//
// Layouts: in a, the terms (k) are contiguous ("n") or the rows are ("t"); in b, the columns ("n") or the terms ("t");
// not both "t". c's columns are contiguous. The other axis and the batch have any stride, also 0 for a shared matrix.
//
// Accuracy: a chain of CHUNK products is summed in registers and then added to c, so the error of a sum of 1e5 terms
// stays below 2e-6 of its norm. A block with few neighbours takes only a part of the terms, a "split": it writes to its
// own plane of a workspace, and gemm_add_splits adds the planes in their order. So the bits never depend on timing.
//
// Tiles, floats of c a block: 128x128 (8 × 8 a thread), 64x64 (8 × 4), 32x32 (4 × 4); two stages of shared memory, the
// next tiles arriving while these are multiplied, one barrier a step.
#include "gemm.cuh"

#define GEMM(layout, Left, Right, M, N, terms, groups_m, groups_n, threads, blocks)                                \
    KERNEL(threads, blocks) gemm_##layout##_##M##x##N(const float* a, const float* b, float* c, const float* bias, \
                                                      GemmShape shape) {                                           \
        using Tile = Tiling<M, N, terms, groups_m, groups_n>;                                                      \
        gemm<Tile, Left<M, Tile>, Right<N, Tile>>(a, b, c, bias, shape);                                           \
    }

GEMM(nn, TermsContiguous, RowQuads, 128, 128, 16, 2, 2, 256, 2)
GEMM(nt, TermsContiguous, TermsContiguous, 128, 128, 16, 2, 2, 256, 2)
GEMM(tn, RowQuads, RowQuads, 128, 128, 16, 2, 2, 256, 2)
GEMM(nn, TermsContiguous, RowQuads, 64, 64, 16, 2, 1, 128, 4)
GEMM(nt, TermsContiguous, TermsContiguous, 64, 64, 16, 2, 1, 128, 4)
GEMM(tn, RowQuads, RowQuads, 64, 64, 16, 2, 1, 128, 4)
GEMM(nn, TermsContiguous, RowQuads, 32, 32, 16, 1, 1, 64, 12)
GEMM(nt, TermsContiguous, TermsContiguous, 32, 32, 16, 1, 1, 64, 12)
GEMM(tn, RowQuads, RowQuads, 32, 32, 16, 1, 1, 64, 12)
// Where rows do not begin at 16 bytes.
GEMM(nn_words, TermsContiguous, RowWords, 128, 128, 16, 2, 2, 256, 2)
GEMM(tn_words, RowWords, RowWords, 128, 128, 16, 2, 2, 256, 2)
GEMM(nn_words, TermsContiguous, RowWords, 64, 64, 16, 2, 1, 128, 4)
GEMM(tn_words, RowWords, RowWords, 64, 64, 16, 2, 1, 128, 4)
GEMM(nn_words, TermsContiguous, RowWords, 32, 32, 16, 1, 1, 64, 12)
GEMM(tn_words, RowWords, RowWords, 32, 32, 16, 1, 1, 64, 12)

// c = Σ planes of the workspace (splits,B,M,N), in their order, plus bias, ReLU; `count` = B·M·N. c is overwritten.
KERNEL(256, 4) gemm_add_splits(const float* workspace, float* c, const float* bias, GemmShape shape, int count) {
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) {
        const unsigned line = i / shape.N, column = i % shape.N, row = line % shape.M, batch = line / shape.M;
        float sum = 0.0f;
#pragma unroll 4
        for (int split = 0; split < shape.splits; ++split) sum += workspace[split * static_cast<int64>(count) + i];
        if (bias) sum += bias[shape.bias_per_row ? row : column];
        c[batch * shape.c_batch + row * shape.c_stride + column] = finish(sum, shape.relu);
    }
}
