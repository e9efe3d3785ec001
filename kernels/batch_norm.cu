// Batch normalisation of (N,C,L), L = H W; channels-last arrays (M,C) as N = M, L = 1 (Ioffe & Szegedy 2015,
// section 3). Forward; batch_norm_backward.cu is the other direction.
//
//   statistics   batch_norm_moments, batch_norm_finish_moments: mean_c, inverse_std_c = 1 / sqrt(variance_c + eps) with the
//                variance divided by m = N L; running <- keep running + momentum batch, with m / (m - 1) variance
//   running      batch_norm_running: copies the running mean, and inverse_std_c of the running variance
//   apply        batch_norm_apply: y = (x - mean) inverse_std weight + bias
//
// Sums have two stages: a block adds up a split of a channel into `partial`, then a block for each channel adds those up.
// The order is fixed. A thread adds 16 elements in float32, groups of them in double. The variance is the sum of squares
// about each group's own mean, and groups are joined by the formula of Chan, Golub and LeVeque, so nothing cancels where the
// mean is large, or an element lies far off. weight and bias may be null (1 and 0). Outputs are overwritten; running
// statistics are updated. x and y may be of 16 bits; all else is float32.
#include "batch_norm.cuh"

constexpr int THREADS = 128;
static_assert(THREADS == REDUCE_THREADS, "merge_block adds up the states of a whole block");

// b / a to about 2^-46, without the long division of doubles.
__device__ __forceinline__ double quotient(double b, double a) {
    const double estimate = 1.0f / static_cast<float>(a);
    return b * (estimate * (2.0 - a * estimate));
}

struct Moments {
    double mean, squares, count;  // squares: sum of squared distances from the mean
    static __device__ __forceinline__ Moments zero() { return {0.0, 0.0, 0.0}; }
    static __device__ __forceinline__ Moments load(const double* partial, int64 i) {
        return {partial[3 * i], partial[3 * i + 1], partial[3 * i + 2]};
    }
    __device__ __forceinline__ void store(double* partial, int64 i) const {
        partial[3 * i] = mean, partial[3 * i + 1] = squares, partial[3 * i + 2] = count;
    }
    __device__ __forceinline__ void merge(const Moments& other) {
        if (other.count == 0.0) return;
        if (count == 0.0) {
            *this = other;  // exactly, where a quotient would be 1 - 2^-46
            return;
        }
        const double total = count + other.count, share = quotient(other.count, total), distance = other.mean - mean;
        mean += distance * share;
        squares += other.squares + distance * distance * (count * share);
        count = total;
    }
};

template <class T>
struct MomentsOfX {
    const T* x;
    Moments state;
    Floats<GROUP> values;
    __device__ __forceinline__ void start(int) {}
    template <int VECTOR>
    __device__ __forceinline__ void load(int slot, int64 i) {
        load_floats<VECTOR>(x + i, values + slot);
    }
    template <int VECTOR>
    __device__ __forceinline__ void skip(int slot) {
        for (int k = 0; k < VECTOR; ++k) values[slot + k] = 0.0f;
    }
    // Values are divided before they are added, so that large ones do not overflow; the mean is corrected once, which makes
    // it that of a constant channel exactly.
    __device__ __forceinline__ void reduce(int count) {
        const float ratio = 1.0f / static_cast<float>(count);
        float mean = 0.0f, rest = 0.0f, squares = 0.0f;
#pragma unroll
        for (int k = 0; k < GROUP; ++k) mean = multiply_add(values[k], ratio, mean);
#pragma unroll
        for (int k = 0; k < GROUP; ++k) rest += k < count ? values[k] - mean : 0.0f;
        mean = multiply_add(rest, ratio, mean);
        rest = 0.0f;
#pragma unroll
        for (int k = 0; k < GROUP; ++k) {
            const float distance = k < count ? values[k] - mean : 0.0f;
            rest += distance;
            squares = multiply_add(distance, distance, squares);
        }
        rest *= ratio;  // what rounding left out of the mean
        state.merge({static_cast<double>(mean) + static_cast<double>(rest),
                     static_cast<double>(squares - rest * rest * static_cast<float>(count)), static_cast<double>(count)});
    }
};

#define BATCH_NORM_MOMENTS(NAME, T) \
    KERNEL(THREADS, 6) NAME(const T* x, double* partial, NormShape shape) { \
        MomentsOfX<T> body{x, Moments::zero(), {}}; \
        reduce_channels(shape, is_aligned16(x), partial, body); \
    }
BATCH_NORM_MOMENTS(batch_norm_moments, float)
BATCH_NORM_MOMENTS(batch_norm_moments_bfloat16, bfloat16)
BATCH_NORM_MOMENTS(batch_norm_moments_float16, float16)

// running_mean and running_var may be null. unbias = m / (m - 1), keep = 1 - momentum.
KERNEL(THREADS, 6) batch_norm_finish_moments(const double* partial, float* mean, float* inverse_std, float* running_mean,
                                                    float* running_var, NormShape shape, float eps, float keep,
                                                    float momentum, float unbias) {
    const int c = blockIdx.x;
    const Moments total = merge_splits<Moments>(partial, c, shape.splits);
    if (threadIdx.x != 0) return;
    const float center = static_cast<float>(total.mean);
    const float variance = static_cast<float>(total.squares / total.count);
    mean[c] = center;
    inverse_std[c] = 1.0f / sqrtf(variance + eps);
    if (!running_mean) return;
    running_mean[c] = running_mean[c] * keep + momentum * center;
    running_var[c] = running_var[c] * keep + momentum * (variance * unbias);
}

KERNEL(256, 4) batch_norm_running(const float* running_mean, const float* running_var, float* mean, float* inverse_std,
                                  int channels, float eps) {
    const int64 c = global_thread();
    if (c >= channels) return;
    mean[c] = running_mean[c];
    inverse_std[c] = 1.0f / sqrtf(running_var[c] + eps);
}

template <class T>
struct Apply {
    const T* x;
    const float *mean, *inverse_std, *weight, *bias;
    T* y;
    template <int VECTOR, bool ROWS>
    __device__ __forceinline__ void apply(int64 i, int c) const {
        Floats<VECTOR> value, center, factor, scale, offset;
        load_floats<VECTOR>(x + i, value);
        load_channels<VECTOR, ROWS>(mean, c, 0.0f, center);
        load_channels<VECTOR, ROWS>(inverse_std, c, 1.0f, factor);
        load_channels<VECTOR, ROWS>(weight, c, 1.0f, scale);
        load_channels<VECTOR, ROWS>(bias, c, 0.0f, offset);
#pragma unroll
        for (int k = 0; k < VECTOR; ++k)
            value[k] = multiply_add(value[k] - center[k], scale[k] * factor[k], offset[k]);
        store_floats<VECTOR>(y + i, value);
    }
};

#define BATCH_NORM_APPLY(NAME, T) \
    KERNEL(256, 4) NAME(const T* x, const float* mean, const float* inverse_std, const float* weight, \
                        const float* bias, T* y, NormShape shape) { \
        const bool aligned = is_aligned16(x) && is_aligned16(y) && is_aligned16(mean) && is_aligned16(inverse_std) && \
                             is_aligned16(weight) && is_aligned16(bias); \
        for_all(shape, aligned, Apply<T>{x, mean, inverse_std, weight, bias, y}); \
    }
BATCH_NORM_APPLY(batch_norm_apply, float)
BATCH_NORM_APPLY(batch_norm_apply_bfloat16, bfloat16)
BATCH_NORM_APPLY(batch_norm_apply_float16, float16)

// One batch more; by a kernel, so that a recorded step counts, too.
KERNEL(32, 1) batch_norm_count(int64* batches) {
    if (threadIdx.x == 0) ++batches[0];
}
