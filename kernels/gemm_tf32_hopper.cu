// gemm_hopper.cuh of float32, which the copy engine rounds to tf32.
#include "gemm_hopper.cuh"

#define GEMM_HOPPER(layout, rows, columns, output, Output, M, N, stages)                                               \
    KERNEL(384, 1) gemm_##layout##_hopper_tf32_##output##_##M##x##N(                                                   \
        TENSOR_MAP a, TENSOR_MAP b, TENSOR_MAP c, Output* target, const float* bias, const Output* residual,           \
        GemmShape shape, int tiles, int batches, int mapped) {                                                         \
        using Tile = HopperTiling<Tf32Bits, Output, M, N, stages, rows, columns>;                                      \
        hopper_product<Tile>(MatrixTiles<Tile>{a, b, shape}, c, target, bias, residual, shape, tiles, batches, mapped);\
    }
#define GEMM_HOPPER_PAIRS(layout, rows, columns, output, Output, M, N, stages)                                         \
    CLUSTER_KERNEL(384, 1, 2) gemm_##layout##_hopper_tf32_##output##_pairs_##M##x##N(                                  \
        TENSOR_MAP a, TENSOR_MAP b, TENSOR_MAP c, Output* target, const float* bias, const Output* residual,           \
        GemmShape shape, int tiles, int batches, int mapped) {                                                         \
        using Tile = HopperTiling<Tf32Bits, Output, M, N, stages, rows, columns, 2>;                                   \
        hopper_product<Tile>(MatrixTiles<Tile>{a, b, shape}, c, target, bias, residual, shape, tiles, batches, mapped);\
    }

GEMM_HOPPER(nt, false, false, float, float, 128, 256, 4)
GEMM_HOPPER(nt, false, false, float, float, 128, 128, 6)
GEMM_HOPPER_PAIRS(nt, false, false, float, float, 128, 256, 4)
GEMM_HOPPER_PAIRS(nt, false, false, float, float, 128, 128, 6)

// Planes of a split sum, in their order.
KERNEL(256, 4) gemm_hopper_add_float32(const float* workspace, float* c, const float* bias, const float* residual,
                                      GemmShape shape, int count) {
    add_splits(workspace, c, bias, residual, shape, count);
}
