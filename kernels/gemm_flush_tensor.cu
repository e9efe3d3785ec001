// c[n] = a[n] · b[n] for n < B, as gemm_flush.cu, on tensor cores with float32's errors (Float32Tensor of tile_tensor.cuh),
// from sm_80. c is overwritten, or added to with `add`.
//
// The two levels of sums are the arithmetic's own: the 16 terms of a step in the tensor core, and float32 sums of steps in
// registers. 4096 terms are a chain of 256, so shared memory holds no sums. Layouts, splits and planes are gemm_flush.cu's.
#include "gemm.cuh"
#include "tile_tensor.cuh"

template <class Tile, class Left, class Right>
__device__ __forceinline__ void gemm_flush_tensor(const float* a, const float* b, float* c, const GemmShape& shape,
                                                  bool add) {
    SHARED(float, tiles, [2 * Tile::STAGE]);
    int steps;
    auto load = block_operands<Tile, Left, Right>(a, b, shape, steps);
    Sums<Tile> sums = {};
    multiply_steps<Tile>(load, steps, shared_floats(tiles), sums);
    // Computed anew: in the loop above every register counts.
    const Position to = block_position<Tile::TILE_M, Tile::TILE_N>(shape, opaque(blockIdx.x));
    float* target = c + to.batch * shape.c_batch + to.split * shape.c_split;
    store_sums<Tile>(sums, target, nullptr, shape, to.row + thread_row<Tile>(), to.column + thread_column<Tile>(), add,
                     false);
}

#define GEMM_FLUSH_TENSOR(layout, Operand, M, N, warp_m, warp_n, threads, blocks)                                      \
    KERNEL(threads, blocks) gemm_##layout##_flush_float32_tensor_##M##x##N(const float* a, const float* b, float* c,    \
                                                                           GemmShape shape, int add) {                 \
        using Tile = TensorTiling<Float32Tensor, M, N, warp_m, warp_n>;                                                \
        gemm_flush_tensor<Tile, Operand<M, Tile>, Operand<N, Tile>>(a, b, c, shape, add);                              \
    }

GEMM_FLUSH_TENSOR(tn, RowQuads, 128, 128, 64, 32, 256, 1)
GEMM_FLUSH_TENSOR(nt, TermsContiguous, 128, 128, 64, 32, 256, 1)
GEMM_FLUSH_TENSOR(tn, RowQuads, 64, 64, 32, 32, 128, 3)
GEMM_FLUSH_TENSOR(nt, TermsContiguous, 64, 64, 32, 32, 128, 3)
