// Weights as the 16-bit implicit-GEMM convolutions read them, rounded on the way: packed (groups, phases, rows, pitch),
// overwritten. Rows are filters, or the channels that backward_input computes; terms are (tap of the phase, channel).
// Zeros stand in rows past the last filter and in terms past the last, so the convolutions copy whole tiles.
// w (K,C/groups,R,S), float32 or of packed's type. A block writes one row, whose weights it reads many times from L1.
#include "conv2d_taps.cuh"
#include "ptx_convert.cuh"

struct HalfPack {
    int rows, pitch, phases;
};

template <bool BACKWARD, class From, class To>
__device__ __forceinline__ void pack_row(const From* w, To* packed, const ConvShape& shape, const HalfPack& pack) {
    const int row = blockIdx.x % pack.rows, rest = blockIdx.x / pack.rows, phase = rest % pack.phases;
    const int group = rest / pack.phases, all_taps = shape.R * shape.S;
    const Gather g = make_gather<BACKWARD>(shape, phase);
    const int terms = row < g.filters ? g.rows.count * g.columns.count * g.channels : 0;
    const int64 per_filter = static_cast<int64>(shape.C / shape.groups) * all_taps;
    const int64 channel_stride = BACKWARD ? per_filter : all_taps, row_stride = BACKWARD ? all_taps : per_filter;
    const From* from = w + group * (shape.K / shape.groups) * per_filter + row * row_stride;
    To* to = packed + static_cast<int64>(blockIdx.x) * pack.pitch;
    for (int term = threadIdx.x; term < pack.pitch; term += 256) {
        const int tap = term / g.channels, channel = term - tap * g.channels;
        to[term] = round_to<To>(term < terms ? to_float(from[channel * channel_stride + tap_number(g, shape.S, tap)]) : 0.0f);
    }
}

#define CONV2D_PACK_HALF(from, From, to, To)                                                                              \
    KERNEL(256, 4) conv2d_forward_pack_##from##_##to(const From* w, To* packed, ConvShape shape, HalfPack pack) {         \
        pack_row<false>(w, packed, shape, pack);                                                                          \
    }                                                                                                                     \
    KERNEL(256, 4) conv2d_backward_input_pack_##from##_##to(const From* w, To* packed, ConvShape shape, HalfPack pack) {  \
        pack_row<true>(w, packed, shape, pack);                                                                           \
    }

CONV2D_PACK_HALF(float32, float, bfloat16, bfloat16)
CONV2D_PACK_HALF(float32, float, float16, float16)
CONV2D_PACK_HALF(bfloat16, bfloat16, bfloat16, bfloat16)
CONV2D_PACK_HALF(float16, float16, float16, float16)
