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
#include <optional>

#include <pybind11/stl.h>

#include "array.hpp"
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
void sgd_update(Array<T> p, const Array<T>& g, std::optional<Array<T>> momentum_buffer, double lr, double momentum,
                double dampening, bool nesterov, double weight_decay, bool first) {
    expect_same_shape(p, g, "sgd_update", "g");
    expect(momentum_buffer.has_value() == (momentum != 0), "sgd_update",
           "momentum_buffer must be an array if momentum is not 0, and None if it is");
    if (momentum_buffer) expect_same_shape(p, *momentum_buffer, "sgd_update", "momentum_buffer");
    T* parameter = p.mutable_data();
    const T* gradient = g.data();
    T* buffer = momentum_buffer ? momentum_buffer->mutable_data() : nullptr;
    const int64_t count = p.size();
    const Sgd<T> step{T(lr), T(momentum), T(1 - dampening), T(weight_decay), nesterov, first};
    py::gil_scoped_release released;
    parallel_for_ranges(count, GRAIN, [=](int64_t begin, int64_t end) {
        if (buffer)
            sgd_momentum_range(parameter + begin, gradient + begin, buffer + begin, end - begin, step);
        else
            sgd_range(parameter + begin, gradient + begin, end - begin, step);
    });
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

template <class T>
void adam_update(Array<T> p, const Array<T>& g, Array<T> m, Array<T> v, double lr, double beta1, double beta2,
                 double eps, double weight_decay, bool decoupled, int64_t step) {
    expect_same_shape(p, g, "adam_update", "g");
    expect_same_shape(p, m, "adam_update", "m");
    expect_same_shape(p, v, "adam_update", "v");
    expect(step >= 1, "adam_update", "step counts from 1");
    T *parameter = p.mutable_data(), *mean = m.mutable_data(), *square = v.mutable_data();
    const T* gradient = g.data();
    const int64_t count = p.size();
    const double correction1 = 1 - std::pow(beta1, double(step)), correction2 = 1 - std::pow(beta2, double(step));
    const Adam<T> scalars{T(lr / correction1), T(1 - beta1), T(beta2), T(1 - beta2), T(std::sqrt(correction2)), T(eps),
                          T(decoupled ? 0 : weight_decay), T(decoupled ? 1 - lr * weight_decay : 1)};
    py::gil_scoped_release released;
    parallel_for_ranges(count, GRAIN, [=](int64_t begin, int64_t end) {
        adam_range(parameter + begin, gradient + begin, mean + begin, square + begin, end - begin, scalars);
    });
}

template <class T>
void define(py::module_& m) {
    m.def("sgd_update", &sgd_update<T>, py::arg("p").noconvert(), py::arg("g").noconvert(),
          py::arg("momentum_buffer").noconvert(), py::arg("lr"), py::arg("momentum"), py::arg("dampening"),
          py::arg("nesterov"), py::arg("weight_decay"), py::arg("first"));
    m.def("adam_update", &adam_update<T>, py::arg("p").noconvert(), py::arg("g").noconvert(), py::arg("m").noconvert(),
          py::arg("v").noconvert(), py::arg("lr"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"),
          py::arg("weight_decay"), py::arg("decoupled"), py::arg("step"));
}

}  // namespace

void register_update(py::module_& m) {
    define<float>(m);
    define<double>(m);
}

}  // namespace gpucnn
