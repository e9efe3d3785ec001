// Convolution where each group has one input channel, without border cases and with long rows; see conv2d_depthwise.cpp.
#pragma once

#include "conv2d.hpp"

namespace gpucnn {

inline bool is_depthwise(const ConvShape& shape) { return shape.C == shape.groups; }

template <class T>
void depthwise_forward(const T* x, const T* w, const T* bias, T* y, const ConvShape& shape);
template <class T>
void depthwise_backward_input(const T* gy, const T* w, T* gx, const ConvShape& shape);
template <class T>
void depthwise_backward_weight(const T* x, const T* gy, T* gw, const ConvShape& shape);

}  // namespace gpucnn
