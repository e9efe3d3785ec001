// Optimiser steps of several arrays in one launch, in place: parameters p with gradients g, which are only read, and
// what each optimiser keeps; sizes has their lengths. blockIdx.y chooses the array; the blocks along x share
// its elements. The formulas are those of csrc/update.cpp and gpucnn/ops/update.py:
//
//   sgd       g' = g + weight_decay p;  v = g' at the first step, else momentum v + (1 − dampening) g';
//             p −= lr · (g' + momentum v (Nesterov), or v, or g' where nothing is kept)
//   adam      g' = g + weight_decay p;  m += (1 − beta1) (g' − m);  v = beta2 v + (1 − beta2) g'²;
//             p = shrink p − step_size · m / (√v / root_correction + eps)
//   rmsprop   v = alpha v + (1 − alpha) g'²;  d = g' / (√(v − m²) + eps), m the running mean of g' (centered) or 0;
//             p −= lr · d, or lr · b with b = momentum b + d
//   adagrad   s += g'²;  p −= rate g' / (√s + eps)
//   adadelta  v = rho v + (1 − rho) g'²;  d = √(u + eps) / √(v + eps) · g';  u = rho u + (1 − rho) d²;  p −= lr · d
//
// g is first g + l1_decay sign(p). A step's numbers, flags among them (1 or 0), are floats: where `now` is not null they
// are read there, so that a recorded launch gets those of a later step. Where `scaling` (unscale.cu) is not null and found
// a gradient that is not finite, nothing changes. What Adam's numbers owe to the count of steps adam_numbers computes, for
// only the device knows how many of them it left out.
#include "common.cuh"

struct SgdStep {
    float lr, momentum, gradient_share, weight_decay, l1_decay, nesterov, first;
};
struct AdamStep {
    float step_size, mean_share, beta2, square_share, root_correction, eps, weight_decay, l1_decay, shrink;
};
struct RmspropStep {
    float lr, alpha, share, eps, momentum, weight_decay, l1_decay;
};
struct AdagradStep {
    float rate, eps, weight_decay, l1_decay;
};
struct AdadeltaStep {
    float lr, rho, share, eps, weight_decay, l1_decay;
};

// From what follows how Adam's step depends on the count of steps, those left out included.
struct AdamCount {
    double lr, beta1, beta2, step;
};

__device__ __forceinline__ bool is_skipped(const float* scaling) { return scaling && scaling[3] != 0.0f; }

template <class Step, class Number>
__device__ __forceinline__ Step current(const Step& given, const Number* now) {
    return now ? *reinterpret_cast<const Step*>(now) : given;
}

template <class Step>
__device__ __forceinline__ float decayed(const Step& step, float p, float g) {
    if (step.l1_decay != 0.0f) g += step.l1_decay * (p > 0.0f ? 1.0f : p < 0.0f ? -1.0f : p);  // 0 or NaN stays
    return multiply_add(step.weight_decay, p, g);
}

// kept · mean + share · value
__device__ __forceinline__ float run_mean(float mean, float value, float kept, float share) {
    return multiply_add(share, value, kept * mean);
}

struct Sgd {
    static constexpr int STATES = 0;
    static __device__ __forceinline__ void apply(const SgdStep& step, float& p, float g, float* /*nothing is kept*/) {
        p -= step.lr * decayed(step, p, g);
    }
};

struct SgdMomentum {
    static constexpr int STATES = 1;
    static __device__ __forceinline__ void apply(const SgdStep& step, float& p, float g, float* velocity) {
        g = decayed(step, p, g);
        velocity[0] = step.first != 0.0f ? g : run_mean(velocity[0], g, step.momentum, step.gradient_share);
        p -= step.lr * (step.nesterov != 0.0f ? multiply_add(step.momentum, velocity[0], g) : velocity[0]);
    }
};

struct Adam {
    static constexpr int STATES = 2;
    static __device__ __forceinline__ void apply(const AdamStep& step, float& p, float g, float* moments) {
        g = decayed(step, p, g);
        moments[0] += step.mean_share * (g - moments[0]);
        moments[1] = run_mean(moments[1], g * g, step.beta2, step.square_share);
        const float direction = moments[0] / (sqrtf(moments[1]) / step.root_correction + step.eps);
        p = step.shrink * p - step.step_size * direction;
    }
};

template <bool CENTERED, bool MOMENTUM>
struct Rmsprop {
    static constexpr int STATES = 1 + CENTERED + MOMENTUM;
    static __device__ __forceinline__ void apply(const RmspropStep& step, float& p, float g, float* kept) {
        g = decayed(step, p, g);
        kept[0] = run_mean(kept[0], g * g, step.alpha, step.share);
        float variance = kept[0];
        if (CENTERED) {
            float& mean = kept[STATES > 1];
            mean = run_mean(mean, g, step.alpha, step.share);
            const float rest = variance - mean * mean;
            variance = rest < 0.0f ? 0.0f : rest;  // rounding takes it below; NaN stays
        }
        float direction = g / (sqrtf(variance) + step.eps);
        if (MOMENTUM) direction = kept[STATES - 1] = multiply_add(step.momentum, kept[STATES - 1], direction);
        p -= step.lr * direction;
    }
};

struct Adagrad {
    static constexpr int STATES = 1;
    static __device__ __forceinline__ void apply(const AdagradStep& step, float& p, float g, float* square_sum) {
        g = decayed(step, p, g);
        square_sum[0] = multiply_add(g, g, square_sum[0]);
        p -= step.rate * g / (sqrtf(square_sum[0]) + step.eps);
    }
};

struct Adadelta {
    static constexpr int STATES = 2;
    static __device__ __forceinline__ void apply(const AdadeltaStep& step, float& p, float g, float* averages) {
        g = decayed(step, p, g);
        averages[0] = run_mean(averages[0], g * g, step.rho, step.share);
        const float direction = sqrtf(averages[1] + step.eps) / sqrtf(averages[0] + step.eps) * g;
        averages[1] = run_mean(averages[1], direction * direction, step.rho, step.share);
        p -= step.lr * direction;
    }
};

// One array's share of a launch.
struct Arrays {
    float* p;
    const float* g;
    float* kept[3];
};

template <class Rule, class Step>
__device__ __forceinline__ void update_lane(const Step& step, float4& p, const float4& g, float4* kept,
                                            float float4::*lane) {
    float values[Rule::STATES + 1];
#pragma unroll
    for (int i = 0; i < Rule::STATES; ++i) values[i] = kept[i].*lane;
    Rule::apply(step, p.*lane, g.*lane, values);
#pragma unroll
    for (int i = 0; i < Rule::STATES; ++i) kept[i].*lane = values[i];
}

template <class Rule, class Step>
__device__ __forceinline__ void update_four(const Arrays& arrays, int64 position, const Step& step) {
    float4 p = load4(arrays.p + position), kept[Rule::STATES + 1];
    const float4 g = load4(arrays.g + position);
#pragma unroll
    for (int i = 0; i < Rule::STATES; ++i) kept[i] = load4(arrays.kept[i] + position);
    update_lane<Rule>(step, p, g, kept, &float4::x);
    update_lane<Rule>(step, p, g, kept, &float4::y);
    update_lane<Rule>(step, p, g, kept, &float4::z);
    update_lane<Rule>(step, p, g, kept, &float4::w);
    store4(arrays.p + position, p);
#pragma unroll
    for (int i = 0; i < Rule::STATES; ++i) store4(arrays.kept[i] + position, kept[i]);
}

template <class Rule, class Step>
__device__ __forceinline__ void update_one(const Arrays& arrays, int64 position, const Step& step) {
    float kept[Rule::STATES + 1];
#pragma unroll
    for (int i = 0; i < Rule::STATES; ++i) kept[i] = arrays.kept[i][position];
    Rule::apply(step, arrays.p[position], arrays.g[position], kept);
#pragma unroll
    for (int i = 0; i < Rule::STATES; ++i) arrays.kept[i][position] = kept[i];
}

// All elements of one array: four at a time where every array lies at a multiple of 16 bytes, then the rest.
template <class Rule, class Step>
__device__ __forceinline__ void update(const Arrays& arrays, int64 count, const Step& step) {
    bool aligned = is_aligned16(arrays.p) && is_aligned16(arrays.g);
#pragma unroll
    for (int i = 0; i < Rule::STATES; ++i) aligned = aligned && is_aligned16(arrays.kept[i]);
    const int64 quads = aligned ? count / 4 : 0;
    for (int64 i = global_thread(); i < quads; i += global_threads()) update_four<Rule>(arrays, 4 * i, step);
    for (int64 i = 4 * quads + global_thread(); i < count; i += global_threads()) update_one<Rule>(arrays, i, step);
}

KERNEL(256, 4) sgd_update(Pointers p, const Pointers g, const Sizes sizes, const SgdStep step, const float* now,
                          const float* scaling) {
    if (is_skipped(scaling)) return;
    const int i = blockIdx.y;
    update<Sgd>({p.data[i], g.data[i], {}}, sizes.count[i], current(step, now));
}

KERNEL(256, 4) sgd_momentum_update(Pointers p, const Pointers g, Pointers velocity, const Sizes sizes,
                                   const SgdStep step, const float* now, const float* scaling) {
    if (is_skipped(scaling)) return;
    const int i = blockIdx.y;
    update<SgdMomentum>({p.data[i], g.data[i], {velocity.data[i]}}, sizes.count[i], current(step, now));
}

KERNEL(256, 4) adam_update(Pointers p, const Pointers g, Pointers first_moment, Pointers second_moment,
                           const Sizes sizes, const AdamStep step, const float* now, const float* scaling) {
    if (is_skipped(scaling)) return;
    const int i = blockIdx.y;
    update<Adam>({p.data[i], g.data[i], {first_moment.data[i], second_moment.data[i]}}, sizes.count[i],
                 current(step, now));
}

KERNEL(256, 4) rmsprop_update(Pointers p, const Pointers g, Pointers square_average, const Sizes sizes,
                              const RmspropStep step, const float* now, const float* scaling) {
    if (is_skipped(scaling)) return;
    const int i = blockIdx.y;
    update<Rmsprop<false, false>>({p.data[i], g.data[i], {square_average.data[i]}}, sizes.count[i], current(step, now));
}

// `other` is the mean (centered) or what momentum keeps.
#define RMSPROP_TWO(NAME, CENTERED) \
    KERNEL(256, 4) rmsprop_##NAME##_update(Pointers p, const Pointers g, Pointers square_average, Pointers other, \
                                           const Sizes sizes, const RmspropStep step, const float* now, \
                                           const float* scaling) { \
        if (is_skipped(scaling)) return; \
        const int i = blockIdx.y; \
        update<Rmsprop<CENTERED, !CENTERED>>({p.data[i], g.data[i], {square_average.data[i], other.data[i]}}, \
                                             sizes.count[i], current(step, now)); \
    }
RMSPROP_TWO(mean, true)
RMSPROP_TWO(momentum_buffer, false)

KERNEL(256, 4) rmsprop_mean_momentum_buffer_update(Pointers p, const Pointers g, Pointers square_average, Pointers mean,
                                                   Pointers momentum_buffer, const Sizes sizes,
                                                   const RmspropStep step, const float* now, const float* scaling) {
    if (is_skipped(scaling)) return;
    const int i = blockIdx.y;
    update<Rmsprop<true, true>>({p.data[i], g.data[i], {square_average.data[i], mean.data[i], momentum_buffer.data[i]}},
                                sizes.count[i], current(step, now));
}

KERNEL(256, 4) adagrad_update(Pointers p, const Pointers g, Pointers square_sum, const Sizes sizes,
                              const AdagradStep step, const float* now, const float* scaling) {
    if (is_skipped(scaling)) return;
    const int i = blockIdx.y;
    update<Adagrad>({p.data[i], g.data[i], {square_sum.data[i]}}, sizes.count[i], current(step, now));
}

KERNEL(256, 4) adadelta_update(Pointers p, const Pointers g, Pointers square_average, Pointers step_average,
                               const Sizes sizes, const AdadeltaStep step, const float* now, const float* scaling) {
    if (is_skipped(scaling)) return;
    const int i = blockIdx.y;
    update<Adadelta>({p.data[i], g.data[i], {square_average.data[i], step_average.data[i]}}, sizes.count[i],
                     current(step, now));
}

KERNEL(32, 1) adam_numbers(const AdamStep step, const float* now, const AdamCount count, const double* count_now,
                           const float* skips, float* result) {
    if (threadIdx.x > 0) return;
    AdamStep numbers = current(step, now);
    const AdamCount counted = current(count, count_now);
    const double made = counted.step - skips[0];
    numbers.step_size = static_cast<float>(counted.lr / (1.0 - pow(counted.beta1, made)));
    numbers.root_correction = static_cast<float>(sqrt(1.0 - pow(counted.beta2, made)));
    *reinterpret_cast<AdamStep*>(result) = numbers;
}
