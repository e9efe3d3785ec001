// Patches of images as columns of a matrix, and their sums back, for convolutions that are plain matrix products.
//
// im2col: columns (N,C,R,S,P,Q)[n,c,r,s,p,q] = x[n, c, p·stride + r·dilation − padding, …], 0 outside the image. x (N,C,H,W)
// is read by strides. col2im: x[n,c,h,w] = Σ columns[n,c,r,s,p,q] over the (r,s) and (p,q) that meet there, gathered in the
// order of (r,s). Outputs are contiguous and overwritten.
#include "conv2d.cuh"

// A thread's place is (plane, pixel); planes are the channels of all images.
struct Patches {
    int64 count;                                          // of threads with work
    unsigned by_pixels[3], by_row[3], by_channels[3];     // divisors: threads a plane, threads a row, channels an image
    unsigned by_stride_h[3], by_stride_w[3];
};

KERNEL(256, 6) im2col(const float* x, float* columns, ConvShape s, ImageStrides strides, Patches patches) {
    const int pixels = s.P * s.Q;
    for (int64 i = global_thread(); i < patches.count; i += global_threads()) {
        int pixel, q, c;
        const int plane = divide(i, patches.by_pixels, pixel), p = divide(pixel, patches.by_row, q);
        const int n = divide(plane, patches.by_channels, c);
        const float* image = x + n * strides.image + c * strides.channel;
        float* column = columns + plane * static_cast<int64>(s.R * s.S) * pixels + pixel;
        for (int r = 0; r < s.R; ++r) {
            const int h = p * s.stride_h - s.padding_h + r * s.dilation_h;
            for (int t = 0; t < s.S; ++t, column += pixels) {
                const int w = q * s.stride_w - s.padding_w + t * s.dilation_w;
                const bool inside = h >= 0 && h < s.H && w >= 0 && w < s.W;
                *column = inside ? image[h * strides.row + w * strides.column] : 0.0f;
            }
        }
    }
}

// The output position whose window has `position` (counted from the padding's edge) at a tap, or -1.
__device__ __forceinline__ int window_of(int position, const unsigned (&by_stride)[3], int windows) {
    if (position < 0) return -1;
    int rest;
    const int window = divide(position, by_stride, rest);
    return rest == 0 && window < windows ? window : -1;
}

KERNEL(256, 6) col2im(const float* columns, float* x, ConvShape s, Patches patches) {
    const int pixels = s.P * s.Q;
    for (int64 i = global_thread(); i < patches.count; i += global_threads()) {
        int pixel, w;
        const int plane = divide(i, patches.by_pixels, pixel), h = divide(pixel, patches.by_row, w);
        const float* column = columns + plane * static_cast<int64>(s.R * s.S) * pixels;
        float sum = 0.0f;
        for (int r = 0; r < s.R; ++r) {
            const int p = window_of(h + s.padding_h - r * s.dilation_h, patches.by_stride_h, s.P);
            for (int t = 0; t < s.S; ++t, column += pixels) {
                const int q = window_of(w + s.padding_w - t * s.dilation_w, patches.by_stride_w, s.Q);
                if (p >= 0 && q >= 0) sum += column[p * s.Q + q];
            }
        }
        x[i] = sum;
    }
}
