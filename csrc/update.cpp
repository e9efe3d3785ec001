// Optimiser steps, in place, one pass over memory. p: parameter, g: its gradient (not changed), all of one shape.
//
//   sgd_update    g' = g + weight_decay p;  b = g' at the first step, else momentum b + (1 - dampening) g';
//                 d = g' + momentum b (Nesterov) or b (momentum) or g' (neither);  p -= lr d
//                 (Sutskever, Martens, Dahl, Hinton 2013, in PyTorch's form)
//   adam_update   g' = g + weight_decay p, or, decoupled, g' = g and p *= 1 - lr weight_decay;
//                 m = beta1 m + (1 - beta1) g';  v = beta2 v + (1 - beta2) g'^2;
//                 p -= lr / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + eps), step = 1, 2, ...
//                 (Kingma & Ba 2015; decoupled decay: Loshchilov & Hutter 2019)
#include <cmath>

#include "operations.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

template <class T>
struct Sgd {
    T lr, momentum, gradient_share, weight_decay;  // gradient_share = 1 - dampening
    bool nesterov, first;
};

template <class T>
GPUCNN_CLONES void sgd_range(T* __restrict p, const T* __restrict g, int64_t count, Sgd<T> step) {
    for (int64_t i = 0; i < count; ++i) p[i] -= step.lr * (g[i] + step.weight_decay * p[i]);
}

template <class T>
GPUCNN_CLONES void sgd_momentum_range(T* __restrict p, const T* __restrict g, T* __restrict buffer, int64_t count,
                                      Sgd<T> step) {
    for (int64_t i = 0; i < count; ++i) {
        const T gradient = g[i] + step.weight_decay * p[i];
        const T velocity = step.first ? gradient : step.momentum * buffer[i] + step.gradient_share * gradient;
        buffer[i] = velocity;
        p[i] -= step.lr * (step.nesterov ? gradient + step.momentum * velocity : velocity);
    }
}

template <class T>
struct Adam {
    T step_size, mean_share, beta2, square_share, root_correction, eps, weight_decay, shrink;
};

template <class T>
GPUCNN_CLONES void adam_range(T* __restrict p, const T* __restrict g, T* __restrict m, T* __restrict v, int64_t count,
                              Adam<T> step) {
    for (int64_t i = 0; i < count; ++i) {
        const T gradient = g[i] + step.weight_decay * p[i];
        m[i] += step.mean_share * (gradient - m[i]);
        v[i] = step.beta2 * v[i] + step.square_share * gradient * gradient;
        p[i] = step.shrink * p[i] - step.step_size * (m[i] / (std::sqrt(v[i]) / step.root_correction + step.eps));
    }
}

}  // namespace

template <class T>
void sgd_update(T* p, const T* g, T* momentum_buffer, int64_t count, const SgdOptions& options) {
    const Sgd<T> step{T(options.lr), T(options.momentum), T(1 - options.dampening), T(options.weight_decay),
                      options.nesterov, options.first};
    parallel_for_ranges(count, GRAIN, [=](int64_t begin, int64_t end) {
        if (momentum_buffer)
            sgd_momentum_range(p + begin, g + begin, momentum_buffer + begin, end - begin, step);
        else
            sgd_range(p + begin, g + begin, end - begin, step);
    });
}

template <class T>
void adam_update(T* p, const T* g, T* m, T* v, int64_t count, const AdamOptions& options) {
    const auto [lr, beta1, beta2, eps, weight_decay, decoupled, step] = options;
    const double correction1 = 1 - std::pow(beta1, double(step)), correction2 = 1 - std::pow(beta2, double(step));
    const Adam<T> scalars{T(lr / correction1), T(1 - beta1), T(beta2), T(1 - beta2), T(std::sqrt(correction2)), T(eps),
                          T(decoupled ? 0 : weight_decay), T(decoupled ? 1 - lr * weight_decay : 1)};
    parallel_for_ranges(count, GRAIN, [=](int64_t begin, int64_t end) {
        adam_range(p + begin, g + begin, m + begin, v + begin, end - begin, scalars);
    });
}

#define GPUCNN_INSTANTIATE(T) \
    template void sgd_update<T>(T*, const T*, T*, int64_t, const SgdOptions&); \
    template void adam_update<T>(T*, const T*, T*, T*, int64_t, const AdamOptions&);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
