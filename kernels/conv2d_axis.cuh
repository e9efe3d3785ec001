// Along one axis, what a convolution's outputs collect: for the forward pass and for its gradient of the input.
//
// Output number u along an axis collects from the source's positions u·scale + offset + i·delta through taps
// first + i·step, i < count:
// - forward: all taps, u·stride − padding + i·dilation.
// - backward_input: output h = phase + u·stride is reached by tap r from p = (h + padding − r·dilation) / stride, where
//   that is whole. Every phase is a convolution of its own with the taps that reach it: no zero is multiplied. A phase that
//   no tap reaches has no terms, so zeros are written.
#pragma once
#include "common.cuh"

struct Axis {
    int scale, offset, delta;  // of positions in the source
    int first, step, count;    // of taps
};

__device__ __forceinline__ Axis forward_axis(int taps, int stride, int padding, int dilation) {
    return {stride, -padding, dilation, 0, 1, taps};
}

// The taps that reach a phase are an arithmetic progression of stride / gcd(stride, dilation).
__device__ __forceinline__ Axis backward_axis(int phase, int taps, int stride, int padding, int dilation) {
    int divisor = stride;
    for (int rest = dilation; rest > 0;) {
        const int next = divisor % rest;
        divisor = rest;
        rest = next;
    }
    const int step = stride / divisor, end = min(taps, step);
    int first = 0;
    while (first < end && (phase + padding - first * dilation) % stride != 0) ++first;
    const int count = first < end ? ceil_div(taps - first, step) : 0;
    return {1, (phase + padding - first * dilation) / stride, -(dilation / divisor), first, step, count};
}
