// Direct convolution of bfloat16 and float16, backward_weight, of any shape; x (N,C,H,W) and gy (N,K,P,Q) have any strides.
// The mathematics stand in conv2d_direct_backward_weight.cuh. Partial sums are overwritten.
#include "conv2d_direct_backward_weight.cuh"

#define BACKWARD_WEIGHT(T, FILTERS, TERMS, PIXELS)                                                                     \
    KERNEL(128, 3) conv2d_backward_weight_direct_##FILTERS##x##TERMS##_##T(                                            \
        const T* x, const T* gy, float* partial, ConvShape c, ImageStrides x_strides, ImageStrides gy_strides,         \
        int64 split_pixels) {                                                                                          \
        backward_weight<FILTERS, TERMS, PIXELS>(Pair<T>{x, gy, x_strides, gy_strides}, partial, c, split_pixels);      \
    }

BACKWARD_WEIGHT(bfloat16, 64, 32, 32)
BACKWARD_WEIGHT(bfloat16, 32, 64, 32)
BACKWARD_WEIGHT(bfloat16, 8, 32, 128)
BACKWARD_WEIGHT(float16, 64, 32, 32)
BACKWARD_WEIGHT(float16, 32, 64, 32)
BACKWARD_WEIGHT(float16, 8, 32, 128)
