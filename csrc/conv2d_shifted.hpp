// Convolution of small images with stride 1: the im2col matrix is addressed, not copied.
//
// In an image padded with zeros and stored with its rows end to end, the pixels that tap (r, s) meets, for all output
// pixels, are the whole image shifted by r * dilation_h * pitch + s * dilation_w. So every row of the im2col matrix is a run
// of the padded image, and a register tile can take it from there. A run also covers the S - 1 columns at the end of each row
// that are no output pixels; their results are dropped, which costs pitch / Q more products and saves all copies. That wins
// where there are few filters to share a copied block with.
#pragma once

#include "conv2d.hpp"

namespace gpucnn {

// Whether these functions compute `shape`, and better than blocks of a copied matrix; integers alone decide.
template <class T>
bool shifted_forward_wins(const ConvShape& shape);
template <class T>
bool shifted_backward_input_wins(const ConvShape& shape);
template <class T>
bool shifted_backward_weight_wins(const ConvShape& shape);

template <class T>
void conv2d_forward_shifted(const T* x, const T* w, const T* bias, T* y, const ConvShape& shape);
template <class T>
void conv2d_backward_input_shifted(const T* gy, const T* w, T* gx, const ConvShape& shape);
template <class T>
void conv2d_backward_weight_shifted(const T* x, const T* gy, T* gw, const ConvShape& shape);

}  // namespace gpucnn
