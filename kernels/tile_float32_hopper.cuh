// Products of float32 tiles on Hopper's tensor cores with float32's errors: the ring of tile_hopper.cuh, other arithmetic.
//
// Values come as three bfloat16 parts (split_hopper.cu), x = x0 + x1 + x2, which hold all of float32's 24 bits. Of the nine
// products of parts six are computed, those of at least 2^-18 of x·y; the others together are at most 2^-24 of it. That
// takes the time of three products in tf32 (3xTF32), 6 bytes a value instead of 8, and keeps two bits more; the idea is
// that of Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022, for three parts Henry, Tang
// and Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations", 2019.
//
// Tensor cores cut sums off, in proportion to the sum so far. So every step of 32 terms starts from zero, the smallest
// products come first, and its sums are added in float32 registers, which round to nearest. Two sets of registers take
// turns: while one is added, the products of the next step go to the other, and the tensor cores never wait.
//
// A stage has the three parts of a's 128 rows, then of b's 128 columns, each in rows of 64 bytes, 32 terms, swizzled. A
// block needs 224 KB: four stages of 48 KB, and the pieces of c.
#pragma once
#include "tile_hopper.cuh"

constexpr int PARTS = 3;           // of a value
constexpr int PART_PRODUCTS = 6;   // of two values
constexpr int PART_ROW_BYTES = 64;

struct PartTiling {
    using Output = float;
    static constexpr int TILE_M = 128, TILE_N = 128, STAGES = 4, CLUSTER = 1;
    static constexpr int TERMS = PART_ROW_BYTES / sizeof(bfloat16), SLICES = PART_ROW_BYTES / SLICE_BYTES;
    static constexpr int LEFT_PART = TILE_M * PART_ROW_BYTES, RIGHT_PART = TILE_N * PART_ROW_BYTES;
    static constexpr int RIGHT = PARTS * LEFT_PART, STAGE = RIGHT + PARTS * RIGHT_PART;
    static constexpr int PIECE_COLUMNS = LINE_BYTES / sizeof(Output);
    static constexpr int OUT = STAGES * STAGE, BARRIERS = OUT + CONSUMERS * PIECES * PIECE_BYTES;
    static constexpr int SHARED_BYTES = BARRIERS + 2 * STAGES * sizeof(Barrier);
    using Sums = float[TILE_N / 2];
    static_assert(TILE_M == CONSUMERS * GROUP_TILE_ROWS, "one wgmma of 64 rows a consumer");
    static_assert(LEFT_PART % 1024 == 0 && RIGHT_PART % 1024 == 0, "where the pattern of a swizzle may start");
    static_assert(SHARED_BYTES <= 227 * 1024, "what a block may have");
};

// Starts the products of the next step, as one group.
template <class Tile>
__device__ __forceinline__ void begin_step(Ring<Tile>& ring, uint64_t left, uint64_t right,
                                           typename Tile::Sums& products) {
    constexpr int A[PART_PRODUCTS] = {2, 0, 1, 1, 0, 0}, B[PART_PRODUCTS] = {0, 2, 1, 0, 1, 0};  // the smallest first
    barrier_wait(ring.full(ring.stage), ring.parity);
    const uint64_t stage_left = further(left, ring.stage * Tile::STAGE);
    const uint64_t stage_right = further(right, ring.stage * Tile::STAGE);
    wgmma_fence();
#pragma unroll
    for (int product = 0; product < PART_PRODUCTS; ++product) {
#pragma unroll
        for (int slice = 0; slice < Tile::SLICES; ++slice)
            wgmma<bfloat16, Tile::TILE_N>(
                products, further(stage_left, A[product] * Tile::LEFT_PART + slice * SLICE_BYTES),
                further(stage_right, B[product] * Tile::RIGHT_PART + slice * SLICE_BYTES), product > 0 || slice > 0);
    }
    wgmma_commit();
    ring.next();
}

// Waits for the oldest step, with LATER begun after it, gives its stage back and adds its products.
template <int LATER, class Tile>
__device__ __forceinline__ void end_step(const Ring<Tile>& ring, typename Tile::Sums& products,
                                         typename Tile::Sums& sums) {
    wgmma_wait<LATER>();
    wgmma_hold(products);
    const int stage = ring.stage - 1 - LATER;
    if (threadIdx.x % WARP_SIZE == 0) barrier_arrive(ring.empty(stage < 0 ? stage + Tile::STAGES : stage));
#pragma unroll
    for (int i = 0; i < Tile::TILE_N / 2; ++i) sums[i] += products[i];
}

// sums = all products of a tile, of one step at least.
template <class Tile>
__device__ __forceinline__ void multiply_parts(Ring<Tile>& ring, int steps, int group, typename Tile::Sums& sums) {
    constexpr int PATTERN = 8 * PART_ROW_BYTES;
    const uint64_t left =
        matrix_descriptor<PART_ROW_BYTES>(ring.tiles + group * GROUP_TILE_ROWS * PART_ROW_BYTES, 16, PATTERN);
    const uint64_t right = matrix_descriptor<PART_ROW_BYTES>(ring.tiles + Tile::RIGHT, 16, PATTERN);
    typename Tile::Sums even, odd;
#pragma unroll
    for (int i = 0; i < Tile::TILE_N / 2; ++i) sums[i] = 0.0f;
    begin_step<Tile>(ring, left, right, even);
#pragma unroll 1
    for (; steps > 2; steps -= 2) {
        begin_step<Tile>(ring, left, right, odd);
        end_step<1, Tile>(ring, even, sums);
        begin_step<Tile>(ring, left, right, even);
        end_step<1, Tile>(ring, odd, sums);
    }
    if (steps == 2) {
        begin_step<Tile>(ring, left, right, odd);
        end_step<1, Tile>(ring, even, sums);
        end_step<0, Tile>(ring, odd, sums);
    } else {
        end_step<0, Tile>(ring, even, sums);
    }
}

// Consumer number `group`, as `consume` of tile_hopper.cuh.
template <class Tile>
__device__ __forceinline__ void consume_parts(Ring<Tile> ring, int group, const TensorMap& c, float* target,
                                              const float* bias, const float* residual, const GemmShape& shape,
                                              int tiles, int batches, bool mapped) {
    unsigned char* buffers = ring.tiles + Tile::OUT + group * PIECES * PIECE_BYTES;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Position at = block_position<Tile::TILE_M, Tile::TILE_N>(shape, tile);
        typename Tile::Sums sums;
        multiply_parts<Tile>(ring, steps_at<Tile>(shape, at), group, sums);
        const float* addend = residual ? residual + at.batch * shape.c_batch : nullptr;
        const Epilogue<Tile> epilogue(shape, bias, addend, at.row + group * GROUP_TILE_ROWS, at.column);
        if (mapped) {
            store_pieces<Tile>(epilogue, sums, group, buffers, c, at.split * batches + at.batch, turn);
        } else {
            epilogue.store(sums, target + at.batch * shape.c_batch + at.split * shape.c_split);
        }
    }
    if (threadIdx.x % WARPGROUP == 0) tma_store_wait_read<0>();
}

// A block of a launch that computes `tiles` tiles in all.
template <class Tile, class Load>
__device__ __forceinline__ void product_of_parts(Load load, const TensorMap& c, float* target, const float* bias,
                                                 const float* residual, const GemmShape& shape, int tiles, int batches,
                                                 bool mapped) {
    SHARED_BOXES(unsigned char, shared);
    const Ring<Tile> ring(shared);
    if (threadIdx.x == 0) ring.init();
    __syncthreads();
    const int group = __shfl_sync(ALL_LANES, threadIdx.x / WARPGROUP, 0);  // the same in all lanes, for the compiler too
    if (group == 0) {
        give_registers<40>();
        if (threadIdx.x == 0) produce<Tile>(load, ring, shape, tiles);
    } else {
        take_registers<232>();
        consume_parts<Tile>(ring, group - 1, c, target, bias, residual, shape, tiles, batches, mapped);
    }
}
