// Forward convolution by implicit GEMM: y[n,k,p,q] = b[k] + Σ_{c,r,s} x[n, c, p·stride + r·dilation − padding, …] · w[k,c,r,s],
// then max(·, 0) if `relu`. y is overwritten; b may be null.
//
// Layouts: x (N,C,H,W) by strides, so channels-last and other views are read in place; w as conv2d_pack_weights orders
// it for the tile's filters; y (N,K,P,Q) contiguous. Grid: x tiles of filters, then of pixels; y splits of the terms; z
// groups. With splits, y is a workspace (splits,N,K,P,Q), which gemm_add_splits sums.
#include "conv2d_gather.cuh"

#define CONV2D_FORWARD(M, N, STAGES, groups_m, groups_n, threads, blocks)                                                \
    KERNEL(threads, blocks) conv2d_forward_##M##x##N(const float* x, const float* packed, const float* bias, float* y,   \
                                                     ConvShape shape, ImageStrides strides, ConvProduct product) {       \
        using Tile = Tiling<M, N, 16, groups_m, groups_n>;                                                               \
        STAGES(Tile, stages);                                                                                            \
        SHARED(int, table, [TapTables<Tile>::INTS]);                                                                     \
        Convolution<Tile, false>{x, packed, bias, y, shape, strides, product, {table}}.run(shared_floats(stages));       \
    }

CONV2D_FORWARD(128, 256, DYNAMIC_STAGES, 2, 4, 256, 1)
CONV2D_FORWARD(128, 128, STATIC_STAGES, 2, 2, 256, 2)
CONV2D_FORWARD(64, 64, STATIC_STAGES, 2, 1, 128, 4)
