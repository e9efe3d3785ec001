// Forward convolution in bfloat16 and float16 by implicit GEMM on tensor cores, from sm_80: conv2d_half_gather.cuh.
#include "conv2d_half_gather.cuh"

#define CONV2D_FORWARD_HALF(type, form, Pixels, M, N, warp_m, warp_n, threads, blocks)                                    \
    KERNEL(threads, blocks) conv2d_forward_##form##_##type##_##M##x##N(                                                  \
        const type* x, const type* packed, const float* bias, const type* residual, type* y, float* planes,              \
        ConvShape shape, ImageStrides x_strides, ImageStrides y_strides, ConvProduct product) {                          \
        using Tile = HalfTiling<M, N, warp_m, warp_n, 4>;                                                                \
        DYNAMIC_SHARED(type, ring);                                                                                      \
        SHARED(HalfTap, table, [MAX_TAPS]);                                                                              \
        const HalfArrays<type> arrays{x, packed, bias, residual, y, planes};                                             \
        HalfConvolution<type, Tile, Pixels, false>{arrays, shape, x_strides, y_strides, product, table}.run(ring);       \
    }

CONV2D_FORWARD_HALF(bfloat16, units, PixelUnits, 128, 128, 64, 32, 256, 2)
CONV2D_FORWARD_HALF(bfloat16, units, PixelUnits, 64, 64, 32, 32, 128, 4)
CONV2D_FORWARD_HALF(bfloat16, values, PixelValues, 128, 128, 64, 32, 256, 2)
CONV2D_FORWARD_HALF(bfloat16, values, PixelValues, 64, 64, 32, 32, 128, 4)
CONV2D_FORWARD_HALF(float16, units, PixelUnits, 128, 128, 64, 32, 256, 2)
CONV2D_FORWARD_HALF(float16, units, PixelUnits, 64, 64, 32, 32, 128, 4)
CONV2D_FORWARD_HALF(float16, values, PixelValues, 128, 128, 64, 32, 256, 2)
CONV2D_FORWARD_HALF(float16, values, PixelValues, 64, 64, 32, 32, 128, 4)
