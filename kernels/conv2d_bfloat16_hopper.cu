// conv2d_hopper.cuh of bfloat16; sums of images also to planes of float32.
#include "conv2d_hopper.cuh"

#define CONV2D_IMAGES(type, name, Output, m, n, stages)                                                               \
    KERNEL(384, 1) conv2d_hopper_images_##name##_##m##x##n(                                                           \
        TENSOR_MAP images, TENSOR_MAP weights, TENSOR_MAP c, Output* target, const float* bias,                       \
        const Output* residual, GemmShape shape, ImageWalk walk, int tiles, int groups, int mapped) {                 \
        using Tile = HopperTiling<type, Output, m, n, stages, false, false>;                                          \
        hopper_product<Tile>(ImageTiles<Tile>{images, weights, shape, walk}, c, target, bias, residual, shape, tiles, \
                             groups, mapped, shape.N);                                                                \
    }
#define CONV2D_IMAGES_PAIRS(type, name, Output, m, n, stages)                                                         \
    CLUSTER_KERNEL(384, 1, 2) conv2d_hopper_images_##name##_pairs_##m##x##n(                                          \
        TENSOR_MAP images, TENSOR_MAP weights, TENSOR_MAP c, Output* target, const float* bias,                       \
        const Output* residual, GemmShape shape, ImageWalk walk, int tiles, int groups, int mapped) {                 \
        using Tile = HopperTiling<type, Output, m, n, stages, false, false, 2>;                                       \
        hopper_product<Tile>(ImageTiles<Tile>{images, weights, shape, walk}, c, target, bias, residual, shape, tiles, \
                             groups, mapped, shape.N);                                                                \
    }
#define CONV2D_WEIGHTS(type, M, N, stages)                                                                            \
    KERNEL(384, 1) conv2d_hopper_weights_##type##_##M##x##N(TENSOR_MAP gradients, TENSOR_MAP images, TENSOR_MAP c,    \
                                                            GemmShape shape, ImageWalk walk, int tiles, int groups) { \
        using Tile = HopperTiling<type, float, M, N, stages, true, true>;                                            \
        hopper_product<Tile>(PatchTiles<Tile>{gradients, images, shape, walk}, c, nullptr, nullptr, nullptr, shape,  \
                             tiles, groups, true);                                                                   \
    }
#define CONV2D_WEIGHTS_PAIRS(type, M, N, stages)                                                                      \
    CLUSTER_KERNEL(384, 1, 2) conv2d_hopper_weights_##type##_pairs_##M##x##N(                                         \
        TENSOR_MAP gradients, TENSOR_MAP images, TENSOR_MAP c, GemmShape shape, ImageWalk walk, int tiles, int groups) {\
        using Tile = HopperTiling<type, float, M, N, stages, true, true, 2>;                                          \
        hopper_product<Tile>(PatchTiles<Tile>{gradients, images, shape, walk}, c, nullptr, nullptr, nullptr, shape,   \
                             tiles, groups, true);                                                                    \
    }

CONV2D_IMAGES(bfloat16, bfloat16, bfloat16, 128, 256, 4)
CONV2D_IMAGES(bfloat16, bfloat16, bfloat16, 128, 128, 6)
CONV2D_IMAGES(bfloat16, bfloat16, bfloat16, 128, 64, 7)
CONV2D_IMAGES(bfloat16, bfloat16_planes, float, 128, 128, 6)
CONV2D_IMAGES_PAIRS(bfloat16, bfloat16, bfloat16, 128, 256, 4)
CONV2D_IMAGES_PAIRS(bfloat16, bfloat16, bfloat16, 128, 128, 6)
CONV2D_IMAGES_PAIRS(bfloat16, bfloat16_planes, float, 128, 128, 6)
CONV2D_WEIGHTS(bfloat16, 128, 128, 6)
CONV2D_WEIGHTS_PAIRS(bfloat16, 128, 128, 6)

#define CONV2D_PACK(source, Source, type)                                                                             \
    KERNEL(256, 4) conv2d_hopper_pack_##source##_##type(const Source* weights, type* packed, WeightOrder order) {    \
        pack_weights(weights, packed, order);                                                                        \
    }
#define CONV2D_ADD(type, output, Output)                                                                              \
    KERNEL(256, 4) conv2d_hopper_add_##type##_##output(const float* planes, Output* gw, WeightPlanes shape) {        \
        add_planes(planes, gw, shape);                                                                               \
    }

CONV2D_PACK(float32, float, bfloat16)
CONV2D_PACK(bfloat16, bfloat16, bfloat16)
CONV2D_ADD(bfloat16, bfloat16, bfloat16)
CONV2D_ADD(bfloat16, float32, float)
