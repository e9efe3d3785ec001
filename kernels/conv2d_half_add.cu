// Planes of split float32 sums, added in their order and rounded once to 16 bits.
//
// conv2d_half_add_<type>: y = ReLU(Σ planes + bias + residual), `count` elements, each array dense and in the same order;
// element i has the channel i / inner % channels, so inner is P·Q of NCHW and 1 of channels-last. bias and residual may be
// missing. y is overwritten.
// conv2d_half_add_weights_<type>: gw[k,c,tap] = Σ planes[k,tap,c], of conv2d_half_backward_weight.cuh. gw is overwritten.
#include "ptx_convert.cuh"

struct HalfSum {
    int64 count;
    int splits, channels, inner, relu;
};

template <class T>
__device__ __forceinline__ void add_planes(const float* planes, const float* bias, const T* residual, T* y,
                                           const HalfSum& s) {
    for (int64 i = global_thread(); i < s.count; i += global_threads()) {
        float sum = 0.0f;
#pragma unroll 4
        for (int split = 0; split < s.splits; ++split) sum += planes[split * s.count + i];
        if (bias) sum += bias[i / s.inner % s.channels];
        if (residual) sum += to_float(residual[i]);
        y[i] = round_to<T>(s.relu && sum < 0.0f ? 0.0f : sum);
    }
}

template <class T>
__device__ __forceinline__ void add_weights(const float* planes, T* gw, int splits, int channels, int taps, int64 count) {
    for (int64 i = global_thread(); i < count; i += global_threads()) {
        const unsigned number = static_cast<unsigned>(i);  // below 2^31
        const unsigned tap = number % taps, rest = number / taps, channel = rest % channels, filter = rest / channels;
        const float* plane = planes + (static_cast<int64>(filter) * taps + tap) * channels + channel;
        float sum = 0.0f;
#pragma unroll 4
        for (int split = 0; split < splits; ++split) sum += plane[split * count];
        gw[i] = round_to<T>(sum);
    }
}

#define CONV2D_HALF_ADD(type)                                                                                             \
    KERNEL(256, 4) conv2d_half_add_##type(const float* planes, const float* bias, const type* residual, type* y,          \
                                          HalfSum sum) {                                                                  \
        add_planes(planes, bias, residual, y, sum);                                                                       \
    }                                                                                                                     \
    KERNEL(256, 4) conv2d_half_add_weights_##type(const float* planes, type* gw, int splits, int channels, int taps,      \
                                                  int64 count) {                                                          \
        add_weights(planes, gw, splits, channels, taps, count);                                                           \
    }

CONV2D_HALF_ADD(bfloat16)
CONV2D_HALF_ADD(float16)
