// Forward convolution by implicit GEMM on tensor cores: conv2d_forward.cu with the arithmetic of tile_tensor.cuh, from sm_80.
#include "conv2d_gather.cuh"
#include "tile_tensor.cuh"

#define CONV2D_FORWARD_TENSOR(arithmetic, Arithmetic, M, N, warp_m, warp_n, threads, blocks)                              \
    KERNEL(threads, blocks) conv2d_forward_##arithmetic##_##M##x##N(                                                     \
        const float* x, const float* packed, const float* bias, float* y, ConvShape shape, ImageStrides strides,         \
        ConvProduct product) {                                                                                           \
        using Tile = TensorTiling<Arithmetic, M, N, warp_m, warp_n>;                                                      \
        SHARED(float, stages, [2 * Tile::STAGE]);                                                                        \
        SHARED(int, table, [TapTables<Tile>::INTS]);                                                                     \
        Convolution<Tile, false>{x, packed, bias, y, shape, strides, product, {table}}.run(shared_floats(stages));       \
    }

CONV2D_FORWARD_TENSOR(tf32, Tf32, 128, 128, 64, 32, 256, 2)
CONV2D_FORWARD_TENSOR(tf32, Tf32, 64, 64, 32, 32, 128, 4)
CONV2D_FORWARD_TENSOR(float32_tensor, Float32Tensor, 128, 128, 64, 32, 256, 1)
CONV2D_FORWARD_TENSOR(float32_tensor, Float32Tensor, 64, 64, 32, 32, 128, 3)
