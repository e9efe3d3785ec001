// Softmax and cross-entropy in one: x, log_probabilities and gx (rows, classes), labels and losses (rows). Outputs are
// overwritten. With s = smoothing, and the target t = (1 − s) at the label plus s / classes everywhere:
//
//   forward   log_probabilities = x − log Σ e^x;  losses = −Σ t · log_probabilities
//   backward  gx = (e^log_probabilities − t) · gy, where gy has a number for each row at gy_stride (0: one for all)
//
// A label outside 0 … classes − 1 makes the loss and the gradient of its row NaN: no host needs to look at the labels.
// Names end in the threads that share a row: 32 for few classes, 256 for many.
#include "softmax.cuh"

__device__ __forceinline__ bool is_class(int64 label, int classes) { return label >= 0 && label < classes; }

template <int GROUP>
__device__ __forceinline__ void forward(const float* x, const int64* labels, float* losses, float* log_probabilities,
                                        int64 rows, int classes, float smoothing) {
    const int64 row = group_row<GROUP>();
    if (row >= rows) return;  // the whole group
    x += row * classes;
    log_probabilities += row * classes;
    const int64 label = labels[row];
    const Running total = row_softmax<GROUP>(x, classes);
    const float log_sum = logf(total.sum);
    float part = 0.0f;
    for (int i = group_thread<GROUP>(); i < classes; i += GROUP) {
        const float value = x[i] - total.largest - log_sum;
        log_probabilities[i] = value;
        part += value;
    }
    float loss = is_class(label, classes) ? -(1.0f - smoothing) * (x[label] - total.largest - log_sum) : NAN;
    if (smoothing != 0.0f) loss -= smoothing * (group_sum<GROUP>(part) / classes);
    if (group_thread<GROUP>() == 0) losses[row] = loss;
}

template <int GROUP>
__device__ __forceinline__ void backward(const float* log_probabilities, const int64* labels, const float* gy,
                                         int64 gy_stride, float* gx, int64 rows, int classes, float smoothing,
                                         float divisor) {
    const int64 row = group_row<GROUP>();
    if (row >= rows) return;
    log_probabilities += row * classes;
    gx += row * classes;
    const int64 label = labels[row];
    const float scale = is_class(label, classes) ? gy[row * gy_stride] / divisor : NAN;
    for (int i = group_thread<GROUP>(); i < classes; i += GROUP) {
        const float target = smoothing / classes + (i == label ? 1.0f - smoothing : 0.0f);
        gx[i] = (expf(log_probabilities[i]) - target) * scale;
    }
}

#define CROSS_ENTROPY(GROUP) \
    KERNEL(256, 4) cross_entropy_forward_##GROUP(const float* x, const int64* labels, float* losses, \
                                                 float* log_probabilities, int64 rows, int classes, \
                                                 float smoothing) { \
        forward<GROUP>(x, labels, losses, log_probabilities, rows, classes, smoothing); \
    } \
    KERNEL(256, 4) cross_entropy_backward_##GROUP(const float* log_probabilities, const int64* labels, \
                                                  const float* gy, int64 gy_stride, float* gx, int64 rows, \
                                                  int classes, float smoothing, float divisor) { \
        backward<GROUP>(log_probabilities, labels, gy, gy_stride, gx, rows, classes, smoothing, divisor); \
    }

CROSS_ENTROPY(32)
CROSS_ENTROPY(256)
