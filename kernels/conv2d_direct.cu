// Direct convolution of float32, forward and backward_input, of any shape; x (N,C,H,W), w (K,C/groups,R,S) and y
// (N,K,P,Q) are contiguous. The mathematics stand in conv2d_direct.cuh. Outputs are overwritten.
#include "conv2d_direct.cuh"

#define DIRECT(PIXELS, FILTERS, BLOCKS)                                                                                \
    KERNEL(128, BLOCKS) conv2d_forward_direct_##PIXELS##x##FILTERS(const float* x, const float* w, const float* b,     \
                                                                       float* y, ConvShape c, int relu) {              \
        forward<PIXELS, FILTERS, float>(x, {w, nullptr}, b, y, c, contiguous(c.C, c.H, c.W), contiguous(c.K, c.P, c.Q),\
                                        relu);                                                                         \
    }                                                                                                                  \
    KERNEL(128, BLOCKS) conv2d_backward_input_direct_##PIXELS##x##FILTERS(                                             \
        const float* gy, const float* w, float* gx, ConvShape c, int pixel_tiles) {                                    \
        backward_input<PIXELS, FILTERS, float>(gy, {w, nullptr}, gx, c, contiguous(c.K, c.P, c.Q),                     \
                                               contiguous(c.C, c.H, c.W), pixel_tiles);                                \
    }

DIRECT(4, 8, 3)
DIRECT(4, 4, 4)
DIRECT(4, 1, 5)
