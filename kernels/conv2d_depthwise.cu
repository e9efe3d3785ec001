// Depthwise convolution of float32 planes, all three passes; the mathematics and layouts stand in conv2d_depthwise.cuh.
// Outputs are overwritten.
#include "conv2d_depthwise.cuh"

#define DEPTHWISE(TAPS, STRIDE, ROWS, BLOCKS)                                                                          \
    KERNEL(128, BLOCKS) conv2d_forward_depthwise_k##TAPS##s##STRIDE(                                                   \
        const float* x, const float* w, const float* b, float* y, ConvShape c, int relu) {                             \
        depthwise<Reading<TAPS, STRIDE>, TAPS, ROWS>(Planes<float>{                                                    \
            x, {w, nullptr}, b, y, static_cast<int64>(c.N) * c.K, c.K, c.K / c.C, c.H, c.W, c.P, c.Q, 0, relu});       \
    }                                                                                                                  \
    KERNEL(128, BLOCKS) conv2d_backward_input_depthwise_k##TAPS##s##STRIDE(                                            \
        const float* gy, const float* w, float* gx, ConvShape c) {                                                     \
        depthwise<Back<TAPS, STRIDE>::Map, TAPS, ROWS>(Planes<float>{                                                  \
            gy, {w, nullptr}, nullptr, gx, static_cast<int64>(c.N) * c.C, c.C, 1, c.P, c.Q, c.H, c.W, STRIDE == 1,     \
            0});                                                                                                       \
    }

DEPTHWISE(3, 1, 8, 5)
DEPTHWISE(3, 2, 4, 5)
DEPTHWISE(5, 1, 8, 3)
DEPTHWISE(5, 2, 4, 3)
DEPTHWISE(7, 1, 4, 3)
DEPTHWISE(7, 2, 4, 3)

// Not 7×7 at stride 2: its 49 sums and the pixels they wait for spill on sm_100 and later.
#define DEPTHWISE_BACKWARD_WEIGHT(TAPS, STRIDE, BLOCKS)                                                                \
    KERNEL(128, BLOCKS) conv2d_backward_weight_depthwise_k##TAPS##s##STRIDE(                                           \
        const float* x, const float* gy, float* partial, ConvShape c, int split_items) {                               \
        depthwise_backward_weight<TAPS, STRIDE, 4>(x, gy, partial, c, split_items);                                    \
    }

DEPTHWISE_BACKWARD_WEIGHT(3, 1, 4)
DEPTHWISE_BACKWARD_WEIGHT(3, 2, 3)
DEPTHWISE_BACKWARD_WEIGHT(5, 1, 3)
DEPTHWISE_BACKWARD_WEIGHT(5, 2, 3)
DEPTHWISE_BACKWARD_WEIGHT(7, 1, 3)
