// Gradient of the input by implicit GEMM: gx[n,c,h,w] = Σ_{k,r,s} gy[n,k,p,q] · w[k,c,r,s] over the p, q with
// p·stride + r·dilation − padding = h, and so for w. gx is overwritten.
//
// Layouts: gy (N,K,P,Q) by strides; w (K,C/groups,R,S) and gx (N,C,H,W) contiguous. Grid: x tiles of channels, then of
// pixels; y splits of the terms, then phases h mod stride_h, w mod stride_w; z groups. All phases have the pixels of the
// largest. With splits, gx is a workspace (splits,N,C,H,W), which gemm_add_splits sums.
#include "conv2d_gather.cuh"

#define CONV2D_BACKWARD_INPUT(M, N, terms, groups_m, groups_n, threads, blocks)                                        \
    KERNEL(threads, blocks) conv2d_backward_input_##M##x##N(const float* gy, const float* w, float* gx, ConvShape shape, \
                                                            ImageStrides strides, ConvProduct product) {               \
        convolve<Tiling<M, N, terms, groups_m, groups_n>, true>(gy, w, nullptr, gx, shape, strides, product);          \
    }

CONV2D_BACKWARD_INPUT(128, 128, 16, 2, 2, 256, 2)
CONV2D_BACKWARD_INPUT(64, 64, 16, 2, 1, 128, 4)
