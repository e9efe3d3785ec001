// c[n] = a[n] · b[n] for n < B on Hopper's tensor cores (tile_hopper.cuh): a (B,M,K), b (B,K,N), c (B,M,N), K > 0; then
// bias, residual (of c's type and strides, or null) and ReLU. c is overwritten. For sm_90a alone.
//
// Types, a file each: bfloat16 and float16, summed in float32 and stored as they came or in float32; float32, rounded to
// tf32.
// Layouts: in a, the terms (k) are contiguous ("n") or the rows are ("t"); in b, the columns ("n") or the terms ("t").
// tf32 needs both operands' terms contiguous, "nt". c's columns are contiguous.
//
// Maps of a and b have three dimensions, the contiguous one first and the batch last; their boxes are 128 bytes by as
// many rows as the tile has (of b in pairs of blocks, half as many), or, where not the terms are contiguous, by 64 terms.
// That of c has boxes of 128 bytes × 64
// rows, and as batches all planes: where the terms are split, gemm_hopper_add adds them in their order, so bits do
// not depend on timing.
#pragma once
#include "tile_hopper.cuh"

// The tiles of two matrices.
template <class Tile>
struct MatrixTiles {
    const TensorMap &a, &b;
    const GemmShape& shape;
    int row, column, term, a_batch, b_batch;

    __device__ __forceinline__ void start(const Position& at) {
        row = at.row, column = at.column, term = at.split * shape.split_terms;
        a_batch = shape.a_batch ? at.batch : 0;
        b_batch = shape.b_batch ? at.batch : 0;
    }
    template <int EXTENT, bool ROWS, int BLOCKS>
    __device__ __forceinline__ void load(unsigned char* target, const TensorMap& map, int first, int batch,
                                         Barrier* full) const {
        if constexpr (ROWS) {
#pragma unroll
            for (int slab = 0; slab < EXTENT / Tile::SLAB; ++slab) {
                const int at[3] = {first + slab * Tile::SLAB, term, batch};
                load_box<BLOCKS>(target + slab * Tile::SLAB_BYTES, map, full, at);
            }
        } else {
            const int at[3] = {term, first, batch};
            load_box<BLOCKS>(target, map, full, at);
        }
    }
    __device__ __forceinline__ void operator()(unsigned char* left, unsigned char* right, Barrier* full) {
        const int start = share_start<Tile>();
        load<Tile::TILE_M, Tile::LEFT_ROWS, 1>(left, a, row, a_batch, full);
        load<Tile::SHARE, Tile::RIGHT_COLUMNS, Tile::CLUSTER>(right + start * LINE_BYTES, b, column + start, b_batch, full);
        term += Tile::TERMS;
    }
};

// c = Σ planes (splits,B,M,N), in their order, plus bias and residual, ReLU; `count` = B·M·N.
template <class Output>
__device__ __forceinline__ void add_splits(const float* workspace, Output* c, const float* bias, const Output* residual,
                                           const GemmShape& shape, int count) {
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) {
        const unsigned line = i / shape.N, column = i % shape.N, row = line % shape.M, batch = line / shape.M;
        float sum = 0.0f;
#pragma unroll 4
        for (int split = 0; split < shape.splits; ++split) sum += workspace[split * static_cast<int64>(count) + i];
        if (bias) sum += bias[shape.bias_per_row ? row : column];
        const int64 to = batch * shape.c_batch + row * shape.c_stride + column;
        if (residual) sum += to_float(residual[to]);
        c[to] = round_to<Output>(finish(sum, shape.relu));
    }
}
