// conv2d_hopper.cuh of bfloat16.
#include "conv2d_hopper.cuh"

#define CONV2D_IMAGES(type, M, N, stages)                                                                             \
    KERNEL(384, 1) conv2d_hopper_images_##type##_##M##x##N(                                                           \
        TENSOR_MAP images, TENSOR_MAP weights, TENSOR_MAP c, type* target, const float* bias, const type* residual,   \
        GemmShape shape, ImageWalk walk, int tiles, int mapped) {                                                     \
        using Tile = HopperTiling<type, type, M, N, stages, false, false>;                                            \
        hopper_product<Tile>(ImageTiles<Tile>{images, weights, shape, walk}, c, target, bias, residual, shape, tiles, \
                             1, mapped);                                                                              \
    }
#define CONV2D_WEIGHTS(type, M, N, stages)                                                                            \
    KERNEL(384, 1) conv2d_hopper_weights_##type##_##M##x##N(TENSOR_MAP gradients, TENSOR_MAP images, TENSOR_MAP c,    \
                                                            GemmShape shape, ImageWalk walk, int tiles) {            \
        using Tile = HopperTiling<type, float, M, N, stages, true, true>;                                            \
        hopper_product<Tile>(PatchTiles<Tile>{gradients, images, shape, walk}, c, nullptr, nullptr, nullptr, shape,  \
                             tiles, 1, true);                                                                        \
    }

CONV2D_IMAGES(bfloat16, 128, 256, 4)
CONV2D_IMAGES(bfloat16, 128, 128, 6)
CONV2D_WEIGHTS(bfloat16, 128, 128, 6)

#define CONV2D_PACK(source, Source, type)                                                                             \
    KERNEL(256, 4) conv2d_hopper_pack_##source##_##type(const Source* weights, type* packed, int channels, int taps, \
                                                        int64 filter_stride, int64 channel_stride, int turned,       \
                                                        int count) {                                                 \
        pack_weights(weights, packed, channels, taps, filter_stride, channel_stride, turned, count);                 \
    }
#define CONV2D_ADD(type, output, Output)                                                                              \
    KERNEL(256, 4) conv2d_hopper_add_##type##_##output(const float* planes, Output* gw, int splits, int channels,    \
                                                       int pitch, int taps, int count) {                             \
        add_planes(planes, gw, splits, channels, pitch, taps, count);                                                \
    }

CONV2D_PACK(float32, float, bfloat16)
CONV2D_PACK(bfloat16, bfloat16, bfloat16)
CONV2D_ADD(bfloat16, bfloat16, bfloat16)
CONV2D_ADD(bfloat16, float32, float)
