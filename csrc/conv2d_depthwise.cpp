// The direct algorithm where each group has one input channel: a sum has R * S terms, so what counts is to spend no time
// beside them. A plane of x is padded and split by the stride into phases (rows h and columns w with equal remainders). In
// its phase a tap meets the output pixels at one distance: y[p * width + q] += w[r][s] * phase[p * width + q + offset].
// With y laid out in rows of the same width, one loop runs over many rows and has no borders.
#include "conv2d_depthwise.hpp"

#include <vector>

#include "gemm.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

constexpr int64_t BLOCK = 2048;  // output values worked on at a time, so that they stay in the L1 cache

// The phases of one plane, one after the other, each `height` rows of `width`.
struct Phases {
    explicit Phases(const ConvShape& s)
        : shape(s),
          height(s.P + (s.R - 1) * s.dilation_h / s.stride_h),
          width(s.Q + (s.S - 1) * s.dilation_w / s.stride_w),
          block_rows(std::max<int64_t>(1, std::min(s.P, BLOCK / width))) {
        for (int64_t r = 0; r < s.R; ++r)
            for (int64_t c = 0; c < s.S; ++c) offsets.push_back(offset(r * s.dilation_h, c * s.dilation_w));
    }

    int64_t size() const { return shape.stride_h * shape.stride_w * height * width; }
    int64_t block_size(int64_t rows) const { return (rows - 1) * width + shape.Q; }
    // Of the pixel `row` rows and `column` columns from the padded image's first.
    int64_t offset(int64_t row, int64_t column) const {
        const int64_t phase = row % shape.stride_h * shape.stride_w + column % shape.stride_w;
        return (phase * height + row / shape.stride_h) * width + column / shape.stride_w;
    }

    const ConvShape& shape;
    const int64_t height, width, block_rows;
    std::vector<int64_t> offsets;  // of the pixels that the taps of output (0, 0) meet
};

// Calls body(phase row, columns j of it that lie in the image, row of the image, image column of j = 0) for each row.
template <class Body>
void each_row(const Phases& phases, const Body& body) {
    const ConvShape& shape = phases.shape;
    for (int64_t b = 0; b < shape.stride_w; ++b) {
        const int64_t first = b - shape.padding_w;
        const int64_t begin = first < 0 ? ceil_div(-first, shape.stride_w) : 0;
        const int64_t end = shape.W > first ? ceil_div(shape.W - first, shape.stride_w) : 0;
        const int64_t from = std::min(begin, phases.width), to = std::max(from, std::min(end, phases.width));
        for (int64_t a = 0; a < shape.stride_h; ++a)
            for (int64_t i = 0; i < phases.height; ++i) {
                const int64_t h = i * shape.stride_h + a - shape.padding_h;
                const Range inside = h < 0 || h >= shape.H ? Range{0, 0} : Range{from, to};
                body(((a * shape.stride_w + b) * phases.height + i) * phases.width, inside, h, first);
            }
    }
}

template <class T>
GPUCNN_CLONES __attribute__((flatten)) void split(const T* x, T* out, const Phases& phases) {
    const int64_t step = phases.shape.stride_w;
    each_row(phases, [&](int64_t place, Range inside, int64_t h, int64_t first) {
        T* const row = out + place;
        const T* const source = x + h * phases.shape.W + first;
        for (int64_t j = 0; j < inside.begin; ++j) row[j] = 0;
        if (step == 1)
            for (int64_t j = inside.begin; j < inside.end; ++j) row[j] = source[j];
        else
            for (int64_t j = inside.begin; j < inside.end; ++j) row[j] = source[j * step];
        for (int64_t j = inside.end; j < phases.width; ++j) row[j] = 0;
    });
}

// The way back; pixels that no phase holds are 0.
template <class T>
GPUCNN_CLONES __attribute__((flatten)) void join(const T* in, T* x, const Phases& phases) {
    const int64_t step = phases.shape.stride_w;
    std::fill(x, x + phases.shape.H * phases.shape.W, T{0});
    each_row(phases, [&](int64_t place, Range inside, int64_t h, int64_t first) {
        T* const target = x + h * phases.shape.W + first;
        for (int64_t j = inside.begin; j < inside.end; ++j) target[j * step] = in[place + j];
    });
}

template <class T>
GPUCNN_CLONES void add_product(T weight, const T* x, int64_t count, T* y) {
    for (int64_t i = 0; i < count; ++i) y[i] += weight * x[i];
}

template <class T>
GPUCNN_CLONES T dot(const T* x, const T* y, int64_t count) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += x[i] * y[i];
    return sum;
}

// Rows of gy at the phases' width, with zeros between them.
template <class T>
void widen(const T* gy, int64_t rows, T* wide, const Phases& phases) {
    const int64_t Q = phases.shape.Q;
    for (int64_t p = 0; p < rows; ++p) {
        std::copy(gy + p * Q, gy + (p + 1) * Q, wide + p * phases.width);
        if (p + 1 < rows) std::fill(wide + p * phases.width + Q, wide + (p + 1) * phases.width, T{0});
    }
}

// Calls body(first row, number of rows) for the blocks of the output's rows.
template <class Body>
void each_block(const Phases& phases, const Body& body) {
    for (int64_t p = 0; p < phases.shape.P; p += phases.block_rows)
        body(p, std::min(phases.block_rows, phases.shape.P - p));
}

template <class T>
void forward_plane(const T* split_x, const T* w, T bias, T* y, const Phases& phases) {
    const int64_t Q = phases.shape.Q, width = phases.width;
    T* const sums = scratch<T>(Slot::SUMS, phases.block_size(phases.block_rows));
    each_block(phases, [&](int64_t p, int64_t rows) {
        const int64_t count = phases.block_size(rows);
        std::fill(sums, sums + count, bias);
        for (size_t tap = 0; tap < phases.offsets.size(); ++tap)
            add_product(w[tap], split_x + p * width + phases.offsets[tap], count, sums);
        for (int64_t i = 0; i < rows; ++i) std::copy(sums + i * width, sums + i * width + Q, y + (p + i) * Q);
    });
}

template <class T>
void backward_input_plane(const T* gy, const T* w, T* split_gx, const Phases& phases) {
    T* const wide = scratch<T>(Slot::SUMS, phases.block_size(phases.block_rows));
    each_block(phases, [&](int64_t p, int64_t rows) {
        widen(gy + p * phases.shape.Q, rows, wide, phases);
        for (size_t tap = 0; tap < phases.offsets.size(); ++tap)
            add_product(w[tap], wide, phases.block_size(rows), split_gx + p * phases.width + phases.offsets[tap]);
    });
}

// Blocks are added up in double: with many images a sum in single precision would lose digits.
template <class T>
void backward_weight_plane(const T* split_x, const T* gy, double* sums, const Phases& phases) {
    T* const wide = scratch<T>(Slot::SUMS, phases.block_size(phases.block_rows));
    each_block(phases, [&](int64_t p, int64_t rows) {
        widen(gy + p * phases.shape.Q, rows, wide, phases);
        for (size_t tap = 0; tap < phases.offsets.size(); ++tap)
            sums[tap] += dot(wide, split_x + p * phases.width + phases.offsets[tap], phases.block_size(rows));
    });
}

}  // namespace

template <class T>
void depthwise_forward(const T* x, const T* w, const T* bias, T* y, const ConvShape& shape) {
    const Phases phases(shape);
    const int64_t filters = shape.group_filters(), taps = shape.R * shape.S;
    parallel_for(shape.N * shape.C, [&](int64_t plane) {
        const int64_t first = plane % shape.C * filters;
        T* const split_x = scratch<T>(Slot::BLOCK, phases.size());
        split(x + plane * shape.H * shape.W, split_x, phases);
        for (int64_t k = first; k < first + filters; ++k) {
            T* const out = y + (plane / shape.C * shape.K + k) * shape.P * shape.Q;
            forward_plane(split_x, w + k * taps, bias ? bias[k] : T{0}, out, phases);
        }
    });
}

template <class T>
void depthwise_backward_input(const T* gy, const T* w, T* gx, const ConvShape& shape) {
    const Phases phases(shape);
    const int64_t filters = shape.group_filters(), taps = shape.R * shape.S;
    parallel_for(shape.N * shape.C, [&](int64_t plane) {
        const int64_t first = plane % shape.C * filters;
        T* const split_gx = scratch<T>(Slot::BLOCK, phases.size());
        std::fill(split_gx, split_gx + phases.size(), T{0});
        for (int64_t k = first; k < first + filters; ++k)
            backward_input_plane(gy + (plane / shape.C * shape.K + k) * shape.P * shape.Q, w + k * taps, split_gx, phases);
        join(split_gx, gx + plane * shape.H * shape.W, phases);
    });
}

template <class T>
void depthwise_backward_weight(const T* x, const T* gy, T* gw, const ConvShape& shape) {
    const Phases phases(shape);
    const int64_t taps = shape.R * shape.S;
    parallel_for(shape.K, [&](int64_t k) {
        T* const split_x = scratch<T>(Slot::BLOCK, phases.size());
        double* const sums = scratch<double>(Slot::PARTIALS, taps);
        std::fill(sums, sums + taps, 0.0);
        for (int64_t n = 0; n < shape.N; ++n) {
            split(x + (n * shape.C + k / shape.group_filters()) * shape.H * shape.W, split_x, phases);
            backward_weight_plane(split_x, gy + (n * shape.K + k) * shape.P * shape.Q, sums, phases);
        }
        for (int64_t tap = 0; tap < taps; ++tap) gw[k * taps + tap] = static_cast<T>(sums[tap]);
    });
}

#define GPUCNN_INSTANTIATE(T)                                                                  \
    template void depthwise_forward<T>(const T*, const T*, const T*, T*, const ConvShape&);    \
    template void depthwise_backward_input<T>(const T*, const T*, T*, const ConvShape&);       \
    template void depthwise_backward_weight<T>(const T*, const T*, T*, const ConvShape&);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
