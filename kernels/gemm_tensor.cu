// c[n] = a[n] · b[n] on tensor cores, from float32 in memory: gemm.cu with other arithmetic (tile_tensor.cuh), from sm_80.
//
// Layouts, batch, splits, bias and ReLU are gemm.cu's; gemm_add_splits there adds the planes. A chain of CHUNK products
// is summed before it is added to c.
//
// Tiles, floats of c a block: 128x128 (eight warps of 64 × 32) and 64x64 (four of 32 × 32); STAGES tiles of TERMS terms
// in dynamic shared memory arrive while others are multiplied, one barrier a step.
#include "gemm.cuh"
#include "tile_tensor.cuh"

constexpr int CHUNK = 1024, TERMS = 16, STAGES = 3;

template <int EXTENT, int TERMS_, int THREADS>
using SwizzledTerms = TermsContiguous<EXTENT, TERMS_, THREADS, Swizzled<EXTENT>>;
template <int EXTENT, int TERMS_, int THREADS>
using SwizzledRows = RowsContiguous<EXTENT, TERMS_, THREADS, Swizzled<EXTENT>>;

// Where a warp works in the block's tile; warps stand side by side along the columns.
template <int TILE_N, int WARP_M, int WARP_N>
__device__ __forceinline__ int warp_row() {
    return opaque(threadIdx.x) / WARP_SIZE / (TILE_N / WARP_N) * WARP_M;
}
template <int TILE_N, int WARP_N>
__device__ __forceinline__ int warp_column() {
    return opaque(threadIdx.x) / WARP_SIZE % (TILE_N / WARP_N) * WARP_N;
}

// Writes a lane's sums of a warp's tile at (row, column) to c, added to what stands there if `add`; `bias` may be null.
template <int WARP_M, int WARP_N>
__device__ __forceinline__ void store_sums(const WarpSums<WARP_M, WARP_N>& sums, float* c, const float* bias,
                                           const GemmShape& shape, int row, int column, bool add, bool relu) {
    using Sums = WarpSums<WARP_M, WARP_N>;
    const int lane = threadIdx.x % WARP_SIZE;
    const bool vectors = (reinterpret_cast<uint64_t>(c) & 7) == 0 && shape.c_stride % 2 == 0;
#pragma unroll
    for (int n = 0; n < Sums::COLUMN_TILES; ++n) {
        const int first = column + n * 8 + lane % 4 * 2;
        float column_bias[2] = {};
        if (bias && !shape.bias_per_row)
            for (int j = 0; j < 2; ++j) column_bias[j] = first + j < shape.N ? bias[first + j] : 0.0f;
#pragma unroll
        for (int m = 0; m < 2 * Sums::ROW_TILES; ++m) {
            const int line = row + m * 8 + lane / 4;
            if (line >= shape.M) continue;
            const float row_bias = bias && shape.bias_per_row ? bias[line] : 0.0f;
            float* const target = c + line * shape.c_stride + first;
            float values[2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float before = add && first + j < shape.N ? target[j] : 0.0f;
                values[j] = finish(sums.values[m / 2][n][m % 2 * 2 + j] + before + row_bias + column_bias[j], relu);
            }
            if (vectors && first + 2 <= shape.N) {
                store2(target, values[0], values[1]);
            } else {
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    if (first + j < shape.N) target[j] = values[j];
            }
        }
    }
}

template <class Arithmetic, int TILE_M, int TILE_N, int WARP_M, int WARP_N, template <int, int, int> class Left,
          template <int, int, int> class Right>
__device__ __forceinline__ void gemm_tensor(const float* a, const float* b, float* c, const float* bias,
                                            const GemmShape& shape) {
    constexpr int THREADS = TILE_M / WARP_M * (TILE_N / WARP_N) * WARP_SIZE;
    constexpr int LEFT_FLOATS = TERMS * Swizzled<TILE_M>::PITCH, STAGE_FLOATS = LEFT_FLOATS + TERMS * Swizzled<TILE_N>::PITCH;
    static_assert(CHUNK % TERMS == 0, "whole steps");
    DYNAMIC_SHARED(float, tiles);
    const Position at = block_position<TILE_M, TILE_N>(shape, blockIdx.x);
    const int first_term = at.split * shape.split_terms, terms = min(shape.split_terms, shape.K - first_term);
    Left<TILE_M, TERMS, THREADS> left(a + at.batch * shape.a_batch, shape.a_stride, at.row, shape.M, first_term);
    Right<TILE_N, TERMS, THREADS> right(b + at.batch * shape.b_batch, shape.b_stride, at.column, shape.N, first_term);
    const LaneOffsets<TILE_M> rows(warp_row<TILE_N, WARP_M, WARP_N>());
    const LaneOffsets<TILE_N> columns(warp_column<TILE_N, WARP_N>());

    for (int done = 0; done == 0 || done < terms; done += CHUNK) {
        const int chunk = min(CHUNK, terms - done);
        int arriving = 0, stage = 0;  // offsets in `tiles`
        const auto copy = [&](int left_terms) {
            if (left_terms > 0) {
                left.copy(tiles + arriving, left_terms);
                right.copy(tiles + arriving + LEFT_FLOATS, left_terms);
            }
            copy_async_commit();
            arriving = arriving == (STAGES - 1) * STAGE_FLOATS ? 0 : arriving + STAGE_FLOATS;
        };
        WarpSums<WARP_M, WARP_N> sums;
        for (int step = 0; step < STAGES - 1; ++step) copy(chunk - step * TERMS);
        for (int k = 0; k < chunk; k += TERMS) {
            copy_async_wait<STAGES - 2>();
            __syncthreads();  // this stage has arrived, and the one before is no longer read
            copy(chunk - k - (STAGES - 1) * TERMS);
            Arithmetic::template multiply<TERMS, TILE_M, TILE_N>(tiles + stage, tiles + stage + LEFT_FLOATS, rows, columns,
                                                                 sums);
            stage = stage == (STAGES - 1) * STAGE_FLOATS ? 0 : stage + STAGE_FLOATS;
        }
        const bool last = done + CHUNK >= terms;
        // Computed anew: in the loop above every register counts.
        const Position to = block_position<TILE_M, TILE_N>(shape, opaque(blockIdx.x));
        float* target = c + to.batch * shape.c_batch + to.split * shape.c_split;
        store_sums(sums, target, last ? bias : nullptr, shape, to.row + warp_row<TILE_N, WARP_M, WARP_N>(),
                   to.column + warp_column<TILE_N, WARP_N>(), done > 0, last && shape.relu);
        if (!last) __syncthreads();  // the stages are read until here
    }
}

#define GEMM(layout, Left, Right, arithmetic, Arithmetic, M, N, warp_m, warp_n, threads, blocks)                        \
    KERNEL(threads, blocks) gemm_##layout##_##arithmetic##_##M##x##N(const float* a, const float* b, float* c,           \
                                                                     const float* bias, GemmShape shape) {              \
        gemm_tensor<Arithmetic, M, N, warp_m, warp_n, Left, Right>(a, b, c, bias, shape);                               \
    }

GEMM(nn, SwizzledTerms, SwizzledRows, tf32, Tf32, 128, 128, 64, 32, 256, 2)
GEMM(nt, SwizzledTerms, SwizzledTerms, tf32, Tf32, 128, 128, 64, 32, 256, 2)
GEMM(tn, SwizzledRows, SwizzledRows, tf32, Tf32, 128, 128, 64, 32, 256, 2)
GEMM(nn, SwizzledTerms, SwizzledRows, tf32, Tf32, 64, 64, 32, 32, 128, 4)
GEMM(nt, SwizzledTerms, SwizzledTerms, tf32, Tf32, 64, 64, 32, 32, 128, 4)
GEMM(tn, SwizzledRows, SwizzledRows, tf32, Tf32, 64, 64, 32, 32, 128, 4)
GEMM(nn, SwizzledTerms, SwizzledRows, float32_tensor, Float32Tensor, 128, 128, 64, 32, 256, 1)
GEMM(nt, SwizzledTerms, SwizzledTerms, float32_tensor, Float32Tensor, 128, 128, 64, 32, 256, 1)
GEMM(tn, SwizzledRows, SwizzledRows, float32_tensor, Float32Tensor, 128, 128, 64, 32, 256, 1)
GEMM(nn, SwizzledTerms, SwizzledRows, float32_tensor, Float32Tensor, 64, 64, 32, 32, 128, 3)
GEMM(nt, SwizzledTerms, SwizzledTerms, float32_tensor, Float32Tensor, 64, 64, 32, 32, 128, 3)
GEMM(tn, SwizzledRows, SwizzledRows, float32_tensor, Float32Tensor, 64, 64, 32, 32, 128, 3)
