// Direct convolution of float32, backward_weight, of any shape; x (N,C,H,W) and gy (N,K,P,Q) are contiguous. The
// mathematics stand in conv2d_direct_backward_weight.cuh. Partial sums and gw are overwritten.
#include "conv2d_direct_backward_weight.cuh"

#define BACKWARD_WEIGHT(FILTERS, TERMS, PIXELS)                                                                        \
    KERNEL(128, 3) conv2d_backward_weight_direct_##FILTERS##x##TERMS(                                                  \
        const float* x, const float* gy, float* partial, ConvShape c, int64 split_pixels) {                            \
        backward_weight<FILTERS, TERMS, PIXELS>(                                                                       \
            Pair<float>{x, gy, contiguous(c.C, c.H, c.W), contiguous(c.K, c.P, c.Q)}, partial, c, split_pixels);       \
    }

BACKWARD_WEIGHT(64, 32, 32)
BACKWARD_WEIGHT(32, 64, 32)
BACKWARD_WEIGHT(8, 32, 128)

// gw[i] = Σ_split partial[split][i], count floats each, in the order of the splits.
KERNEL(256, 8) conv2d_direct_add_splits(const float* partial, float* gw, int64 count, int splits) {
    for (int64 i = global_thread(); i < count; i += global_threads()) {
        float total = 0.0f;
#pragma unroll 8
        for (int split = 0; split < splits; ++split) total += partial[split * count + i];
        gw[i] = total;
    }
}
