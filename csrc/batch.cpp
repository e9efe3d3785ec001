// Gathers one batch of images: choose, shift, mirror and normalise in one pass.
//
//   out[b, c, i, j] = v * scale[c] + shift[c],   v = images[indices[b], c, i + oy, column + ox], or fill outside it,
//   column = w - 1 - j where flips[b], else j;   (oy, ox) = offsets[b]
//
// images: (N, C, H, W) uint8; out: (B, C, h, w) float32, overwritten. Runs in the loader's threads, several at a time, so it
// uses no workers of its own; the GIL is released.
#include <algorithm>

#include "array.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

using std::uint8_t;

struct Geometry {
    int64_t C, H, W, h, w;
};

// One row of out: values outside [begin, end) of the unmirrored row lie outside the image.
inline void gather_row(const uint8_t* row, float* out, int64_t begin, int64_t end, int64_t width, bool flip, float scale,
                       float shift, float outside) {
    std::fill(out, out + width, outside);
    if (flip)
        for (int64_t j = begin; j < end; ++j) out[width - 1 - j] = float(row[j]) * scale + shift;
    else
        for (int64_t j = begin; j < end; ++j) out[j] = float(row[j]) * scale + shift;
}

GPUCNN_CLONES void gather_image(const uint8_t* image, float* out, Geometry g, const int64_t* offset, bool flip,
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

void gather_batch(const Array<uint8_t>& images, const Array<int64_t>& indices, Array<float> out,
                  const Array<int64_t>& offsets, const Array<uint8_t>& flips, const Array<float>& scale,
                  const Array<float>& shift, uint8_t fill) {
    const char* name = "gather_batch";
    expect(images.ndim() == 4 && out.ndim() == 4, name, "images and out must be (N, C, H, W)");
    const int64_t N = images.shape(0), B = out.shape(0);
    const Geometry g{images.shape(1), images.shape(2), images.shape(3), out.shape(2), out.shape(3)};
    expect_shape(out, {B, g.C, g.h, g.w}, name, "out");
    expect_shape(indices, {B}, name, "indices");
    expect_shape(offsets, {B, 2}, name, "offsets");
    expect_shape(flips, {B}, name, "flips");
    expect_shape(scale, {g.C}, name, "scale");
    expect_shape(shift, {g.C}, name, "shift");
    const int64_t* chosen = indices.data();
    expect(std::all_of(chosen, chosen + B, [N](int64_t index) { return index >= 0 && index < N; }), name,
           "an index lies outside the images");
    const uint8_t *from = images.data(), *mirrored = flips.data();
    const int64_t* offset = offsets.data();
    const float *scales = scale.data(), *shifts = shift.data();
    float* to = out.mutable_data();
    py::gil_scoped_release released;
    for (int64_t b = 0; b < B; ++b)
        gather_image(from + chosen[b] * g.C * g.H * g.W, to + b * g.C * g.h * g.w, g, offset + 2 * b, mirrored[b] != 0,
                     scales, shifts, fill);
}

}  // namespace

void register_batch(py::module_& m) {
    m.def("gather_batch", &gather_batch, py::arg("images").noconvert(), py::arg("indices").noconvert(),
          py::arg("out").noconvert(), py::arg("offsets").noconvert(), py::arg("flips").noconvert(),
          py::arg("scale").noconvert(), py::arg("shift").noconvert(), py::arg("fill"));
}

}  // namespace gpucnn
