// 2-D cross-correlation, as every framework calls convolution:
//
//     y[n][k][p][q] = bias[k] + sum over c, r, s of w[k][c][r][s] * x[n][c'][p*stride_h + r*dilation_h - padding_h]
//                                                                        [q*stride_w + s*dilation_w - padding_w]
//
// x (N, C, H, W), w (K, C/groups, R, S), y (N, K, P, Q), all C-contiguous; x is zero outside the image. Filter k of group g
// (K/groups filters each) reads the group's channels c' = g*C/groups + c. Outputs and gradients are overwritten completely.
// Algorithms: im2col (packed blocks on the register tile), direct (a plain loop nest), fft, and winograd (3 x 3 filters only).
#pragma once

#include <array>
#include <cstdint>

namespace gpucnn {

using std::int64_t;

struct ConvShape {
    int64_t N, C, H, W, K, R, S, P, Q, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;

    int64_t group_channels() const { return C / groups; }
    int64_t group_filters() const { return K / groups; }
};

// Row of the image under tap `r` for output row `p` is p * step + offset(r); the same for columns.
inline int64_t tap_row(const ConvShape& shape, int64_t r) { return r * shape.dilation_h - shape.padding_h; }
inline int64_t tap_column(const ConvShape& shape, int64_t s) { return s * shape.dilation_w - shape.padding_w; }

// bias may be null.
template <class T>
void conv2d_forward_im2col(const T* x, const T* w, const T* bias, T* y, const ConvShape& shape);
template <class T>
void conv2d_backward_input_im2col(const T* gy, const T* w, T* gx, const ConvShape& shape);
template <class T>
void conv2d_backward_weight_im2col(const T* x, const T* gy, T* gw, const ConvShape& shape);

template <class T>
void conv2d_forward_direct(const T* x, const T* w, const T* bias, T* y, const ConvShape& shape);
template <class T>
void conv2d_backward_input_direct(const T* gy, const T* w, T* gx, const ConvShape& shape);
template <class T>
void conv2d_backward_weight_direct(const T* x, const T* gy, T* gw, const ConvShape& shape);

// Winograd's F(M x M, 3 x 3), M 2 or 4: kernel 3 x 3; stride, dilation and groups 1.
template <int M, class T>
void conv2d_forward_winograd(const T* x, const T* w, const T* bias, T* y, const ConvShape& shape);
template <int M, class T>
void conv2d_backward_input_winograd(const T* gy, const T* w, T* gx, const ConvShape& shape);
template <int M, class T>
void conv2d_backward_weight_winograd(const T* x, const T* gy, T* gw, const ConvShape& shape);

// Memory that its three passes take at most beyond their arrays.
template <int M>
int64_t conv2d_winograd_workspace_bytes(const ConvShape& shape, int64_t item_size);

// Through the Fourier transform of tiles: stride, dilation and groups 1.
template <class T>
void conv2d_forward_fft(const T* x, const T* w, const T* bias, T* y, const ConvShape& shape);
template <class T>
void conv2d_backward_input_fft(const T* gy, const T* w, T* gx, const ConvShape& shape);
template <class T>
void conv2d_backward_weight_fft(const T* x, const T* gy, T* gw, const ConvShape& shape);

// Memory that its three passes take at most beyond their arrays.
template <class T>
int64_t conv2d_fft_workspace_bytes(const ConvShape& shape);

// Memory that the three im2col passes take at most beyond their arrays, for elements of item_size bytes.
int64_t conv2d_im2col_workspace_bytes(const ConvShape& shape, int64_t item_size);

// gb[k] = sum over n, p, q of gy[n][k][p][q]
template <class T>
void conv2d_backward_bias(const T* gy, T* gb, int64_t images, int64_t filters, int64_t pixels);

}  // namespace gpucnn
