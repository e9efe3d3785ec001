// c[n] = a[n] · b[n] for n < B, float32 with float32's errors on Hopper's tensor cores (tile_float32_hopper.cuh); then
// bias, residual (of c's strides, or null) and ReLU. c is overwritten. For sm_90a alone.
//
// a and b come as parts, (part, matrix, row of a or column of b, term), by maps of four dimensions, the terms first; a box
// is 32 terms of 128 rows, all three parts. c (B,M,N) has contiguous columns; its map, splits and planes are
// gemm_hopper.cuh's, and gemm_hopper_add_float32 adds the planes.
#include "tile_float32_hopper.cuh"

template <class Tile>
struct MatrixParts {
    const TensorMap &a, &b;
    const GemmShape& shape;
    int row, column, term, a_batch, b_batch;

    __device__ __forceinline__ void start(const Position& at) {
        row = at.row, column = at.column, term = at.split * shape.split_terms;
        a_batch = shape.a_batch ? at.batch : 0;
        b_batch = shape.b_batch ? at.batch : 0;
    }
    __device__ __forceinline__ void operator()(unsigned char* left, unsigned char* right, Barrier* full) {
        const int at_a[4] = {term, row, a_batch, 0}, at_b[4] = {term, column, b_batch, 0};
        tma_load<4>(left, a, full, at_a);
        tma_load<4>(right, b, full, at_b);
        term += Tile::TERMS;
    }
};

KERNEL(384, 1) gemm_hopper_float32_tensor_128x128(TENSOR_MAP a, TENSOR_MAP b, TENSOR_MAP c, float* target,
                                                  const float* bias, const float* residual, GemmShape shape, int tiles,
                                                  int batches, int mapped) {
    product_of_parts<PartTiling>(MatrixParts<PartTiling>{a, b, shape}, c, target, bias, residual, shape, tiles, batches,
                                 mapped);
}
