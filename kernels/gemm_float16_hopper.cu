// gemm_hopper.cuh of float16, its output also float16, or float32.
#include "gemm_hopper.cuh"

#define GEMM_HOPPER(layout, rows, columns, output, Output, M, N, stages)                                               \
    KERNEL(384, 1) gemm_##layout##_hopper_float16_##output##_##M##x##N(                                                \
        TENSOR_MAP a, TENSOR_MAP b, TENSOR_MAP c, Output* target, const float* bias, const Output* residual,           \
        GemmShape shape, int tiles, int batches, int mapped) {                                                         \
        using Tile = HopperTiling<float16, Output, M, N, stages, rows, columns>;                                       \
        hopper_product<Tile>(MatrixTiles<Tile>{a, b, shape}, c, target, bias, residual, shape, tiles, batches, mapped);\
    }
#define GEMM_HOPPER_PAIRS(layout, rows, columns, output, Output, M, N, stages)                                         \
    CLUSTER_KERNEL(384, 1, 2) gemm_##layout##_hopper_float16_##output##_pairs_##M##x##N(                               \
        TENSOR_MAP a, TENSOR_MAP b, TENSOR_MAP c, Output* target, const float* bias, const Output* residual,           \
        GemmShape shape, int tiles, int batches, int mapped) {                                                         \
        using Tile = HopperTiling<float16, Output, M, N, stages, rows, columns, 2>;                                    \
        hopper_product<Tile>(MatrixTiles<Tile>{a, b, shape}, c, target, bias, residual, shape, tiles, batches, mapped);\
    }

GEMM_HOPPER(nn, false, true, float16, float16, 128, 256, 4)
GEMM_HOPPER(nt, false, false, float16, float16, 128, 256, 4)
GEMM_HOPPER(tn, true, true, float16, float16, 128, 256, 4)
GEMM_HOPPER(nn, false, true, float16, float16, 128, 128, 6)
GEMM_HOPPER(nt, false, false, float16, float16, 128, 128, 6)
GEMM_HOPPER(tn, true, true, float16, float16, 128, 128, 6)
GEMM_HOPPER(nn, false, true, float, float, 128, 128, 6)
GEMM_HOPPER(nt, false, false, float, float, 128, 128, 6)
GEMM_HOPPER(tn, true, true, float, float, 128, 128, 6)
GEMM_HOPPER_PAIRS(nn, false, true, float16, float16, 128, 256, 4)
GEMM_HOPPER_PAIRS(nt, false, false, float16, float16, 128, 256, 4)
GEMM_HOPPER_PAIRS(tn, true, true, float16, float16, 128, 256, 4)
GEMM_HOPPER_PAIRS(nn, false, true, float16, float16, 128, 128, 6)
GEMM_HOPPER_PAIRS(nt, false, false, float16, float16, 128, 128, 6)
GEMM_HOPPER_PAIRS(tn, true, true, float16, float16, 128, 128, 6)
GEMM_HOPPER_PAIRS(nn, false, true, float, float, 128, 128, 6)
GEMM_HOPPER_PAIRS(nt, false, false, float, float, 128, 128, 6)
GEMM_HOPPER_PAIRS(tn, true, true, float, float, 128, 128, 6)

// Planes of a split sum, in their order.
KERNEL(256, 4) gemm_hopper_add_float16(const float* workspace, float16* c, const float* bias, const float16* residual,
                                      GemmShape shape, int count) {
    add_splits(workspace, c, bias, residual, shape, count);
}
