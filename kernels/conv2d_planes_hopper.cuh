// Convolutions of NCHW images on Hopper's tensor cores, 16 bits, stride 1, one group; nothing is transposed on the way
// in or out. For sm_90a alone; conv2d_planes_bfloat16_hopper.cu and conv2d_planes_float16_hopper.cu.
//
// conv2d_hopper_planes: c (filters, pixels) = weights · images, for every image, so that c is the NCHW output. A tile's
// pixels are a rectangle of an image, 16, 32 or 64 wide; terms are (64 channels, tap, channel of the 64). The rectangle
// of a tap and 64 channels is one box of the copy engine, by a map of the dimensions (column, channel, row, image). It
// comes as [row][channel][column], with zeros beyond the borders and the last channel. That is wgmma's layout of
// contiguous pixels: a row of the rectangle is a slab, and its width that of the swizzle. Weights are packed (filter,
// tap, channel), a dimension each.
// - forward: images x and the weights (K,R,S,C)
// - backward_input: images gy, whose windows are those of the filter turned round, and weights (C,R,S,K)
// Then bias, residual (of c's type and order, or null) and ReLU. c is overwritten.
//
// The pipeline, stages and barriers are tile_hopper.cuh's. Consumers share the filters of a tile of 128, and the pixels
// of one of 64. Sums meet the residual in shared memory, 64 filters × 64 pixels at a time in two buffers a warpgroup,
// and leave by the copy engine where rows of c begin at multiples of 16 bytes, else thread by thread. What hangs over
// the edges of c is not written.
#pragma once
#include "conv2d_planes_pieces.cuh"

template <class Type_, int M, int N, int STAGES_>
struct PlanesTiling {
    using Type = Type_;
    static constexpr int TILE_M = M, TILE_N = N, STAGES = STAGES_, CLUSTER = 1;
    static constexpr bool SHARES_FILTERS = M == CONSUMERS * GROUP_TILE_ROWS;
    static constexpr int PIXELS = SHARES_FILTERS ? N : N / CONSUMERS;  // of a consumer
    static constexpr int TERMS = LINE_BYTES / sizeof(Type), SLICES = LINE_BYTES / SLICE_BYTES;
    static constexpr int RIGHT = M * LINE_BYTES, STAGE = (M + N) * LINE_BYTES;
    static constexpr int LEFT_SHARE = SHARES_FILTERS ? GROUP_TILE_ROWS * LINE_BYTES : 0;  // to the next consumer's
    static constexpr int RIGHT_SHARE = SHARES_FILTERS ? 0 : PIXELS * LINE_BYTES;
    static constexpr int OUT = STAGES * STAGE, BARRIERS = OUT + CONSUMERS * PIECES * PIECE_BYTES;
    static constexpr int SHARED_BYTES = BARRIERS + 2 * STAGES * sizeof(Barrier);
    using Sums = float[PIXELS / 2];
    static_assert(sizeof(Type) == 2, "wgmma takes tf32 terms side by side only");
    static_assert(SHARES_FILTERS || M == GROUP_TILE_ROWS, "one wgmma of 64 filters a consumer");
    static_assert(PIXELS % PIECE_PIXELS == 0 && PIXELS <= 256, "whole pieces of one wgmma");
    static_assert(SHARED_BYTES <= 227 * 1024, "what a block may have");
};

// The producer's thread.
template <class Tile>
__device__ __forceinline__ void produce_planes(Ring<Tile> ring, const TensorMap& weights, const TensorMap& images,
                                               const PlaneWalk& walk, int tiles) {
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const PlanePlace at = plane_place<Tile>(walk, tile);
        const int top = at.row + walk.first_h, left = at.column + walk.first_w;
        int slab = 0, row = 0, column = 0;
#pragma unroll 1
        for (int step = walk.rows * walk.columns * walk.slabs; step > 0; --step) {
            barrier_wait(ring.empty(ring.stage), ring.parity ^ 1);
            barrier_arrive_expect(ring.full(ring.stage), Tile::STAGE);
            unsigned char* stage = ring.tiles + ring.stage * Tile::STAGE;
            const int channel = slab * Tile::TERMS;
            const int filters[3] = {channel, row * walk.columns + column, at.filter};
            const int pixels[4] = {left + column * walk.dilation_w, channel, top + row * walk.dilation_h, at.image};
            tma_load<3>(stage, weights, ring.full(ring.stage), filters);
            tma_load<4>(stage + Tile::RIGHT, images, ring.full(ring.stage), pixels);
            if (++column == walk.columns) column = 0, ++row;
            if (row == walk.rows) row = 0, ++slab;
            ring.next();
        }
    }
}

// What says where the pixels stand: the next row of the rectangle is 64 channels further on.
__device__ __forceinline__ uint64_t pixels_operand(const unsigned char* tile, int log_width) {
    const int line = 2 << log_width, row = 64 * line, eight = 8 * line;
    return log_width == 6   ? matrix_descriptor<128>(tile, row, eight)
           : log_width == 5 ? matrix_descriptor<64>(tile, row, eight)
                            : matrix_descriptor<32>(tile, row, eight);
}

// sums = all products of a tile. A stage is given back when the products of the one after it have been begun.
template <class Tile>
__device__ __forceinline__ void multiply_planes(Ring<Tile>& ring, const PlaneWalk& walk, int group,
                                                typename Tile::Sums& sums) {
    const uint64_t left = matrix_descriptor<LINE_BYTES>(ring.tiles + group * Tile::LEFT_SHARE, 16, PATTERN_BYTES);
    const uint64_t right = pixels_operand(ring.tiles + Tile::RIGHT + group * Tile::RIGHT_SHARE, walk.log_width);
    const int slice_bytes = 16 * (2 << walk.log_width), steps = walk.rows * walk.columns * walk.slabs;
    const bool leads = threadIdx.x % WARP_SIZE == 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        barrier_wait(ring.full(ring.stage), ring.parity);
        const uint64_t stage_left = further(left, ring.stage * Tile::STAGE);
        const uint64_t stage_right = further(right, ring.stage * Tile::STAGE);
        wgmma_fence();
#pragma unroll
        for (int slice = 0; slice < Tile::SLICES; ++slice)
            wgmma<typename Tile::Type, Tile::PIXELS, false, true>(sums, further(stage_left, slice * SLICE_BYTES),
                                                                  further(stage_right, slice * slice_bytes),
                                                                  step > 0 || slice > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (leads && step > 0) barrier_arrive(ring.empty(ring.previous()));
        ring.next();
    }
    wgmma_wait<0>();
    wgmma_hold(sums);
    if (leads) barrier_arrive(ring.empty(ring.previous()));
}

// Where sums of a tile go.
template <class Type>
struct PlaneTarget {
    const TensorMap& map;
    Type* array;  // null where the map is used
    const float* bias;
    const Type* residual;
};

// A consumer's sums to c, from `at` on, piece by piece; `turn` says which of the buffers is next, on from tile to tile.
template <class Tile>
__device__ __forceinline__ void store_planes(const PlaneWalk& walk, const PlaneTarget<typename Tile::Type>& c,
                                             PlanePlace at, const typename Tile::Sums& sums, int group,
                                             unsigned char* buffers, int& turn) {
    using Type = typename Tile::Type;
    const bool leads = threadIdx.x % WARPGROUP == 0;
    const int filter = at.filter + threadIdx.x % WARPGROUP / WARP_SIZE * 16 + threadIdx.x % WARP_SIZE / 4;
    const float bias[2] = {c.bias && filter < walk.filters ? c.bias[filter] : 0.0f,
                           c.bias && filter + 8 < walk.filters ? c.bias[filter + 8] : 0.0f};
#pragma unroll
    for (int first = 0; first < Tile::PIXELS; first += PIECE_PIXELS) {
        if (at.row >= walk.height || at.filter >= walk.filters) continue;
        unsigned char* piece = buffers + turn * PIECE_BYTES;
        if (leads) tma_store_wait_read<PIECES - 1>();
        named_barrier_wait(1 + group, WARPGROUP);  // the buffer is free
        if (c.residual) {
            copy_piece<false>(walk, at, piece, const_cast<Type*>(c.residual));
            named_barrier_wait(1 + group, WARPGROUP);
        }
        write_piece<Tile>(walk, sums, first / 8, bias, c.residual, piece);
        fence_async_shared();
        named_barrier_wait(1 + group, WARPGROUP);  // and full
        if (c.array) {
            copy_piece<true>(walk, at, piece, c.array);
        } else if (leads) {
            const int to[4] = {at.column, at.filter, at.row, at.image};
            tma_store<4>(c.map, piece, to);
            tma_store_commit();
        }
        turn ^= 1;
        at.row += PIECE_PIXELS >> walk.log_width;
    }
}

template <class Tile>
__device__ __forceinline__ void consume_planes(Ring<Tile> ring, int group, const PlaneTarget<typename Tile::Type>& c,
                                               const PlaneWalk& walk, int tiles) {
    unsigned char* buffers = ring.tiles + Tile::OUT + group * PIECES * PIECE_BYTES;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        typename Tile::Sums sums;
        multiply_planes<Tile>(ring, walk, group, sums);
        PlanePlace at = plane_place<Tile>(walk, tile);
        if (Tile::SHARES_FILTERS) at.filter += group * GROUP_TILE_ROWS;
        else at.row += group * (Tile::PIXELS >> walk.log_width);
        store_planes<Tile>(walk, c, at, sums, group, buffers, turn);
    }
    if (threadIdx.x % WARPGROUP == 0) tma_store_wait_read<0>();
}

// A block of a launch that computes `tiles` tiles in all.
template <class Tile>
__device__ __forceinline__ void planes_product(const TensorMap& weights, const TensorMap& images,
                                               const PlaneTarget<typename Tile::Type>& c, const PlaneWalk& walk,
                                               int tiles) {
    SHARED_BOXES(unsigned char, shared);
    const Ring<Tile> ring(shared);
    if (threadIdx.x == 0) ring.init();
    __syncthreads();
    const int group = __shfl_sync(ALL_LANES, threadIdx.x / WARPGROUP, 0);  // the compiler sees the same in all lanes
    if (group == 0) {
        give_registers<40>();
        if (threadIdx.x == 0) produce_planes<Tile>(ring, weights, images, walk, tiles);
    } else {
        take_registers<232>();
        consume_planes<Tile>(ring, group - 1, c, walk, tiles);
    }
}
