// The gradient of a strided convolution by its input, on Hopper's tensor cores (tile_hopper.cuh). For sm_90a alone;
// conv2d_phases_bfloat16_hopper.cu and conv2d_phases_float16_hopper.cu.
//
// gx's pixels (h, w) of one phase, (h mod stride_h, w mod stride_w), are a convolution of stride 1 of gy with the taps
// that meet them: those whose place, times dilation, has the phase's remainder. So no zero between gy's pixels is
// multiplied, and a phase without taps is zeros. All phases are one launch, the longest first.
//
// Rows of a product are a phase's pixels (n,i,j), as many of each phase as the first one has; terms are (64 filters, tap
// of the phase, filter of the 64). One map of the kind im2col serves all phases: what is a phase's own, where its pixels
// start in gy, goes to the offset of its taps. Weights are packed (C,R,S,K). A batch is a phase and a group.
//
// target: gx (N,H,W,C), overwritten; or planes of float32 in its layout, one for each split of the terms.
#pragma once
#include "conv2d_hopper.cuh"

constexpr int MAX_PHASES = 16;
constexpr int LINE_UNITS = LINE_BYTES / 16, LINES = WARPGROUP / LINE_UNITS;  // lines of a piece that a warpgroup stores
constexpr int LINE_TURNS = GROUP_TILE_ROWS / LINES;                          // at a time, and how many times

struct PhaseWalk {
    int groups, group_filters;              // of the convolution, and filters of each
    int columns, slabs;                     // taps of a row of the filter; slabs of 64 filters
    int first_h, first_w;                   // the place in gy of pixel (0, 0) without its offset
    int stride_h, stride_w, height, width;  // of the convolution; of gx
    int tap_h, tap_w, step_h, step_w;       // from tap to tap of a phase: backwards in the filter, and on in gy
    unsigned by_image[3], by_row[3];        // divisors: pixels of an image and of a row, of a phase
    // Of each phase: its first pixel, its taps, and the first of them: its place in the filter, and its offset in gy.
    int row[MAX_PHASES], column[MAX_PHASES], taps_h[MAX_PHASES], taps_w[MAX_PHASES];
    int last_h[MAX_PHASES], last_w[MAX_PHASES], offset_h[MAX_PHASES], offset_w[MAX_PHASES];
};

// The steps of a split of a phase's terms.
struct PhaseSteps {
    int first, count;
};
__device__ __forceinline__ PhaseSteps phase_steps(const PhaseWalk& walk, const GemmShape& shape, const Position& at) {
    const int phase = at.batch / walk.groups, all = walk.taps_h[phase] * walk.taps_w[phase] * walk.slabs;
    const int share = ceil_div(all, shape.splits), first = at.split * share;
    return {first, max(0, min(share, all - first))};
}

template <class Tile>
struct PhaseTiles {
    const TensorMap &gradients, &weights;
    const GemmShape& shape;
    const PhaseWalk& walk;
    ImagePlace place;
    int phase, channel, group, slab, row, column;  // the first of gx's channels; the tap's row and column in the phase

    // Returns how many steps there are.
    __device__ __forceinline__ int start(const Position& at) {
        const PhaseSteps steps = phase_steps(walk, shape, at);
        phase = at.batch / walk.groups, group = at.batch % walk.groups;
        if (steps.count == 0) return 0;
        int rest, j;
        const int image = divide(at.row, walk.by_image, rest), i = divide(rest, walk.by_row, j);
        place = {image, walk.first_h + i, walk.first_w + j};
        channel = group * shape.N + at.column;
        const int taps = walk.taps_h[phase] * walk.taps_w[phase], tap = steps.first % taps;
        slab = steps.first / taps, row = tap / walk.taps_w[phase], column = tap % walk.taps_w[phase];
        return steps.count;
    }
    __device__ __forceinline__ void operator()(unsigned char* left, unsigned char* right, Barrier* full) {
        const int term = slab * Tile::TERMS;
        const int tap_h = walk.last_h[phase] - row * walk.tap_h, tap_w = walk.last_w[phase] - column * walk.tap_w;
        const int pixels[4] = {group * walk.group_filters + term, place.w, place.h, place.image};
        const int filters[3] = {term, tap_h * walk.columns + tap_w, channel};
        tma_load_im2col(left, gradients, full, pixels, walk.offset_w[phase] + column * walk.step_w,
                        walk.offset_h[phase] + row * walk.step_h);
        tma_load<3>(right, weights, full, filters);
        if (++column == walk.taps_w[phase]) {
            column = 0;
            if (++row == walk.taps_h[phase]) row = 0, ++slab;
        }
    }
};

// Where this thread's lines of a piece go: the number of gx's pixel, or -1 where there is none.
__device__ __forceinline__ void line_pixels(const PhaseWalk& walk, int phase, int first, int rows, int (&pixels)[LINE_TURNS]) {
#pragma unroll
    for (int i = 0; i < LINE_TURNS; ++i) {
        const int number = first + i * LINES + threadIdx.x % WARPGROUP / LINE_UNITS;
        int rest, column;
        const int image = divide(min(number, rows - 1), walk.by_image, rest), row = divide(rest, walk.by_row, column);
        const int h = walk.row[phase] + row * walk.stride_h, w = walk.column[phase] + column * walk.stride_w;
        const bool exists = number < rows && h < walk.height && w < walk.width;
        pixels[i] = exists ? (image * walk.height + h) * walk.width + w : -1;
    }
}

// A consumer's rows to the pixels of gx, 128 bytes of each at a time, by 16 bytes a thread. A buffer is written anew two
// pieces later, when every thread has come to the barrier of the piece between, and so has read it.
template <class Tile>
__device__ __forceinline__ void store_lines(const Epilogue<Tile>& epilogue, const typename Tile::Sums& sums, int group,
                                            unsigned char* buffers, typename Tile::Output* target,
                                            const int (&pixels)[LINE_TURNS], int& turn) {
    constexpr int UNIT_COLUMNS = 16 / sizeof(typename Tile::Output);
    const int line = threadIdx.x % WARPGROUP / LINE_UNITS, unit = threadIdx.x % LINE_UNITS;
#pragma unroll
    for (int first = 0; first < Tile::TILE_N; first += Tile::PIECE_COLUMNS) {
        if (epilogue.column + first >= epilogue.shape.N) continue;
        unsigned char* piece = buffers + turn * PIECE_BYTES;
        epilogue.write(sums, first / 8, piece);
        named_barrier_wait(1 + group, WARPGROUP);
        const int column = epilogue.column + first + unit * UNIT_COLUMNS;
#pragma unroll
        for (int i = 0; i < LINE_TURNS; ++i) {
            if (pixels[i] < 0 || column >= epilogue.shape.N) continue;
            const unsigned char* from = piece + swizzle<LINE_BYTES>((line + i * LINES) * LINE_BYTES + unit * 16);
            typename Tile::Output* to = target + (pixels[i] * epilogue.shape.c_stride + column);
            store4(reinterpret_cast<float*>(to), load4(reinterpret_cast<const float*>(from)));
        }
        turn ^= 1;
    }
}

// Zeros to as many pixels, where no tap meets them.
template <class Tile>
__device__ __forceinline__ void clear_lines(const GemmShape& shape, int first, typename Tile::Output* target,
                                            const int (&pixels)[LINE_TURNS]) {
    constexpr int UNIT_COLUMNS = 16 / sizeof(typename Tile::Output);
    const int end = min(shape.N, first + Tile::TILE_N);
#pragma unroll
    for (int i = 0; i < LINE_TURNS; ++i) {
        if (pixels[i] < 0) continue;
        typename Tile::Output* line = target + pixels[i] * shape.c_stride;
#pragma unroll 1
        for (int column = first + threadIdx.x % LINE_UNITS * UNIT_COLUMNS; column < end; column += LINE_UNITS * UNIT_COLUMNS)
            store4(reinterpret_cast<float*>(line + column), make_float4(0.0f, 0.0f, 0.0f, 0.0f));
    }
}

template <class Tile>
__device__ __forceinline__ void produce_phases(PhaseTiles<Tile> load, Ring<Tile> ring, const GemmShape& shape, int tiles) {
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
#pragma unroll 1
        for (int step = load.start(block_position<Tile::TILE_M, Tile::TILE_N>(shape, tile)); step > 0; --step) {
            barrier_wait(ring.empty(ring.stage), ring.parity ^ 1);
            barrier_arrive_expect(ring.full(ring.stage), Tile::STAGE);
            unsigned char* left = ring.tiles + ring.stage * Tile::STAGE;
            load(left, left + Tile::RIGHT, ring.full(ring.stage));
            ring.next();
        }
    }
}

template <class Tile>
__device__ __forceinline__ void consume_phases(Ring<Tile> ring, int group, typename Tile::Output* target,
                                               const GemmShape& shape, const PhaseWalk& walk, int tiles) {
    unsigned char* buffers = ring.tiles + Tile::OUT + group * PIECES * PIECE_BYTES;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Position at = block_position<Tile::TILE_M, Tile::TILE_N>(shape, tile);
        const int steps = phase_steps(walk, shape, at).count, row = at.row + group * GROUP_TILE_ROWS;
        int pixels[LINE_TURNS];
        typename Tile::Output* to = target + (at.batch % walk.groups * shape.N + at.split * shape.c_split);
        if (steps == 0) {
            line_pixels(walk, at.batch / walk.groups, row, shape.M, pixels);
            clear_lines<Tile>(shape, at.column, to, pixels);
            continue;
        }
        typename Tile::Sums sums;
        multiply_tile<Tile>(ring, steps, group, sums);
        line_pixels(walk, at.batch / walk.groups, row, shape.M, pixels);
        store_lines<Tile>(Epilogue<Tile>(shape, nullptr, nullptr, row, at.column), sums, group, buffers, to, pixels, turn);
    }
}

// A block of a launch that computes `tiles` tiles in all.
template <class Tile>
__device__ __forceinline__ void phases_product(PhaseTiles<Tile> load, typename Tile::Output* target, int tiles) {
    SHARED_BOXES(unsigned char, shared);
    const Ring<Tile> ring(shared);
    if (threadIdx.x == 0) ring.init();
    __syncthreads();
    const int group = __shfl_sync(ALL_LANES, threadIdx.x / WARPGROUP, 0);  // the same in all lanes, for the compiler too
    if (group == 0) {
        give_registers<40>();
        if (threadIdx.x == 0) produce_phases<Tile>(load, ring, load.shape, tiles);
    } else {
        take_registers<232>();
        consume_phases<Tile>(ring, group - 1, target, load.shape, load.walk, tiles);
    }
}
