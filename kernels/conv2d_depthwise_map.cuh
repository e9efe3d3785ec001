// What depthwise kernels of both layouts share: which values of the source an output reads, and weights of two types.
#pragma once
#include "elementwise.cuh"

// Weights: float32 masters, or T where there are none (`wide` is null).
template <class T>
struct Parameters {
    const float* wide;
    const T* narrow;
    __device__ __forceinline__ float operator[](int64 i) const { return wide ? wide[i] : to_float(narrow[i]); }
};

// Which tap joins output i and source position j of a strip, along either axis: from 0 to TAPS − 1, or none.
// Source position j is first(output 0) + j; those that lie at a multiple of the strip are span(outputs) from START on.
template <int TAPS, int STRIDE>
struct Reading {  // y from x
    static constexpr int START = TAPS / 2;
    static __host__ __device__ constexpr int sources(int outputs) { return (outputs - 1) * STRIDE + TAPS; }
    static __host__ __device__ constexpr int span(int outputs) { return outputs * STRIDE; }
    static __host__ __device__ constexpr int tap(int output, int source) { return source - output * STRIDE; }
    static __device__ int first(int output) { return output * STRIDE - START; }
};
template <int TAPS>
struct Returning {  // gx from gy, stride 2: output h is reached from (h + padding − tap) / 2, where that is whole
    static constexpr int PADDING = TAPS / 2, START = PADDING / 2;
    static __host__ __device__ constexpr int sources(int outputs) { return (outputs - 1 + PADDING) / 2 + START + 1; }
    static __host__ __device__ constexpr int span(int outputs) { return outputs / 2; }
    static __host__ __device__ constexpr int tap(int output, int source) {
        return output + PADDING - 2 * (source - START);
    }
    static __device__ int first(int output) { return output / 2 - START; }
};

// backward_input's; at stride 2 both axes of a strip start at even positions.
template <int TAPS, int STRIDE>
struct Back {
    using Map = Reading<TAPS, 1>;
};
template <int TAPS>
struct Back<TAPS, 2> {
    using Map = Returning<TAPS>;
};
