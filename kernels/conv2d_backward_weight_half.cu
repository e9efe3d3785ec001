// Gradient of the weights in bfloat16 and float16 by implicit GEMM on tensor cores, from sm_80:
// conv2d_half_backward_weight.cuh.
#include "conv2d_half_backward_weight.cuh"

#define CONV2D_BACKWARD_WEIGHT_HALF(type, form, Loader, M, N, warp_m, warp_n, threads, blocks)                            \
    KERNEL(threads, blocks) conv2d_backward_weight_##form##_##type##_##M##x##N(                                          \
        const type* x, const type* gy, float* planes, ConvShape shape, ImageStrides x_strides, ImageStrides gy_strides,  \
        ConvProduct product) {                                                                                           \
        using Tile = HalfTiling<M, N, warp_m, warp_n, 4>;                                                                \
        DYNAMIC_SHARED(type, ring);                                                                                      \
        using Load = Loader<type, Tile>;                                                                                 \
        SHARED(HalfColumn, table, [Load::COLUMNS]);                                                                      \
        const HalfImages images{shape, x_strides, gy_strides, product};                                                  \
        HalfWeightGradient<type, Tile, Loader>{x, gy, planes, images, table}.run(ring);                                  \
    }

CONV2D_BACKWARD_WEIGHT_HALF(bfloat16, units, PixelRows, 128, 128, 64, 32, 256, 2)
CONV2D_BACKWARD_WEIGHT_HALF(bfloat16, units, PixelRows, 64, 64, 32, 32, 128, 4)
CONV2D_BACKWARD_WEIGHT_HALF(bfloat16, values, PixelPairs, 128, 128, 64, 32, 256, 1)
CONV2D_BACKWARD_WEIGHT_HALF(bfloat16, values, PixelPairs, 64, 64, 32, 32, 128, 3)
CONV2D_BACKWARD_WEIGHT_HALF(float16, units, PixelRows, 128, 128, 64, 32, 256, 2)
CONV2D_BACKWARD_WEIGHT_HALF(float16, units, PixelRows, 64, 64, 32, 32, 128, 4)
CONV2D_BACKWARD_WEIGHT_HALF(float16, values, PixelPairs, 128, 128, 64, 32, 256, 1)
CONV2D_BACKWARD_WEIGHT_HALF(float16, values, PixelPairs, 64, 64, 32, 32, 128, 3)
