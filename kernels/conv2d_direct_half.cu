// Direct convolution of bfloat16 and float16, forward and backward_input, of any shape; x (N,C,H,W) and y (N,K,P,Q) have
// any strides. The mathematics stand in conv2d_direct.cuh. Weights are w (float32), or w16 where w is null; b is float32.
// Outputs are overwritten.
#include "conv2d_direct.cuh"

#define DIRECT(T, PIXELS, FILTERS, BLOCKS)                                                                             \
    KERNEL(128, BLOCKS) conv2d_forward_direct_##PIXELS##x##FILTERS##_##T(                                              \
        const T* x, const float* w, const T* w16, const float* b, T* y, ConvShape c, ImageStrides x_strides,           \
        ImageStrides y_strides, int relu) {                                                                            \
        forward<PIXELS, FILTERS, T>(x, {w, w16}, b, y, c, x_strides, y_strides, relu);                                 \
    }                                                                                                                  \
    KERNEL(128, BLOCKS) conv2d_backward_input_direct_##PIXELS##x##FILTERS##_##T(                                       \
        const T* gy, const float* w, const T* w16, T* gx, ConvShape c, ImageStrides gy_strides,                        \
        ImageStrides gx_strides, int pixel_tiles) {                                                                    \
        backward_input<PIXELS, FILTERS, T>(gy, {w, w16}, gx, c, gy_strides, gx_strides, pixel_tiles);                  \
    }

DIRECT(bfloat16, 4, 8, 3)
DIRECT(bfloat16, 4, 4, 4)
DIRECT(bfloat16, 4, 1, 5)
DIRECT(float16, 4, 8, 3)
DIRECT(float16, 4, 4, 4)
DIRECT(float16, 4, 1, 5)
