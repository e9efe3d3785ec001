// Convolutions of NCHW images on Hopper's tensor cores, 16 bits, stride 1, one group: nothing is transposed, neither on the
// way in nor out. For sm_90a alone; conv2d_planes_bfloat16_hopper.cu and conv2d_planes_float16_hopper.cu.
//
// conv2d_hopper_planes: c (filters, pixels) = weights · images, for every image, so that c is the NCHW output. A tile's
// pixels are a rectangle of an image, 16, 32 or 64 wide; terms are (64 channels, tap, channel of the 64). The rectangle of
// a tap and 64 channels is one box of the copy engine, whose map has the dimensions (column, channel, row, image): it comes
// as [row][channel][column], zeros beyond the borders and the last channel. That is wgmma's layout "pixels contiguous": a
// row of the rectangle is a slab, and the width is that of the swizzle. Weights are packed (filter, tap, channel).
// - forward: images x and the weights (K,R,S,C)
// - backward_input: images gy, whose windows are those of the filter turned round, and weights (C,R,S,K)
// Then bias, residual (of c's type and order, or null) and ReLU. c is overwritten.
//
// The pipeline, stages and barriers are tile_hopper.cuh's. Consumers share the filters of a tile of 128, and the pixels of
// one of 64. Sums leave by boxes of 64 filters × 64 pixels where rows of c begin at multiples of 16 bytes, else thread by
// thread; what hangs over the edges of c is not written.
#pragma once
#include "tile_hopper.cuh"

constexpr int PIECE_PIXELS = 64;  // of 64 filters, on the way out

template <class Type_, int M, int N, int STAGES_>
struct PlanesTiling {
    using Type = Type_;
    static constexpr int TILE_M = M, TILE_N = N, STAGES = STAGES_;
    static constexpr bool SHARES_FILTERS = M == CONSUMERS * GROUP_TILE_ROWS;
    static constexpr int PIXELS = SHARES_FILTERS ? N : N / CONSUMERS;  // of a consumer
    static constexpr int TERMS = LINE_BYTES / sizeof(Type), SLICES = LINE_BYTES / SLICE_BYTES;
    static constexpr int RIGHT = M * LINE_BYTES, STAGE = (M + N) * LINE_BYTES;
    static constexpr int LEFT_SHARE = SHARES_FILTERS ? GROUP_TILE_ROWS * LINE_BYTES : 0;  // to the next consumer's operand
    static constexpr int RIGHT_SHARE = SHARES_FILTERS ? 0 : PIXELS * LINE_BYTES;
    static constexpr int OUT = STAGES * STAGE, BARRIERS = OUT + CONSUMERS * PIECES * PIECE_BYTES;
    static constexpr int SHARED_BYTES = BARRIERS + 2 * STAGES * sizeof(Barrier);
    using Sums = float[PIXELS / 2];
    static_assert(sizeof(Type) == 2, "wgmma takes tf32 terms side by side only");
    static_assert(SHARES_FILTERS || M == GROUP_TILE_ROWS, "one wgmma of 64 filters a consumer");
    static_assert(PIXELS % PIECE_PIXELS == 0 && PIXELS <= 256, "whole pieces of one wgmma");
    static_assert(SHARED_BYTES <= 227 * 1024, "what a block may have");
};

struct PlaneWalk {
    int filters, height, width;      // of c: its channels, and rows and columns of an image
    int rows, columns, slabs;        // of a filter; slabs of 64 channels
    int first_h, first_w;            // where in the images the window of pixel (0, 0) begins
    int dilation_h, dilation_w;
    int log_width;                   // of a rectangle: 4, 5 or 6
    int tiles_m, tiles_h, tiles_w;   // of c: of filters, and of an image's rows and columns
    int relu;
};

// A tile's first filter, image, row and column. Tiles of the same pixels are neighbours, and so share them in the L2 cache.
struct PlanePlace {
    int filter, image, row, column;
};
template <class Tile>
__device__ __forceinline__ PlanePlace plane_place(const PlaneWalk& walk, int number) {
    const int pixels = number / walk.tiles_m, rows = pixels / walk.tiles_w, image = rows / walk.tiles_h;
    return {(number - pixels * walk.tiles_m) * Tile::TILE_M, image,
            (rows - image * walk.tiles_h) * (Tile::TILE_N >> walk.log_width),
            (pixels - rows * walk.tiles_w) << walk.log_width};
}

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

// A consumer's sums on their way to c: 64 filters from `filter` on, of the rectangle at (row, column). This thread holds
// pixels 2t and 2t + 1 of every eight, of filter number `lane_filter` of the 64 and of the one eight on.
template <class Tile>
struct PlaneEpilogue {
    using Type = typename Tile::Type;
    const PlaneWalk& walk;
    const Type* residual;
    int filter, image, row, column, lane_filter, lane_pixel;
    float bias[2];

    __device__ __forceinline__ PlaneEpilogue(const PlaneWalk& plane_walk, const PlanePlace& at, int group,
                                             const float* biases, const Type* addend)
        : walk(plane_walk), residual(addend), filter(at.filter), image(at.image), row(at.row), column(at.column) {
        if (Tile::SHARES_FILTERS) filter += group * GROUP_TILE_ROWS;
        else row += group * (Tile::PIXELS >> walk.log_width);
        const int lane = threadIdx.x % WARP_SIZE;
        lane_filter = threadIdx.x % WARPGROUP / WARP_SIZE * 16 + lane / 4;
        lane_pixel = lane % 4 * 2;
        for (int half = 0; half < 2; ++half) {
            const int m = filter + lane_filter + 8 * half;
            bias[half] = biases && m < walk.filters ? biases[m] : 0.0f;
        }
    }

    // Where the first of two pixels of block `block` of eight is in c, and how many of the two c has.
    __device__ __forceinline__ int64 place(int block, int half, int& count) const {
        const int pixel = 8 * block + lane_pixel, m = filter + lane_filter + 8 * half;
        const int h = row + (pixel >> walk.log_width), w = column + (pixel & ((1 << walk.log_width) - 1));
        count = m < walk.filters && h < walk.height ? min(max(walk.width - w, 0), 2) : 0;
        return ((static_cast<int64>(image) * walk.filters + m) * walk.height + h) * walk.width + w;
    }
    __device__ __forceinline__ float2 pair(const typename Tile::Sums& sums, int block, int half) const {
        float first = sums[4 * block + 2 * half] + bias[half], second = sums[4 * block + 2 * half + 1] + bias[half];
        if (residual) {
            int count;
            const Type* from = residual + place(block, half, count);
            if (count > 0) first += to_float(from[0]);
            if (count > 1) second += to_float(from[1]);
        }
        return make_float2(finish(first, walk.relu), finish(second, walk.relu));
    }

    // 64 pixels from 8·first on to a piece in shared memory, as a box [row][filter][column].
    __device__ __forceinline__ void write(const typename Tile::Sums& sums, int first, unsigned char* piece) const {
        const int lane = threadIdx.x % WARP_SIZE, line = lane_filter / 16 * 16 + lane % 16, width = 1 << walk.log_width;
#pragma unroll
        for (int block = 0; block < PIECE_PIXELS / 8; block += 2) {
            uint32_t registers[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float2 values = pair(sums, first + block + i / 2, i % 2);
                registers[i] = pack<Type>(values.x, values.y);
            }
            const int pixel = 8 * (block + lane / 16);
            const int offset = 2 * (((pixel >> walk.log_width) * GROUP_TILE_ROWS + line) * width + (pixel & (width - 1)));
            store_matrices<4, false>(piece + (offset ^ (offset >> 7 & (width / 8 - 1)) << 4), registers);
        }
    }
    // All pixels to c, thread by thread.
    __device__ __forceinline__ void store(const typename Tile::Sums& sums, Type* c) const {
#pragma unroll
        for (int block = 0; block < Tile::PIXELS / 8; ++block)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int count;
                Type* to = c + place(block, half, count);
                const float2 values = pair(sums, block, half);
                if (count > 0) to[0] = round_to<Type>(values.x);
                if (count > 1) to[1] = round_to<Type>(values.y);
            }
    }
};

// A consumer's sums to c by the copy engine; `turn` says which of the buffers is next, on from tile to tile.
template <class Tile>
__device__ __forceinline__ void store_planes(const PlaneEpilogue<Tile>& epilogue, const typename Tile::Sums& sums,
                                             int group, unsigned char* buffers, const TensorMap& c, int& turn) {
    const bool leads = threadIdx.x % WARPGROUP == 0;
    const PlaneWalk& walk = epilogue.walk;
#pragma unroll
    for (int first = 0; first < Tile::PIXELS; first += PIECE_PIXELS) {
        const int row = epilogue.row + (first >> walk.log_width);
        if (row >= walk.height || epilogue.filter >= walk.filters) continue;
        unsigned char* piece = buffers + turn * PIECE_BYTES;
        if (leads) tma_store_wait_read<PIECES - 1>();
        named_barrier_wait(1 + group, WARPGROUP);  // the buffer is free
        epilogue.write(sums, first / 8, piece);
        fence_async_shared();
        named_barrier_wait(1 + group, WARPGROUP);  // and full
        if (leads) {
            const int at[4] = {epilogue.column, epilogue.filter, row, epilogue.image};
            tma_store<4>(c, piece, at);
            tma_store_commit();
        }
        turn ^= 1;
    }
}

template <class Tile>
__device__ __forceinline__ void consume_planes(Ring<Tile> ring, int group, const TensorMap& c, typename Tile::Type* target,
                                               const float* bias, const typename Tile::Type* residual,
                                               const PlaneWalk& walk, int tiles) {
    unsigned char* buffers = ring.tiles + Tile::OUT + group * PIECES * PIECE_BYTES;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        typename Tile::Sums sums;
        multiply_planes<Tile>(ring, walk, group, sums);
        const PlaneEpilogue<Tile> epilogue(walk, plane_place<Tile>(walk, tile), group, bias, residual);
        if (target) {
            epilogue.store(sums, target);
        } else {
            store_planes<Tile>(epilogue, sums, group, buffers, c, turn);
        }
    }
    if (threadIdx.x % WARPGROUP == 0) tma_store_wait_read<0>();
}

// A block of a launch that computes `tiles` tiles in all; c by its map, or at `target` if that is not null.
template <class Tile>
__device__ __forceinline__ void planes_product(const TensorMap& weights, const TensorMap& images, const TensorMap& c,
                                               typename Tile::Type* target, const float* bias,
                                               const typename Tile::Type* residual, const PlaneWalk& walk, int tiles) {
    SHARED_BOXES(unsigned char, shared);
    const Ring<Tile> ring(shared);
    if (threadIdx.x == 0) ring.init();
    __syncthreads();
    const int group = __shfl_sync(ALL_LANES, threadIdx.x / WARPGROUP, 0);  // the same in all lanes, for the compiler too
    if (group == 0) {
        give_registers<40>();
        if (threadIdx.x == 0) produce_planes<Tile>(ring, weights, images, walk, tiles);
    } else {
        take_registers<232>();
        consume_planes<Tile>(ring, group - 1, c, target, bias, residual, walk, tiles);
    }
}
