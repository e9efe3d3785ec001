// conv2d_phases_hopper.cuh of bfloat16; gx as bfloat16, or planes of float32.
#include "conv2d_phases_hopper.cuh"

#define CONV2D_PHASES(type, name, Output, M, N, stages)                                                               \
    KERNEL(384, 1) conv2d_hopper_phases_##name##_##M##x##N(TENSOR_MAP gradients, TENSOR_MAP weights, Output* target, \
                                                           GemmShape shape, PhaseWalk walk, int tiles) {             \
        using Tile = HopperTiling<type, Output, M, N, stages, false, false>;                                         \
        phases_product<Tile>(PhaseTiles<Tile>{gradients, weights, shape, walk}, target, tiles);                      \
    }

CONV2D_PHASES(bfloat16, bfloat16, bfloat16, 128, 256, 4)
CONV2D_PHASES(bfloat16, bfloat16, bfloat16, 128, 128, 6)
CONV2D_PHASES(bfloat16, bfloat16, bfloat16, 128, 64, 7)
CONV2D_PHASES(bfloat16, bfloat16_planes, float, 128, 128, 6)
