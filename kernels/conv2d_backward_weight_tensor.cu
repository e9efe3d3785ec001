// Gradient of the weights by implicit GEMM on tensor cores: conv2d_backward_weight.cu with the arithmetic of
// tile_tensor.cuh, from sm_80.
#include "conv2d_backward_weight.cuh"
#include "tile_tensor.cuh"

#define CONV2D_BACKWARD_WEIGHT_TENSOR(name, Columns, arithmetic, Arithmetic, M, N, warp_m, warp_n, threads, blocks)       \
    KERNEL(threads, blocks) conv2d_##name##_##arithmetic##_##M##x##N(                                                    \
        const float* x, const float* gy, float* gw, ConvShape shape, ImageStrides x_strides, ImageStrides gy_strides,    \
        ConvProduct product) {                                                                                           \
        using Tile = TensorTiling<Arithmetic, M, N, warp_m, warp_n>;                                                      \
        SHARED(float, stages, [2 * Tile::STAGE]);                                                                        \
        SHARED(Column, table, [Columns<Tile>::PLACES]);                                                                  \
        WeightGradient<Tile, Columns<Tile>>{x, gy, gw, shape, x_strides, gy_strides, product, table}.run(                \
            shared_floats(stages));                                                                                      \
    }

CONV2D_BACKWARD_WEIGHT_TENSOR(backward_weight, AnyColumns, tf32, Tf32, 128, 128, 64, 32, 256, 2)
CONV2D_BACKWARD_WEIGHT_TENSOR(backward_weight, AnyColumns, tf32, Tf32, 64, 64, 32, 32, 128, 4)
CONV2D_BACKWARD_WEIGHT_TENSOR(backward_weight_channels, ChannelColumns, tf32, Tf32, 128, 128, 64, 32, 256, 2)
CONV2D_BACKWARD_WEIGHT_TENSOR(backward_weight_channels, ChannelColumns, tf32, Tf32, 64, 64, 32, 32, 128, 4)
CONV2D_BACKWARD_WEIGHT_TENSOR(backward_weight, AnyColumns, float32_tensor, Float32Tensor, 128, 128, 64, 32, 256, 1)
CONV2D_BACKWARD_WEIGHT_TENSOR(backward_weight, AnyColumns, float32_tensor, Float32Tensor, 64, 64, 32, 32, 128, 3)
CONV2D_BACKWARD_WEIGHT_TENSOR(backward_weight_channels, ChannelColumns, float32_tensor, Float32Tensor, 128, 128, 64, 32, 256, 1)
CONV2D_BACKWARD_WEIGHT_TENSOR(backward_weight_channels, ChannelColumns, float32_tensor, Float32Tensor, 64, 64, 32, 32, 128, 3)
