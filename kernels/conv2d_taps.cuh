// Which values of the source a convolution's output collects, through which taps of the weights: for the forward pass and
// for its gradient of the input.
#pragma once
#include "conv2d_axis.cuh"
#include "conv2d_gemm.cuh"

constexpr int MAX_TAPS = 256;  // of rows + columns ≤ 32

// What both passes have in common: `channels` are summed, `filters` computed, each of one group.
struct Gather {
    int channels, filters, height, width;          // of the source
    int out_height, out_width, step_h, step_w, phase_h, phase_w;
    Axis rows, columns;
};

template <bool BACKWARD>
__device__ __forceinline__ Gather make_gather(const ConvShape& s, int phase) {
    const int channels = s.C / s.groups, filters = s.K / s.groups;
    if (!BACKWARD)
        return {channels, filters, s.H, s.W, s.P, s.Q, 1, 1, 0, 0,
                forward_axis(s.R, s.stride_h, s.padding_h, s.dilation_h),
                forward_axis(s.S, s.stride_w, s.padding_w, s.dilation_w)};
    const int phase_h = phase / s.stride_w, phase_w = phase % s.stride_w;
    return {filters, channels, s.P, s.Q, s.H, s.W, s.stride_h, s.stride_w, phase_h, phase_w,
            backward_axis(phase_h, s.R, s.stride_h, s.padding_h, s.dilation_h),
            backward_axis(phase_w, s.S, s.stride_w, s.padding_w, s.dilation_w)};
}

// A tap of the table that leads through the taps of 16 channels, and then to the next 16.
struct Tap {
    int source, bits, weights, next;  // floats to the next tap's values and weights; its number
};

// Where a tap of a channel lies, and its bits.
struct Place {
    int source, bits;
};

template <class Tile>
struct TapTables {
    static constexpr int PLACES = MAX_TAPS + Tile::TERMS;  // goes on into the next channels: a step may begin at any tap
    static constexpr int INTS = 3 * PLACES > 4 * MAX_TAPS ? 3 * PLACES : 4 * MAX_TAPS;
    int* memory;
    __device__ __forceinline__ Tap* taps() const { return reinterpret_cast<Tap*>(memory); }
    __device__ __forceinline__ Place* places() const { return reinterpret_cast<Place*>(memory); }
    __device__ __forceinline__ int* terms() const { return memory + 2 * PLACES; }  // numbers of packed weights
};

// Tap t of a phase, in the order of the table, and its number among all.
__device__ __forceinline__ int source_offset(const Gather& g, const ImageStrides& strides, int t) {
    const int i = t / g.columns.count, j = t % g.columns.count;
    return static_cast<int>(i * g.rows.delta * strides.row + j * g.columns.delta * strides.column);
}
__device__ __forceinline__ int tap_number(const Gather& g, int width, int t) {
    const int i = t / g.columns.count, j = t % g.columns.count;
    return (g.rows.first + i * g.rows.step) * width + g.columns.first + j * g.columns.step;
}
__device__ __forceinline__ int tap_bits(const Gather& g, int t) {
    return 1 << t / g.columns.count | 1 << (g.rows.count + t % g.columns.count);
}

template <class Tile>
__device__ __forceinline__ void fill_taps(Tap* taps, const Gather& g, const ConvShape& s, const ImageStrides& strides) {
    const int count = g.rows.count * g.columns.count, row = Tile::TERMS * Tile::TILE_M;
    for (int t = threadIdx.x; t < count; t += Tile::THREADS) {
        const int next = t + 1 < count ? t + 1 : 0;
        const int channels = next ? 0 : static_cast<int>(Tile::TERMS * strides.channel);
        const int weights = tap_number(g, s.S, next) - tap_number(g, s.S, t) + (next ? 0 : s.R * s.S);
        taps[t] = {channels + source_offset(g, strides, next) - source_offset(g, strides, t), tap_bits(g, t), weights * row,
                   next};
    }
}

// Entry t is tap t % count of channel t / count, for t below count + TERMS.
template <class Tile>
__device__ __forceinline__ void fill_places(const TapTables<Tile>& table, const Gather& g, const ConvShape& s,
                                            const ImageStrides& strides) {
    const int count = g.rows.count * g.columns.count;
    for (int t = threadIdx.x; t < count + Tile::TERMS; t += Tile::THREADS) {
        const int channel = t / count, tap = t % count;
        const int offset = static_cast<int>(channel * strides.channel) + source_offset(g, strides, tap);
        table.places()[t] = {offset, tap_bits(g, tap)};
        table.terms()[t] = channel * s.R * s.S + tap_number(g, s.S, tap);
    }
}

__device__ __forceinline__ unsigned outside_bits(const Axis& axis, int u, int extent) {
    unsigned bits = 0;
    for (int i = 0, position = u * axis.scale + axis.offset; i < axis.count; ++i, position += axis.delta)
        bits |= static_cast<unsigned>(position < 0 || position >= extent) << i;
    return bits;
}
