// Batch normalisation of (N,C,L) backward, from x, gy and the mean and inverse_std (C,) of batch_norm.cu; with m = N L and
// xh = (x - mean) inverse_std
//
//   batch_norm_sums, batch_norm_finish_sums   gbias = sum gy, gweight = sum gy xh; offset = gbias / m and
//                                             slope = inverse_std gweight / m for the next kernel
//   batch_norm_backward_training              gx = weight inverse_std (gy - offset - (x - mean) slope), since mean and
//                                             variance come from x
//   batch_norm_backward_inference             gx = weight inverse_std gy: they are constants
//
// Sums have two stages as in batch_norm.cu: 16 elements in float32, groups of them in double, always in the same order.
// weight may be null (1). Outputs are overwritten.
#include "batch_norm.cuh"

constexpr int THREADS = 128;
static_assert(THREADS == REDUCE_THREADS, "merge_block adds up the states of a whole block");

struct Sums {
    double gradient, projection;  // sum gy, sum gy (x - mean)
    static __device__ __forceinline__ Sums zero() { return {0.0, 0.0}; }
    static __device__ __forceinline__ Sums load(const double* partial, int64 i) { return {partial[2 * i], partial[2 * i + 1]}; }
    __device__ __forceinline__ void store(double* partial, int64 i) const {
        partial[2 * i] = gradient, partial[2 * i + 1] = projection;
    }
    __device__ __forceinline__ void merge(const Sums& other) {
        gradient += other.gradient;
        projection += other.projection;
    }
};

template <class T>
struct SumsOfGradient {
    const T *x, *gy;
    const float* mean;
    Sums state;
    Floats<GROUP> values, gradients;
    float center;
    __device__ __forceinline__ void start(int c) { center = mean[c]; }
    template <int VECTOR>
    __device__ __forceinline__ void load(int slot, int64 i) {
        load_floats<VECTOR>(x + i, values + slot);
        load_floats<VECTOR>(gy + i, gradients + slot);
    }
    template <int VECTOR>
    __device__ __forceinline__ void skip(int slot) {
        for (int k = 0; k < VECTOR; ++k) values[slot + k] = gradients[slot + k] = 0.0f;
    }
    __device__ __forceinline__ void reduce(int count) {
        float gradient = 0.0f, projection = 0.0f;
#pragma unroll
        for (int k = 0; k < GROUP; ++k) {
            gradient += gradients[k];
            if (k < count) projection = multiply_add(gradients[k], values[k] - center, projection);
        }
        state.merge({static_cast<double>(gradient), static_cast<double>(projection)});
    }
};

#define BATCH_NORM_SUMS(NAME, T) \
    KERNEL(THREADS, 4) NAME(const T* x, const T* gy, const float* mean, double* partial, NormShape shape) { \
        SumsOfGradient<T> body{x, gy, mean, Sums::zero(), {}, {}, 0.0f}; \
        reduce_channels(shape, is_aligned16(x) && is_aligned16(gy), partial, body); \
    }
BATCH_NORM_SUMS(batch_norm_sums, float)
BATCH_NORM_SUMS(batch_norm_sums_bfloat16, bfloat16)
BATCH_NORM_SUMS(batch_norm_sums_float16, float16)

KERNEL(THREADS, 6) batch_norm_finish_sums(const double* partial, const float* inverse_std, float* gweight, float* gbias,
                                                 float* offset, float* slope, NormShape shape) {
    const int c = blockIdx.x;
    const Sums total = merge_splits<Sums>(partial, c, shape.splits);
    if (threadIdx.x != 0) return;
    const double count = static_cast<double>(shape.N * shape.L), projection = inverse_std[c] * total.projection;
    gbias[c] = static_cast<float>(total.gradient);
    gweight[c] = static_cast<float>(projection);
    offset[c] = static_cast<float>(total.gradient / count);
    slope[c] = static_cast<float>(inverse_std[c] * projection / count);
}

template <class T>
struct Training {
    const T *x, *gy;
    const float *mean, *inverse_std, *weight, *offset, *slope;
    T* gx;
    template <int VECTOR, bool ROWS>
    __device__ __forceinline__ void apply(int64 i, int c) const {
        Floats<VECTOR> value, gradient, center, factor, scale, shift, rate;
        load_floats<VECTOR>(x + i, value);
        load_floats<VECTOR>(gy + i, gradient);
        load_channels<VECTOR, ROWS>(mean, c, 0.0f, center);
        load_channels<VECTOR, ROWS>(inverse_std, c, 1.0f, factor);
        load_channels<VECTOR, ROWS>(weight, c, 1.0f, scale);
        load_channels<VECTOR, ROWS>(offset, c, 0.0f, shift);
        load_channels<VECTOR, ROWS>(slope, c, 0.0f, rate);
#pragma unroll
        for (int k = 0; k < VECTOR; ++k)
            value[k] = scale[k] * factor[k] * (gradient[k] - shift[k] - (value[k] - center[k]) * rate[k]);
        store_floats<VECTOR>(gx + i, value);
    }
};

#define BATCH_NORM_BACKWARD_TRAINING(NAME, T) \
    KERNEL(256, 4) NAME(const T* x, const T* gy, const float* mean, const float* inverse_std, const float* weight, \
                        const float* offset, const float* slope, T* gx, NormShape shape) { \
        const bool aligned = is_aligned16(x) && is_aligned16(gy) && is_aligned16(gx) && is_aligned16(mean) && \
                             is_aligned16(inverse_std) && is_aligned16(weight) && is_aligned16(offset) && \
                             is_aligned16(slope); \
        for_all(shape, aligned, Training<T>{x, gy, mean, inverse_std, weight, offset, slope, gx}); \
    }
BATCH_NORM_BACKWARD_TRAINING(batch_norm_backward_training, float)
BATCH_NORM_BACKWARD_TRAINING(batch_norm_backward_training_bfloat16, bfloat16)
BATCH_NORM_BACKWARD_TRAINING(batch_norm_backward_training_float16, float16)

template <class T>
struct Inference {
    const T* gy;
    const float *inverse_std, *weight;
    T* gx;
    template <int VECTOR, bool ROWS>
    __device__ __forceinline__ void apply(int64 i, int c) const {
        Floats<VECTOR> gradient, factor, scale;
        load_floats<VECTOR>(gy + i, gradient);
        load_channels<VECTOR, ROWS>(inverse_std, c, 1.0f, factor);
        load_channels<VECTOR, ROWS>(weight, c, 1.0f, scale);
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) gradient[k] *= scale[k] * factor[k];
        store_floats<VECTOR>(gx + i, gradient);
    }
};

#define BATCH_NORM_BACKWARD_INFERENCE(NAME, T) \
    KERNEL(256, 4) NAME(const T* gy, const float* inverse_std, const float* weight, T* gx, NormShape shape) { \
        const bool aligned = is_aligned16(gy) && is_aligned16(gx) && is_aligned16(inverse_std) && is_aligned16(weight); \
        for_all(shape, aligned, Inference<T>{gy, inverse_std, weight, gx}); \
    }
BATCH_NORM_BACKWARD_INFERENCE(batch_norm_backward_inference, float)
BATCH_NORM_BACKWARD_INFERENCE(batch_norm_backward_inference_bfloat16, bfloat16)
BATCH_NORM_BACKWARD_INFERENCE(batch_norm_backward_inference_float16, float16)
