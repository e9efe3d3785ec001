// Gradient of the input by implicit GEMM: gx[n,c,h,w] = Σ_{k,r,s} gy[n,k,p,q] · w[k,c,r,s] over the p, q with
// p·stride + r·dilation − padding = h, and so for w. gx is overwritten.
//
// Layouts: gy (N,K,P,Q) by strides; w as conv2d_pack_weights orders it for the tile's channels, which are its filters
// here; gx (N,C,H,W) contiguous. Grid: x tiles of channels, then of pixels; y splits of the terms, then phases
// h mod stride_h, w mod stride_w; z groups. All phases have the pixels of the largest. With splits, gx is a workspace
// (splits,N,C,H,W), which gemm_add_splits sums.
#include "conv2d_gather.cuh"

#define CONV2D_BACKWARD_INPUT(M, N, STAGES, groups_m, groups_n, threads, blocks)                                      \
    KERNEL(threads, blocks) conv2d_backward_input_##M##x##N(const float* gy, const float* packed, float* gx,          \
                                                            ConvShape shape, ImageStrides strides,                    \
                                                            ConvProduct product) {                                    \
        using Tile = Tiling<M, N, 16, groups_m, groups_n>;                                                            \
        STAGES(Tile, stages);                                                                                         \
        SHARED(int, table, [TapTables<Tile>::INTS]);                                                                  \
        Convolution<Tile, true>{gy, packed, nullptr, gx, shape, strides, product, {table}}.run(shared_floats(stages)); \
    }

CONV2D_BACKWARD_INPUT(128, 256, DYNAMIC_STAGES, 2, 4, 256, 1)
CONV2D_BACKWARD_INPUT(128, 128, STATIC_STAGES, 2, 2, 256, 2)
CONV2D_BACKWARD_INPUT(64, 64, STATIC_STAGES, 2, 1, 128, 4)
