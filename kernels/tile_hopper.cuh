// Products of tiles on Hopper's tensor cores: wgmma from tiles that the copy engine (TMA) brings. For sm_90a alone.
//
// A block is three warpgroups and lives as long as the launch: it takes tiles of c in turn. One thread of the first
// warpgroup, the producer, asks for the operands of a step, 128 bytes of terms (64 of 16 bits, 32 of tf32), into one of
// STAGES stages of shared memory; the other two, the consumers, multiply the upper and the lower 64 rows. Each stage has
// two barriers. `full`: the copies have arrived; one arrival, the producer's, which also says how many bytes to expect.
// `empty`: nobody reads it any more; an arrival of each consumer warp, once its products are done, which is a step later,
// so that the tensor cores never wait for the next. The producer runs ahead into the next tile while sums are stored.
//
// With CLUSTER blocks in a cluster these take neighbouring tiles of the same columns, and so the same b: each brings its
// share of b's columns to all of them by multicast, and a for itself. A stage is then overwritten from several blocks, so
// its `empty` barrier counts the consumers of all of them. A tile past the last row is computed from zeros, not stored.
//
// Operands stand as the copies leave them, in rows of 128 bytes whose 16-byte parts are swizzled (ptx_tma.cuh):
// - terms contiguous: a row holds the terms of one row of a (column of b); a slice of terms is 32 bytes of each row
// - rows contiguous ("MN-major", 16 bits only): slabs of 64 rows of a; a row of a slab is a term; a slice is 16 of them
//
// Sums leave by shared memory and the copy engine, 64 rows × 128 bytes at a time in two buffers a warpgroup, where c's
// rows begin at multiples of 16 bytes; else thread by thread. What hangs over c's edges is not written.
//
// Accuracy: tensor cores cut a partial sum off at 24 bits for every slice of terms, so that n positive terms of 16 bits
// lose n / 16 · 2^-25 on average. Where the result is float32, chains of CHUNK terms are added up outside.
#pragma once
#include "gemm.cuh"
#include "ptx_barrier.cuh"
#include "ptx_convert.cuh"
#include "ptx_mma.cuh"
#include "ptx_tma.cuh"
#include "ptx_wgmma.cuh"

constexpr int WARPGROUP = 128;                     // threads
constexpr int CONSUMERS = 2, GROUP_TILE_ROWS = 64;  // warpgroups that multiply, and rows of each
constexpr int LINE_BYTES = 128, SLICE_BYTES = 32;  // of a row in shared memory, and of terms that one wgmma takes
constexpr int PATTERN_BYTES = 8 * LINE_BYTES;      // after which the swizzle repeats
constexpr int PIECE_BYTES = GROUP_TILE_ROWS * LINE_BYTES;  // of c, on the way out
constexpr int PIECES = 2;                                  // buffers of a consumer

template <class Type_, class Output_, int M, int N, int STAGES_, bool A_ROWS, bool B_COLUMNS, int CLUSTER_ = 1>
struct HopperTiling {
    using Type = Type_;
    using Output = Output_;
    static constexpr int TILE_M = M, TILE_N = N, STAGES = STAGES_, CLUSTER = CLUSTER_;
    static constexpr bool LEFT_ROWS = A_ROWS, RIGHT_COLUMNS = B_COLUMNS;  // contiguous, rather than the terms
    static constexpr int TERMS = LINE_BYTES / sizeof(Type);
    static constexpr int SLAB = TERMS, SLAB_BYTES = TERMS * LINE_BYTES;  // rows of a slab
    static constexpr int SLICES = LINE_BYTES / SLICE_BYTES;
    static constexpr int RIGHT = M * LINE_BYTES, STAGE = (M + N) * LINE_BYTES;
    static constexpr int LEFT_SLICE = A_ROWS ? 16 * LINE_BYTES : SLICE_BYTES;
    static constexpr int RIGHT_SLICE = B_COLUMNS ? 16 * LINE_BYTES : SLICE_BYTES;
    static constexpr int PIECE_COLUMNS = LINE_BYTES / sizeof(Output);
    static constexpr bool CHUNKED = sizeof(Type) == 2 && sizeof(Output) == 4;
    static constexpr int OUT = STAGES * STAGE, BARRIERS = OUT + CONSUMERS * PIECES * PIECE_BYTES;
    static constexpr int SHARED_BYTES = BARRIERS + 2 * STAGES * sizeof(Barrier);
    static constexpr int SHARE = N / CLUSTER;  // of b's columns, which a block brings
    using Sums = float[N / 2];
    static_assert(M == CONSUMERS * GROUP_TILE_ROWS && N % 64 == 0 && N <= 256, "one wgmma of 64 rows a consumer");
    static_assert(SHARED_BYTES <= 227 * 1024, "what a block may have");
    static_assert(!CHUNKED || N <= 128, "two sets of sums in registers");
    static_assert(SHARE % 64 == 0, "whole slabs");
    static_assert(sizeof(Type) == 2 || !(A_ROWS || B_COLUMNS), "wgmma takes terms side by side");
};

// The stages, seen by a producer or a consumer on its way round them.
template <class Tile>
struct Ring {
    unsigned char* tiles;
    Barrier* barriers;
    int stage = 0, parity = 0;

    __device__ __forceinline__ explicit Ring(unsigned char* shared)
        : tiles(shared), barriers(reinterpret_cast<Barrier*>(shared + Tile::BARRIERS)) {}
    __device__ __forceinline__ Barrier* full(int number) const { return barriers + number; }
    __device__ __forceinline__ Barrier* empty(int number) const { return barriers + Tile::STAGES + number; }
    __device__ __forceinline__ void init() const {
        for (int i = 0; i < Tile::STAGES; ++i) {
            barrier_init(full(i), 1);
            barrier_init(empty(i), Tile::CLUSTER * CONSUMERS * WARPGROUP / WARP_SIZE);
        }
        barrier_init_fence();
    }
    __device__ __forceinline__ void next() {
        if (++stage == Tile::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    __device__ __forceinline__ int previous() const { return (stage == 0 ? Tile::STAGES : stage) - 1; }
    // The stage before goes back to all who write to it; `lane` of each consumer warp.
    __device__ __forceinline__ void give_back(int lane) const {
        if constexpr (Tile::CLUSTER == 1) {
            if (lane == 0) barrier_arrive(empty(previous()));
        } else {
            if (lane < Tile::CLUSTER) barrier_arrive_cluster(empty(previous()), lane);
        }
    }
};

// The first column of b's tile that this block brings.
template <class Tile>
__device__ __forceinline__ int share_start() {
    return Tile::CLUSTER > 1 ? cluster_rank() * Tile::SHARE : 0;
}

// Where a block works on the tile of that number, or its own among the tiles that its cluster takes at a time.
template <class Tile>
__device__ __forceinline__ Position tile_position(const GemmShape& shape, int number) {
    Position at = block_position<Tile::CLUSTER * Tile::TILE_M, Tile::TILE_N>(shape, number);
    if constexpr (Tile::CLUSTER > 1) at.row += cluster_rank() * Tile::TILE_M;
    return at;
}

// Steps of a block's share of the terms.
template <class Tile>
__device__ __forceinline__ int steps_at(const GemmShape& shape, const Position& at) {
    return ceil_div(min(shape.split_terms, shape.K - at.split * shape.split_terms), Tile::TERMS);
}

// A box to this block alone, or to all BLOCKS of the cluster.
template <int BLOCKS>
__device__ __forceinline__ void load_box(unsigned char* target, const TensorMap& map, Barrier* full, const int (&at)[3]) {
    if constexpr (BLOCKS == 1)
        tma_load<3>(target, map, full, at);
    else
        tma_load_multicast<3>(target, map, full, at, (1 << BLOCKS) - 1);
}

// The producer's thread. load.start(at) goes to a tile, load(left, right, full) asks for the operands of its next step.
template <class Tile, class Load>
__device__ __forceinline__ void produce(Load& load, Ring<Tile> ring, const GemmShape& shape, int tiles) {
    for (int tile = blockIdx.x / Tile::CLUSTER; tile < tiles; tile += gridDim.x / Tile::CLUSTER) {
        const Position at = tile_position<Tile>(shape, tile);
        load.start(at);
#pragma unroll 1
        for (int step = steps_at<Tile>(shape, at); step > 0; --step) {
            barrier_wait(ring.empty(ring.stage), ring.parity ^ 1);
            barrier_arrive_expect(ring.full(ring.stage), Tile::STAGE);
            unsigned char* left = ring.tiles + ring.stage * Tile::STAGE;
            load(left, left + Tile::RIGHT, ring.full(ring.stage));
            ring.next();
        }
    }
}

// What says where an operand stands: for rows contiguous, the next slab and the next eight terms.
template <class Tile, bool ROWS>
__device__ __forceinline__ uint64_t operand(const unsigned char* tile) {
    return matrix_descriptor<LINE_BYTES>(tile, ROWS ? Tile::SLAB_BYTES : 16, PATTERN_BYTES);
}
// The same so many bytes further on, a multiple of 16.
__device__ __forceinline__ uint64_t further(uint64_t descriptor, unsigned bytes) { return descriptor + bytes / 16; }

// sums = products of so many steps. A stage is given back when the products of the one after it have been begun.
template <class Tile>
__device__ __forceinline__ void multiply_steps(Ring<Tile>& ring, int steps, int group, typename Tile::Sums& sums) {
    const uint64_t left = operand<Tile, Tile::LEFT_ROWS>(ring.tiles + group * PIECE_BYTES);
    const uint64_t right = operand<Tile, Tile::RIGHT_COLUMNS>(ring.tiles + Tile::RIGHT);
    const int lane = threadIdx.x % WARP_SIZE;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        barrier_wait(ring.full(ring.stage), ring.parity);
        const uint64_t stage_left = further(left, ring.stage * Tile::STAGE);
        const uint64_t stage_right = further(right, ring.stage * Tile::STAGE);
        wgmma_fence();
#pragma unroll
        for (int slice = 0; slice < Tile::SLICES; ++slice)
            wgmma<typename Tile::Type, Tile::TILE_N, Tile::LEFT_ROWS, Tile::RIGHT_COLUMNS>(
                sums, further(stage_left, slice * Tile::LEFT_SLICE), further(stage_right, slice * Tile::RIGHT_SLICE),
                step > 0 || slice > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (step > 0) ring.give_back(lane);
        ring.next();
    }
    wgmma_wait<0>();
    wgmma_hold(sums);
    ring.give_back(lane);
}

// All products of a tile.
template <class Tile>
__device__ __forceinline__ void multiply_tile(Ring<Tile>& ring, int steps, int group, typename Tile::Sums& sums) {
    if constexpr (Tile::CHUNKED) {
        constexpr int STEPS = CHUNK / Tile::TERMS;
        multiply_steps<Tile>(ring, min(steps, STEPS), group, sums);
#pragma unroll 1
        for (int done = STEPS; done < steps; done += STEPS) {
            typename Tile::Sums chunk;
            multiply_steps<Tile>(ring, min(steps - done, STEPS), group, chunk);
#pragma unroll
            for (int i = 0; i < Tile::TILE_N / 2; ++i) sums[i] += chunk[i];
        }
    } else {
        multiply_steps<Tile>(ring, steps, group, sums);
    }
}

// A consumer's rows of a tile on their way to c: `row` and `column` are the first ones in c, `lane_row` this thread's first
// row among the 64; it holds columns 2t and 2t + 1 of every eight, in that row and eight rows on.
template <class Tile>
struct Epilogue {
    using Output = typename Tile::Output;
    const GemmShape& shape;
    const float* column_bias;
    const Output* residual;  // of c's strides, or null
    int row, column, lane_row, lane_column;
    float row_bias[2];

    __device__ __forceinline__ Epilogue(const GemmShape& product, const float* bias, const Output* addend, int first_row,
                                        int first_column)
        : shape(product), column_bias(shape.bias_per_row ? nullptr : bias), residual(addend), row(first_row),
          column(first_column) {
        const int lane = threadIdx.x % WARP_SIZE;
        lane_row = threadIdx.x % WARPGROUP / WARP_SIZE * 16 + lane / 4;
        lane_column = lane % 4 * 2;
        for (int half = 0; half < 2; ++half) {
            const int m = row + lane_row + 8 * half;
            row_bias[half] = bias && shape.bias_per_row && m < shape.M ? bias[m] : 0.0f;
        }
    }

    // What is added to the two columns of a block of eight.
    __device__ __forceinline__ float2 columns(int block) const {
        const int n = column + 8 * block + lane_column;
        return make_float2(column_bias && n < shape.N ? column_bias[n] : 0.0f,
                           column_bias && n + 1 < shape.N ? column_bias[n + 1] : 0.0f);
    }
    __device__ __forceinline__ float2 pair(const typename Tile::Sums& sums, int block, int half, float2 bias) const {
        float first = sums[4 * block + 2 * half] + row_bias[half] + bias.x;
        float second = sums[4 * block + 2 * half + 1] + row_bias[half] + bias.y;
        if (residual) {
            const int m = row + lane_row + 8 * half, n = column + 8 * block + lane_column;
            const Output* from = residual + (m * shape.c_stride + n);
            if (m < shape.M && n < shape.N) first += to_float(from[0]);
            if (m < shape.M && n + 1 < shape.N) second += to_float(from[1]);
        }
        return make_float2(finish(first, shape.relu), finish(second, shape.relu));
    }

    // Columns from 8·first on to a piece in shared memory.
    __device__ __forceinline__ void write(const typename Tile::Sums& sums, int first, unsigned char* piece) const {
        if constexpr (sizeof(Output) == 2) {
            const int lane = threadIdx.x % WARP_SIZE, line = lane_row / 16 * 16 + lane % 16;
#pragma unroll
            for (int block = 0; block < Tile::PIECE_COLUMNS / 8; block += 2) {
                uint32_t registers[4];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const float2 bias = columns(first + block + i);
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float2 values = pair(sums, first + block + i, half, bias);
                        registers[2 * i + half] = pack<Output>(values.x, values.y);
                    }
                }
                store_matrices<4, false>(piece + swizzle<LINE_BYTES>(line * LINE_BYTES + (block + lane / 16) * 16),
                                         registers);
            }
        } else {
            // Of two blocks that are two apart, lanes of odd rows take the other first: then the four rows that go to
            // shared memory together lie in all banks, whatever the swizzle does to each.
            static_assert(Tile::PIECE_COLUMNS == 32, "four blocks in two pairs");
            const int odd = lane_row % 2;
#pragma unroll
            for (int block = 0; block < 2; ++block) {
                const float2 near_bias = columns(first + block), far_bias = columns(first + block + 2);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float2 near = pair(sums, first + block, half, near_bias);
                    const float2 far = pair(sums, first + block + 2, half, far_bias);
                    const float2 one = make_float2(odd ? far.x : near.x, odd ? far.y : near.y);
                    const float2 other = make_float2(odd ? near.x : far.x, odd ? near.y : far.y);
                    const int place = (lane_row + 8 * half) * LINE_BYTES + (block * 8 + lane_column) * 4;
                    store2(reinterpret_cast<float*>(piece + swizzle<LINE_BYTES>(place + odd * 64)), one);
                    store2(reinterpret_cast<float*>(piece + swizzle<LINE_BYTES>(place + 64 - odd * 64)), other);
                }
            }
        }
    }

    // All columns to c, thread by thread.
    __device__ __forceinline__ void store(const typename Tile::Sums& sums, Output* c) const {
#pragma unroll
        for (int block = 0; block < Tile::TILE_N / 8; ++block) {
            const int n = column + 8 * block + lane_column;
            const float2 bias = columns(block);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int m = row + lane_row + 8 * half;
                const float2 values = pair(sums, block, half, bias);
                if (m < shape.M && n < shape.N) c[m * shape.c_stride + n] = round_to<Output>(values.x);
                if (m < shape.M && n + 1 < shape.N) c[m * shape.c_stride + n + 1] = round_to<Output>(values.y);
            }
        }
    }
};

// A consumer's rows to c by the copy engine; `turn` says which of the buffers is next, on from tile to tile.
template <class Tile>
__device__ __forceinline__ void store_pieces(const Epilogue<Tile>& epilogue, const typename Tile::Sums& sums, int group,
                                             unsigned char* buffers, const TensorMap& c, int plane, int& turn) {
    const bool leads = threadIdx.x % WARPGROUP == 0;
#pragma unroll
    for (int first = 0; first < Tile::TILE_N; first += Tile::PIECE_COLUMNS) {
        if (epilogue.column + first >= epilogue.shape.N || epilogue.row >= epilogue.shape.M) continue;
        unsigned char* piece = buffers + turn * PIECE_BYTES;
        if (leads) tma_store_wait_read<PIECES - 1>();
        named_barrier_wait(1 + group, WARPGROUP);  // the buffer is free
        epilogue.write(sums, first / 8, piece);
        fence_async_shared();
        named_barrier_wait(1 + group, WARPGROUP);  // and full
        if (leads) {
            const int at[3] = {epilogue.column + first, epilogue.row, plane};
            tma_store<3>(c, piece, at);
            tma_store_commit();
        }
        turn ^= 1;
    }
}

// Consumer number `group`. c: by the map if `mapped`, else at `target`; both with planes of splits outermost, then batches.
template <class Tile>
__device__ __forceinline__ void consume(Ring<Tile> ring, int group, const TensorMap& c, typename Tile::Output* target,
                                        const float* bias, const typename Tile::Output* residual, const GemmShape& shape,
                                        int tiles, int batches, bool mapped, int bias_batch) {
    unsigned char* buffers = ring.tiles + Tile::OUT + group * PIECES * PIECE_BYTES;
    int turn = 0;
    for (int tile = blockIdx.x / Tile::CLUSTER; tile < tiles; tile += gridDim.x / Tile::CLUSTER) {
        const Position at = tile_position<Tile>(shape, tile);
        typename Tile::Sums sums;
        multiply_tile<Tile>(ring, steps_at<Tile>(shape, at), group, sums);
        const typename Tile::Output* addend = residual ? residual + at.batch * shape.c_batch : nullptr;
        const float* offsets = bias ? bias + at.batch * bias_batch : nullptr;
        const Epilogue<Tile> epilogue(shape, offsets, addend, at.row + group * GROUP_TILE_ROWS, at.column);
        if (mapped) {
            store_pieces<Tile>(epilogue, sums, group, buffers, c, at.split * batches + at.batch, turn);
        } else {
            epilogue.store(sums, target + at.batch * shape.c_batch + at.split * shape.c_split);
        }
    }
    if (threadIdx.x % WARPGROUP == 0) tma_store_wait_read<0>();
}

// All threads of the block, or of all blocks of the cluster: their memory is written to, and their barriers used, by each
// other.
template <class Tile>
__device__ __forceinline__ void wait_for_all() {
    if constexpr (Tile::CLUSTER == 1) {
        __syncthreads();
    } else {
        __syncwarp();
        cluster_wait();
    }
}

// A block of a launch that computes `tiles` tiles in all, or so many times as many as a cluster has blocks. bias_batch:
// from a batch's bias to the next one's.
template <class Tile, class Load>
__device__ __forceinline__ void hopper_product(Load load, const TensorMap& c, typename Tile::Output* target,
                                               const float* bias, const typename Tile::Output* residual,
                                               const GemmShape& shape, int tiles, int batches, bool mapped,
                                               int bias_batch = 0) {
    SHARED_BOXES(unsigned char, shared);
    const Ring<Tile> ring(shared);
    if (threadIdx.x == 0) ring.init();
    wait_for_all<Tile>();
    const int group = __shfl_sync(ALL_LANES, threadIdx.x / WARPGROUP, 0);  // the same in all lanes, for the compiler too
    if (group == 0) {
        give_registers<40>();
        if (threadIdx.x == 0) produce<Tile>(load, ring, shape, tiles);
    } else {
        take_registers<232>();
        consume<Tile>(ring, group - 1, c, target, bias, residual, shape, tiles, batches, mapped, bias_batch);
    }
    if constexpr (Tile::CLUSTER > 1) wait_for_all<Tile>();
}
