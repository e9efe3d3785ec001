// Batch normalisation's ways through memory. Arrays are (N,C,L), L = H W pixels; a channels-last array (M,C) is the case
// N = M, L = 1.
#pragma once
#include "elementwise.cuh"

constexpr int REDUCE_THREADS = 128;
constexpr int GROUP = 16;  // elements that a thread loads before it adds them up

template <int COUNT>
using Floats = float[COUNT];
constexpr int ROW_LANES = 4;  // threads that share a channel where 32 neighbouring channels are worked on together

struct NormShape {
    int64 N;
    int C, L;
    int splits;  // into which a channel's N L elements are cut, one a block
    int64 chunk;  // elements of a split, a multiple of 4
};

// What one thread block adds up: elements begin to end of channel c, of which this thread takes every LANES-th unit.
struct Part {
    int c, lane;
    int64 begin, end;
};
__device__ __forceinline__ Part part_of(const NormShape& s, int c, int lane, int split) {
    const int64 begin = split * s.chunk, end = s.N * s.L;
    return {c, lane, begin, begin + s.chunk < end ? begin + s.chunk : end};
}

// Gives `body`, after its start(channel), the thread's elements in groups: load<VECTOR>(slot, index) or skip<VECTOR>(slot) for slot 0, VECTOR, …,
// then reduce(number of loaded elements). VECTOR neighbours are loaded at once; L and the part's ends are multiples of it.
template <int VECTOR, int LANES, class Body>
__device__ __forceinline__ void walk_channel(const NormShape& s, const Part& part, Body& body) {
    const int L = s.L / VECTOR;
    const int step_n = LANES / L, step_l = LANES % L;
    const int64 end = part.end / VECTOR;
    int64 unit = part.begin / VECTOR + part.lane, n = unit / L;
    int l = static_cast<int>(unit % L);
    while (unit < end) {
        int count = 0;
#pragma unroll
        for (int slot = 0; slot < GROUP; slot += VECTOR) {
            if (unit < end) {
                body.template load<VECTOR>(slot, (n * s.C + part.c) * s.L + static_cast<int64>(l) * VECTOR);
                count += VECTOR;
            } else {
                body.template skip<VECTOR>(slot);
            }
            unit += LANES;
            n += step_n;
            l += step_l;
            if (l >= L) l -= L, ++n;
        }
        body.reduce(count);
    }
}

// VECTOR values at `address`, a multiple of their size, as floats.
template <int VECTOR, class T>
__device__ __forceinline__ void load_floats(const T* address, float* values) {
    if constexpr (VECTOR == 4)
        load_neighbours(address, *reinterpret_cast<Floats<4>*>(values));
    else
        *values = to_float(*address);
}

template <int VECTOR, class T>
__device__ __forceinline__ void store_floats(T* address, const float* values) {
    if constexpr (VECTOR == 4)
        store_neighbours(address, *reinterpret_cast<const Floats<4>*>(values));
    else
        *address = round_to<T>(*values);
}

// VECTOR values of a vector (C,) that belong to a unit: neighbours if ROWS, else the same one; `missing` if it is null.
template <int VECTOR, bool ROWS>
__device__ __forceinline__ void load_channels(const float* vector, int c, float missing, float* values) {
    if (ROWS && vector) return load_floats<VECTOR>(vector + c, values);
    const float value = vector ? vector[c] : missing;
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) values[k] = value;
}

// Adds up the states of the threads whose numbers are equal modulo WIDTH, in a fixed order, into those of the first WIDTH.
template <int WIDTH, class State>
__device__ __forceinline__ void merge_block(State& state) {
    SHARED(State, states, [REDUCE_THREADS]);
    states[threadIdx.x] = state;
    __syncthreads();
#pragma unroll 1
    for (int distance = REDUCE_THREADS / 2; distance >= WIDTH; distance /= 2) {
        if (threadIdx.x < distance) {
            state.merge(states[threadIdx.x + distance]);
            states[threadIdx.x] = state;
        }
        __syncthreads();
    }
}

// One channel's share for each block of a grid of C * splits: the block's first thread ends with the sum.
// Grids of ceil(C / 32) * splits where L = 1: 32 channels a block, in its first 32 threads.
template <class Body>
__device__ __forceinline__ void reduce_channels(const NormShape& s, bool aligned, double* partial, Body& body) {
    const int unit = static_cast<int>(blockIdx.x) / s.splits, split = static_cast<int>(blockIdx.x) % s.splits;
    if (s.L == 1) {
        const int c = unit * WARP_SIZE + threadIdx.x % WARP_SIZE;
        if (c < s.C) {
            body.start(c);
            walk_channel<1, ROW_LANES>(s, part_of(s, c, threadIdx.x / WARP_SIZE, split), body);
        }
        merge_block<WARP_SIZE>(body.state);
        if (threadIdx.x < WARP_SIZE && c < s.C) body.state.store(partial, static_cast<int64>(c) * s.splits + split);
        return;
    }
    const Part part = part_of(s, unit, threadIdx.x, split);
    body.start(unit);
    if (aligned && s.L % 4 == 0)
        walk_channel<4, REDUCE_THREADS>(s, part, body);
    else
        walk_channel<1, REDUCE_THREADS>(s, part, body);
    merge_block<1>(body.state);
    if (threadIdx.x == 0) body.state.store(partial, static_cast<int64>(unit) * s.splits + split);
}

// The sum over a channel's splits, in the block's first thread.
template <class State>
__device__ __forceinline__ State merge_splits(const double* partial, int c, int splits) {
    State state = State::zero();
    for (int split = threadIdx.x; split < splits; split += REDUCE_THREADS)
        state.merge(State::load(partial, static_cast<int64>(c) * splits + split));
    merge_block<1>(state);
    return state;
}

// Calls body(index, channel) for the units of VECTOR neighbouring elements that this thread takes of the whole array. They
// are of one channel, or if ROWS (L = 1) of VECTOR channels. The place moves on without divisions.
template <int VECTOR, bool ROWS, class Body>
__device__ __forceinline__ void for_each_unit(const NormShape& s, const Body& body) {
    const int inner = ROWS ? 1 : s.L / VECTOR, channels = ROWS ? s.C / VECTOR : s.C;
    const int64 units = s.N * s.C * s.L / VECTOR, step = global_threads();
    int64 unit = global_thread();
    int l = static_cast<int>(unit % inner), c = static_cast<int>(unit / inner % channels);
    const int step_l = static_cast<int>(step % inner), step_c = static_cast<int>(step / inner % channels);
    for (; unit < units; unit += step) {
        body(unit * VECTOR, ROWS ? c * VECTOR : c);
        l += step_l;
        c += step_c;
        if (l >= inner) l -= inner, ++c;
        if (c >= channels) c -= channels;
    }
}

// The widest units that the shape and the arrays' alignment allow; body.apply<VECTOR, ROWS>(index, channel).
template <class Body>
__device__ __forceinline__ void for_all(const NormShape& s, bool aligned, const Body& body) {
    if (aligned && s.L % 4 == 0)
        for_each_unit<4, false>(s, [&](int64 i, int c) { body.template apply<4, false>(i, c); });
    else if (aligned && s.L == 1 && s.C % 4 == 0)
        for_each_unit<4, true>(s, [&](int64 i, int c) { body.template apply<4, true>(i, c); });
    else
        for_each_unit<1, false>(s, [&](int64 i, int c) { body.template apply<1, false>(i, c); });
}
