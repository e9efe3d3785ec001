// Depthwise convolution of channels-last images of bfloat16 and float16, all three passes; the mathematics and layouts
// stand in conv2d_depthwise_last.cuh. Weights are w (float32), or w16 where w is null; b and partial sums are float32.
// Outputs are overwritten.
#include "conv2d_depthwise_last.cuh"

#define DEPTHWISE(T, TAPS, STRIDE, ROWS, BLOCKS)                                                                       \
    KERNEL(128, BLOCKS) conv2d_forward_depthwise_last_k##TAPS##s##STRIDE##_##T(                                        \
        const T* x, const float* w, const T* w16, const float* b, T* y, ConvShape c, int relu, int lanes) {            \
        depthwise_last<Reading<TAPS, STRIDE>, TAPS, ROWS>(                                                             \
            LastImages<T>{x, {w, w16}, b, y, c.N, c.C, c.H, c.W, c.P, c.Q, 0, relu, lanes});                           \
    }                                                                                                                  \
    KERNEL(128, BLOCKS) conv2d_backward_input_depthwise_last_k##TAPS##s##STRIDE##_##T(                                 \
        const T* gy, const float* w, const T* w16, T* gx, ConvShape c, int lanes) {                                    \
        depthwise_last<Back<TAPS, STRIDE>::Map, TAPS, 4>(                                                              \
            LastImages<T>{gy, {w, w16}, nullptr, gx, c.N, c.C, c.P, c.Q, c.H, c.W, STRIDE == 1, 0, lanes});            \
    }

// A strip of backward_weight has few rows, so that the sums of all taps fit registers.
#define DEPTHWISE_BACKWARD_WEIGHT(T, TAPS, STRIDE, ROWS, BLOCKS)                                                       \
    KERNEL(128, BLOCKS) conv2d_backward_weight_depthwise_last_k##TAPS##s##STRIDE##_##T(                                \
        const T* x, const T* gy, float* partial, ConvShape c, int lanes, int split_items) {                            \
        depthwise_last_backward_weight<TAPS, STRIDE, ROWS>(x, gy, partial, c, lanes, split_items);                     \
    }

DEPTHWISE(bfloat16, 3, 1, 4, 4)
DEPTHWISE(bfloat16, 3, 2, 2, 4)
DEPTHWISE(bfloat16, 5, 1, 4, 3)
DEPTHWISE(bfloat16, 5, 2, 2, 2)
DEPTHWISE(bfloat16, 7, 1, 4, 2)
DEPTHWISE(float16, 3, 1, 4, 4)
DEPTHWISE(float16, 3, 2, 2, 4)
DEPTHWISE(float16, 5, 1, 4, 3)
DEPTHWISE(float16, 5, 2, 2, 2)
DEPTHWISE(float16, 7, 1, 4, 2)

DEPTHWISE_BACKWARD_WEIGHT(bfloat16, 3, 1, 2, 4)
DEPTHWISE_BACKWARD_WEIGHT(bfloat16, 3, 2, 2, 3)
DEPTHWISE_BACKWARD_WEIGHT(bfloat16, 5, 1, 1, 2)
DEPTHWISE_BACKWARD_WEIGHT(bfloat16, 5, 2, 1, 2)
DEPTHWISE_BACKWARD_WEIGHT(bfloat16, 7, 1, 1, 2)
DEPTHWISE_BACKWARD_WEIGHT(float16, 3, 1, 2, 4)
DEPTHWISE_BACKWARD_WEIGHT(float16, 3, 2, 2, 3)
DEPTHWISE_BACKWARD_WEIGHT(float16, 5, 1, 1, 2)
DEPTHWISE_BACKWARD_WEIGHT(float16, 5, 2, 1, 2)
DEPTHWISE_BACKWARD_WEIGHT(float16, 7, 1, 1, 2)
