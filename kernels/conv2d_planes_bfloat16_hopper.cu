// conv2d_planes_hopper.cuh and conv2d_planes_weights_hopper.cuh of bfloat16.
#include "conv2d_planes_hopper.cuh"
#include "conv2d_planes_weights_hopper.cuh"

#define CONV2D_PLANES(type, M, N, stages)                                                                             \
    KERNEL(384, 1) conv2d_hopper_planes_##type##_##M##x##N(TENSOR_MAP weights, TENSOR_MAP images, TENSOR_MAP c,       \
                                                           type* target, const float* bias, const type* residual,     \
                                                           PlaneWalk walk, int tiles) {                               \
        planes_product<PlanesTiling<type, M, N, stages>>(weights, images, {c, target, bias, residual}, walk, tiles);  \
    }

CONV2D_PLANES(bfloat16, 128, 256, 4)
CONV2D_PLANES(bfloat16, 128, 128, 6)
CONV2D_PLANES(bfloat16, 64, 256, 4)

KERNEL(384, 1) conv2d_hopper_plane_weights_bfloat16_128x128(TENSOR_MAP gradients, TENSOR_MAP images, TENSOR_MAP c,
                                                        GemmShape shape, PlaneSteps steps, int tiles) {
    using Tile = HopperTiling<bfloat16, float, 128, 128, 6, false, false>;
    hopper_product<Tile>(PlanePatches<Tile>{gradients, images, shape, steps}, c, nullptr, nullptr, nullptr, shape,
                         tiles, 1, true);
}

KERNEL(256, 4) conv2d_hopper_rows_bfloat16(const bfloat16* x, bfloat16* rows, int width, int pitch, int count) {
    align_rows(x, rows, width, pitch, count);
}
