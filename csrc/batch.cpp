// Gathers one batch of images: choose, shift, mirror and normalise in one pass.
//
//   out[b, c, i, j] = v * scale[c] + shift[c],   v = images[indices[b], c, i + oy, column + ox], or fill outside it,
//   column = w - 1 - j where flips[b], else j;   (oy, ox) = offsets[b]
//
// images: (N, C, H, W) uint8; out: (B, C, h, w) float32, overwritten. Runs in the loader's threads, several at a time, so it
// uses no workers of its own; the GIL is released.
#include <algorithm>

#include "operations.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

using std::uint8_t;

// One row of out: values outside [begin, end) of the unmirrored row lie outside the image.
inline void gather_row(const uint8_t* row, float* out, int64_t begin, int64_t end, int64_t width, bool flip, float scale,
                       float shift, float outside) {
    std::fill(out, out + width, outside);
    if (flip)
        for (int64_t j = begin; j < end; ++j) out[width - 1 - j] = float(row[j]) * scale + shift;
    else
        for (int64_t j = begin; j < end; ++j) out[j] = float(row[j]) * scale + shift;
}

GPUCNN_CLONES void gather_image(const uint8_t* image, float* out, const Crop& g, const int64_t* offset, bool flip,
                                const float* scale, const float* shift, uint8_t fill) {
    // Beyond these limits nothing of the image is left, and the sums below could overflow.
    const int64_t oy = std::clamp(offset[0], -g.h, g.H), ox = std::clamp(offset[1], -g.w, g.W);
    const int64_t begin = std::clamp<int64_t>(-ox, 0, g.w), end = std::clamp<int64_t>(g.W - ox, begin, g.w);
    for (int64_t c = 0; c < g.C; ++c) {
        const float outside = float(fill) * scale[c] + shift[c];
        for (int64_t i = 0; i < g.h; ++i, out += g.w) {
            const int64_t y = i + oy;
            if (y < 0 || y >= g.H)
                std::fill(out, out + g.w, outside);
            else
                gather_row(image + (c * g.H + y) * g.W + ox, out, begin, end, g.w, flip, scale[c], shift[c], outside);
        }
    }
}

}  // namespace

void gather_batch(const uint8_t* images, const int64_t* indices, float* out, int64_t batch, const Crop& crop,
                  const int64_t* offsets, const uint8_t* flips, const float* scale, const float* shift, uint8_t fill) {
    for (int64_t b = 0; b < batch; ++b)
        gather_image(images + indices[b] * crop.C * crop.H * crop.W, out + b * crop.C * crop.h * crop.w, crop,
                     offsets + 2 * b, flips[b] != 0, scale, shift, fill);
}

}  // namespace gpucnn
