// c[n] = a[n] · b[n] for n < B in bfloat16 and float16 on tensor cores, from sm_80; gemm.cu's layouts, batch and splits.
//
// a and b are of the type T. c is T, or where it is null the sums go to `planes` as float32. bias is float32; residual is
// T, as c, and is added before ReLU. c and planes are overwritten, with one rounding.
//
// Operands come to the ring of conv2d_half.cuh, a step of 32 terms a stage, in one of its two forms: [row][term] where
// the terms are contiguous in memory, [term][row] where the rows are. Copies of 16 bytes take strides and extents that
// are multiples of 8 values; the forms of Values go by single values through registers, which any matrix can.
//
// Accuracy: a tensor core cuts a sum off twice in 16 terms, on sm_80 at 2^-24 of it, so that n positive terms lose up to
// n / 8 · 2^-23, half of it on average. float32 results are therefore added up outside in chunks of HALF_CHUNK terms, in
// memory. A result of 16 bits is not, up to the LONG_TERMS of gpucnn/ops/gemm.py, where the loss is a tenth of
// float16's rounding; longer sums go by planes.
//
// Epilogue: each warp brings 16 rows of its sums to shared memory at a time, and its lanes take 8 neighbouring columns
// each from there: c and residual are accessed by 16 bytes, in whole sectors.
#pragma once
#include "conv2d_half.cuh"
#include "gemm.cuh"

constexpr int HALF_CHUNK = 512;

// Operands: EXTENT rows × 32 terms a step, of a matrix with `rows` rows from the tile's first on. `stride` is that from
// row to row where terms are contiguous, else from term to term. What does not exist is zeros.
template <int EXTENT, class T, class Tile>
struct TermUnits {
    static constexpr bool TERMS_FORM = false;
    static constexpr int UNITS = Tile::TERMS / UNIT, ROWS = Tile::THREADS / UNITS, COPIES = EXTENT / ROWS;
    static_assert(COPIES * ROWS == EXTENT && ROWS % 8 == 0, "whole copies, at constant distances");
    const T* source;
    int64 step;  // from row to row of the thread
    int copies, left;  // rows of the thread that exist, terms
    __device__ __forceinline__ TermUnits(const T* matrix, int64 stride, int first_term, int first_row, int rows, int terms) {
        const int row = threadIdx.x / UNITS, term = threadIdx.x % UNITS * UNIT;
        source = matrix + (first_row + row) * stride + first_term + term;
        step = ROWS * stride;
        copies = ceil_div(rows - first_row - row, ROWS);
        left = terms - term;
    }
    __device__ __forceinline__ void fetch(T* tile) {
        T* to = tile + row_place(threadIdx.x / UNITS, threadIdx.x % UNITS);
#pragma unroll
        for (int i = 0; i < COPIES; ++i) copy_unit(to + i * ROWS * Tile::TERMS, source + i * step, left > 0 && i < copies);
        source += Tile::TERMS;
        left -= Tile::TERMS;
    }
    __device__ __forceinline__ void put(T*) const {}
};

template <int EXTENT, class T, class Tile>
struct RowUnits {
    static constexpr bool TERMS_FORM = true;
    static constexpr int UNITS = EXTENT / UNIT, TERMS = Tile::THREADS / UNITS, COPIES = Tile::TERMS / TERMS;
    static_assert(COPIES * TERMS == Tile::TERMS && TERMS % 8 == 0, "whole copies, at constant distances");
    const T* source;
    int64 stride;
    int left;  // terms; none if the rows do not exist
    __device__ __forceinline__ RowUnits(const T* matrix, int64 stride_, int first_term, int first_row, int rows, int terms) {
        const int row = first_row + threadIdx.x % UNITS * UNIT, term = threadIdx.x / UNITS;
        stride = stride_;
        source = matrix + (first_term + term) * stride + row;
        left = row < rows ? terms - term : 0;
    }
    __device__ __forceinline__ void fetch(T* tile) {
        T* to = tile + term_place<EXTENT>(threadIdx.x / UNITS, threadIdx.x % UNITS);
#pragma unroll
        for (int i = 0; i < COPIES; ++i)
            copy_unit(to + i * TERMS * EXTENT, source + i * TERMS * stride, left > i * TERMS);
        source += Tile::TERMS * stride;
        left -= Tile::TERMS;
    }
    __device__ __forceinline__ void put(T*) const {}
};

// The same in pairs of values, of any address: 16 lanes read 64 contiguous bytes.
template <int EXTENT, class T, class Tile>
struct TermValues {
    static constexpr bool TERMS_FORM = false;
    static constexpr int PAIRS = Tile::TERMS / 2, ROWS = Tile::THREADS / PAIRS, COPIES = EXTENT / ROWS;
    static_assert(COPIES * ROWS == EXTENT && ROWS % 8 == 0, "whole copies, at constant distances");
    const T* source;
    int64 step;
    int copies, left;
    uint32_t values[COPIES];
    __device__ __forceinline__ TermValues(const T* matrix, int64 stride, int first_term, int first_row, int rows, int terms) {
        const int row = threadIdx.x / PAIRS, term = threadIdx.x % PAIRS * 2;
        source = matrix + (first_row + row) * stride + first_term + term;
        step = ROWS * stride;
        copies = ceil_div(rows - first_row - row, ROWS);
        left = terms - term;
    }
    __device__ __forceinline__ void fetch(T*) {
        const T* from = source;
#pragma unroll
        for (int i = 0; i < COPIES; ++i, from += step)
            values[i] = load_bits16(from, i < copies && left > 0) | load_bits16(from + 1, i < copies && left > 1) << 16;
        source += Tile::TERMS;
        left -= Tile::TERMS;
    }
    __device__ __forceinline__ void put(T* tile) const {
        const int pair = threadIdx.x % PAIRS;
        T* to = tile + row_place(threadIdx.x / PAIRS, pair / 4) + pair % 4 * 2;
#pragma unroll
        for (int i = 0; i < COPIES; ++i) store_pair(to + i * ROWS * Tile::TERMS, values[i]);
    }
};

template <int EXTENT, class T, class Tile>
struct RowValues {
    static constexpr bool TERMS_FORM = true;
    static constexpr int PAIRS = EXTENT / 2, TERMS = Tile::THREADS / PAIRS, COPIES = Tile::TERMS / TERMS;
    static_assert(COPIES * TERMS == Tile::TERMS, "whole copies");
    const T* source;
    int64 stride;
    int width, left;  // how many rows of the pair exist, terms
    uint32_t values[COPIES];
    __device__ __forceinline__ RowValues(const T* matrix, int64 stride_, int first_term, int first_row, int rows, int terms) {
        const int row = first_row + threadIdx.x % PAIRS * 2, term = threadIdx.x / PAIRS;
        stride = stride_;
        source = matrix + (first_term + term) * stride + row;
        width = rows - row;
        left = terms - term;
    }
    __device__ __forceinline__ void fetch(T*) {
        const T* from = source;
#pragma unroll
        for (int i = 0; i < COPIES; ++i, from += TERMS * stride)
            values[i] = load_bits16(from, left > i * TERMS && width > 0) |
                        load_bits16(from + 1, left > i * TERMS && width > 1) << 16;
        source += Tile::TERMS * stride;
        left -= Tile::TERMS;
    }
    __device__ __forceinline__ void put(T* tile) const {
        const int pair = threadIdx.x % PAIRS;
#pragma unroll
        for (int i = 0; i < COPIES; ++i)
            store_pair(tile + term_place<EXTENT>(threadIdx.x / PAIRS + i * TERMS, pair / 4) + pair % 4 * 2, values[i]);
    }
};

template <class T, class Tile, class Left, class Right>
struct HalfOperands {
    static constexpr bool LEFT_TERMS = Left::TERMS_FORM, RIGHT_TERMS = Right::TERMS_FORM;
    Left left;
    Right right;
    __device__ __forceinline__ void fetch(T* stage) {
        left.fetch(stage);
        right.fetch(stage + Tile::RIGHT);
    }
    __device__ __forceinline__ void put(T* stage) const {
        left.put(stage);
        right.put(stage + Tile::RIGHT);
    }
};

// Eight neighbouring values by 16-byte accesses.
__device__ __forceinline__ void load_eight(const float* from, float (&values)[UNIT]) {
    unpack(load4(from), values);
    unpack(load4(from + 4), values + 4);
}
__device__ __forceinline__ void store_eight(float* to, const float (&values)[UNIT]) {
    store4(to, make_float4(values[0], values[1], values[2], values[3]));
    store4(to + 4, make_float4(values[4], values[5], values[6], values[7]));
}
template <class T>
__device__ __forceinline__ void load_eight(const T* from, float (&values)[UNIT]) {
    const float4 four = load4(reinterpret_cast<const float*>(from));
    const float pairs[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 two = unpack<T>(__float_as_uint(pairs[i]));
        values[2 * i] = two.x, values[2 * i + 1] = two.y;
    }
}
template <class T>
__device__ __forceinline__ void store_eight(T* to, const float (&values)[UNIT]) {
    float pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = __uint_as_float(pack<T>(values[2 * i], values[2 * i + 1]));
    store4(reinterpret_cast<float*>(to), make_float4(pairs[0], pairs[1], pairs[2], pairs[3]));
}

// values += the `count` values at `from`, of eight that are in memory.
template <class Out>
__device__ __forceinline__ void add_eight(const Out* from, int count, float (&values)[UNIT]) {
    float others[UNIT] = {};
    if (count >= UNIT && is_aligned16(from)) {
        load_eight(from, others);
    } else {
#pragma unroll
        for (int j = 0; j < UNIT; ++j)
            if (j < count) others[j] = to_float(from[j]);
    }
#pragma unroll
    for (int j = 0; j < UNIT; ++j) values[j] += others[j];
}
template <class Out>
__device__ __forceinline__ void put_eight(Out* to, int count, const float (&values)[UNIT]) {
    if (count >= UNIT && is_aligned16(to)) {
        store_eight(to, values);
    } else {
#pragma unroll
        for (int j = 0; j < UNIT; ++j)
            if (j < count) to[j] = round_to<Out>(values[j]);
    }
}

// What a product writes, and adds before that.
template <class T>
struct HalfResult {
    T* c;
    float* planes;
    const float* bias;
    const T* residual;
    int64 residual_stride, residual_batch;
};

// Writes a block's sums, `add` to what is in the planes; `last`: finished by bias, residual and ReLU. The ring must be
// free, and is so again after a barrier.
template <class T, class Tile>
__device__ __forceinline__ void store_half(const typename Tile::Sums& sums, float* ring, const HalfResult<T>& result,
                                           const GemmShape& shape, bool add, bool last) {
    constexpr int PITCH = Tile::WARP_N + 8, CHUNKS = Tile::WARP_N / UNIT;
    static_assert(Tile::THREADS / WARP_SIZE * 16 * PITCH * 2 <= Tile::STAGES * Tile::STAGE, "the rows fit the ring");
    const int lane = opaque(threadIdx.x) % WARP_SIZE;
    float* rows = ring + opaque(threadIdx.x) / WARP_SIZE * 16 * PITCH;
    const Position at = block_position<Tile::TILE_M, Tile::TILE_N>(shape, opaque(blockIdx.x));
    const int64 matrix = at.batch * shape.c_batch + at.split * shape.c_split;
#pragma unroll
    for (int m = 0; m < Tile::ROW_TILES; ++m) {
#pragma unroll
        for (int n = 0; n < Tile::COLUMN_TILES; ++n) {
#pragma unroll
            for (int half = 0; half < 2; ++half)
                store2(rows + (lane / 4 + 8 * half) * PITCH + n * 8 + lane % 4 * 2,
                       make_float2(sums.values[m][n][2 * half], sums.values[m][n][2 * half + 1]));
        }
        __syncwarp();
#pragma unroll 1
        for (int i = lane; i < 16 * CHUNKS; i += WARP_SIZE) {
            const int row = at.row + Tile::warp_row() + m * 16 + i / CHUNKS;
            const int column = at.column + Tile::warp_column() + i % CHUNKS * UNIT, count = shape.N - column;
            if (row >= shape.M || count <= 0) continue;
            float values[UNIT];
            load_eight(rows + i / CHUNKS * PITCH + i % CHUNKS * UNIT, values);
            const int64 place = matrix + row * shape.c_stride + column;
            if (add) add_eight(result.planes + place, count, values);
            if (last && result.bias) {
#pragma unroll
                for (int j = 0; j < UNIT; ++j)
                    if (j < count) values[j] += result.bias[shape.bias_per_row ? row : column + j];
            }
            if (last && result.residual)
                add_eight(result.residual + at.batch * result.residual_batch + row * result.residual_stride + column, count,
                          values);
#pragma unroll
            for (int j = 0; j < UNIT; ++j) values[j] = finish(values[j], last && shape.relu);
            if (result.c) {
                put_eight(result.c + place, count, values);
            } else {
                put_eight(result.planes + place, count, values);
            }
        }
        __syncwarp();
    }
}

template <class T, class Tile, class Left, class Right>
__device__ __forceinline__ void gemm_half(const T* a, const T* b, const HalfResult<T>& result, const GemmShape& shape,
                                          T* ring) {
    const Position at = block_position<Tile::TILE_M, Tile::TILE_N>(shape, blockIdx.x);
    const int first = at.split * shape.split_terms, terms = min(shape.split_terms, shape.K - first);
    const int steps = ceil_div(terms, Tile::TERMS), chunk = result.c ? max(steps, 1) : HALF_CHUNK / Tile::TERMS;
    const Left left(a + at.batch * shape.a_batch, shape.a_stride, first, at.row, shape.M, terms);
    const Right right(b + at.batch * shape.b_batch, shape.b_stride, first, at.column, shape.N, terms);
    HalfOperands<T, Tile, Left, Right> load{left, right};
    for (int done = 0; done == 0 || done < steps; done += chunk) {
        typename Tile::Sums sums = {};
        multiply_ring<T, Tile>(load, min(chunk, steps - done), ring, sums);
        store_half<T, Tile>(sums, reinterpret_cast<float*>(ring), result, shape, done > 0, done + chunk >= steps);
        __syncthreads();
    }
}

// c = Σ planes of a workspace (splits,B,M,N), in their order, plus bias and residual, ReLU; `count` = B·M·N.
template <class T>
__device__ __forceinline__ void add_planes(const float* workspace, T* c, const float* bias, const T* residual,
                                           int64 residual_stride, int64 residual_batch, const GemmShape& shape, int count) {
    for (unsigned i = global_thread(); i < count; i += global_threads()) {
        const unsigned line = i / shape.N, column = i % shape.N, row = line % shape.M, batch = line / shape.M;
        float sum = 0.0f;
#pragma unroll 4
        for (int split = 0; split < shape.splits; ++split) sum += workspace[split * static_cast<int64>(count) + i];
        if (bias) sum += bias[shape.bias_per_row ? row : column];
        if (residual) sum += to_float(residual[batch * residual_batch + row * residual_stride + column]);
        c[batch * shape.c_batch + row * shape.c_stride + column] = round_to<T>(finish(sum, shape.relu));
    }
}
