// Convolution as matrix products with the im2col matrix, block by block; see conv2d.hpp for the maths.
//
//     forward          y  (K, pixels)  = w (K, C*R*S) @ columns(x) (C*R*S, pixels)
//     backward input   gx (C, pixels)  = w' (C, K*taps) @ columns(gy) (K*taps, pixels), once per phase of the stride
//     backward weight  gw'(C*R*S, K)   = columns(x) (C*R*S, pixels) @ gy' (pixels, K)
//
// pixels are those of all images, so that small images share a block. The gradient by the input of a convolution with stride
// (sh, sw) falls into sh * sw phases: input pixels (a + sh*i, b + sw*j) meet only the taps with (a + padding - r*dilation)
// divisible by sh (and so for columns), each at a constant offset of gy. So it is again a convolution with step 1: nothing is
// scattered, and no product is with a zero of the stride.
#include <vector>

#include "conv2d.hpp"
#include "conv2d_shifted.hpp"
#include "im2col.hpp"

namespace gpucnn {
namespace {

// Filters as the left operand: row-major, read as they lie.
template <class T>
struct FilterRows {
    const T* w;
    int64_t depth;

    void pack(int64_t row, int64_t rows, int64_t k, int64_t count, T* out) const {
        for (int64_t i = 0; i < rows; ++i)
            std::memcpy(out + i * A_STRIDE, w + (row + i) * depth + k, count * sizeof(T));
    }
};

template <class T>
struct ColumnsRight {
    const ColumnMatrix<T>& matrix;

    void pack(int64_t k, int64_t depth, int64_t column, int64_t columns, T* out, int64_t stride) const {
        matrix.copy(k, depth, column, columns, out, stride);
    }
};

// A grid of pixels (rows x columns) in each plane of the output; its rows are `pitch` apart, its columns `step`.
template <class T>
struct PixelGrid {
    T* data;
    int64_t image_stride, row_stride;  // row_stride: from one plane (row of the product) to the next
    int64_t rows, columns, pitch, step;

    Run<T> run(int64_t pixel, int64_t count) const {
        const int64_t image = pixel / (rows * columns), in_image = pixel % (rows * columns);
        T* const plane = data + image * image_stride;
        if (step == 1 && pitch == columns) return {plane + in_image, std::min(count, rows * columns - in_image), 1};
        const int64_t row = in_image / columns, column = in_image % columns;
        return {plane + row * pitch + column * step, std::min(count, columns - column), step};
    }
};

// out = w @ columns (+ bias) for every group; group g starts at g times the operands' group strides.
template <class T>
struct GroupedProduct {
    int64_t groups, images;
    FilterRows<T> filters;  // (groups * filters_per_group, depth)
    int64_t filters_per_group;
    const T* bias;
    ColumnMatrix<T> columns;
    int64_t source_group_stride;
    PixelGrid<T> grid;

    void run() const {
        const Blocks blocks =
            cut_blocks<T>(filters_per_group, images * grid.rows * grid.columns, filters.depth, groups);
        parallel_for(groups * blocks.count(),
                     [&](int64_t task) { run_block(task / blocks.count(), blocks, task % blocks.count()); });
    }

    void run_block(int64_t group, const Blocks& blocks, int64_t index) const {
        const int64_t first_filter = group * filters_per_group;
        ColumnMatrix<T> source = columns;
        source.source += group * source_group_stride;
        PixelGrid<T> out = grid;
        out.data += first_filter * grid.row_stride;
        multiply_block<T>(blocks.row_range(index), blocks.column_range(index), filters.depth,
                          FilterRows<T>{filters.w + first_filter * filters.depth, filters.depth}, ColumnsRight<T>{source},
                          out, bias ? bias + first_filter : nullptr);
    }
};

std::vector<Tap> forward_taps(const ConvShape& shape) {
    std::vector<Tap> taps;
    for (int64_t r = 0; r < shape.R; ++r)
        for (int64_t s = 0; s < shape.S; ++s) taps.push_back({tap_row(shape, r), tap_column(shape, s)});
    return taps;
}

template <class T>
ColumnMatrix<T> forward_columns(const T* x, const std::vector<Tap>& taps, const ConvShape& shape) {
    return {x, shape.C * shape.H * shape.W, shape.H, shape.W, shape.P, shape.Q, shape.stride_h, shape.stride_w,
            taps.data(), static_cast<int64_t>(taps.size())};
}

// Input pixels (row + stride_h * i, column + stride_w * j): the taps they meet, where they lie in gy, and the filters with
// only these taps, turned into (C, K/groups * taps): row c of group g holds w[k][c][t] for the group's k and the phase's t.
struct Phase {
    int64_t row, column;
    std::vector<Tap> taps;
    std::vector<int64_t> weight_taps;  // r * S + s
};

Phase make_phase(int64_t row, int64_t column, const ConvShape& shape) {
    Phase phase{row, column, {}, {}};
    for (int64_t r = 0; r < shape.R; ++r)
        for (int64_t s = 0; s < shape.S; ++s) {
            const int64_t from_row = row - tap_row(shape, r), from_column = column - tap_column(shape, s);
            if (from_row % shape.stride_h != 0 || from_column % shape.stride_w != 0) continue;
            phase.taps.push_back({from_row / shape.stride_h, from_column / shape.stride_w});
            phase.weight_taps.push_back(r * shape.S + s);
        }
    return phase;
}

template <class T>
void turn_filters(const T* w, const Phase& phase, const ConvShape& shape, T* turned) {
    const int64_t taps = phase.taps.size(), all_taps = shape.R * shape.S;
    const int64_t filters = shape.group_filters(), channels = shape.group_channels();
    parallel_for(shape.C, [&](int64_t c) {
        const T* from = w + (c / channels * filters * channels + c % channels) * all_taps;
        T* to = turned + c * filters * taps;
        for (int64_t k = 0; k < filters; ++k, from += channels * all_taps)
            for (int64_t t = 0; t < taps; ++t) *to++ = from[phase.weight_taps[t]];
    });
}

template <class T>
void backward_input_phase(const T* gy, const T* w, T* gx, const Phase& phase, const ConvShape& shape) {
    const int64_t taps = phase.taps.size(), depth = shape.group_filters() * taps;
    const int64_t plane = shape.H * shape.W, out_plane = shape.P * shape.Q;
    T* const turned = scratch<T>(Slot::WEIGHTS, shape.C * depth);
    turn_filters(w, phase, shape, turned);
    const PixelGrid<T> grid{gx + phase.row * shape.W + phase.column, shape.C * plane, plane,
                            ceil_div(shape.H - phase.row, shape.stride_h), ceil_div(shape.W - phase.column, shape.stride_w),
                            shape.stride_h * shape.W, shape.stride_w};
    const ColumnMatrix<T> columns{gy, shape.K * out_plane, shape.P, shape.Q, grid.rows, grid.columns, 1, 1,
                                  phase.taps.data(), taps};
    GroupedProduct<T>{shape.groups, shape.N, {turned, depth}, shape.group_channels(), nullptr, columns,
                      shape.group_filters() * out_plane, grid}
        .run();
}

// The im2col matrix as the left operand: its rows lie along the pixels, over which the gradient sums.
template <class T>
struct ColumnsLeft {
    const ColumnMatrix<T>& matrix;
    int64_t first_pixel;

    void pack(int64_t row, int64_t rows, int64_t k, int64_t depth, T* out) const {
        matrix.copy(row, rows, first_pixel + k, depth, out, A_STRIDE);
    }
};

// gy turned: (pixels, filters), from planes gy[n][k].
template <class T>
struct TurnedGradient {
    const T* gy;
    int64_t image_stride, pixels, first_pixel;

    void pack(int64_t k, int64_t depth, int64_t column, int64_t columns, T* out, int64_t stride) const {
        for (int64_t done = 0; done < depth;) {
            const int64_t pixel = first_pixel + k + done, in_image = pixel % pixels;
            const int64_t count = std::min(depth - done, pixels - in_image);
            const T* in = gy + pixel / pixels * image_stride + column * pixels + in_image;
            best_tile<T>().transpose(columns, count, in, pixels, out + done * stride, stride);
            done += count;
        }
    }
};

// One thread's sums: a block of the product, from (first_row, first_column).
template <class T>
struct LocalSums {
    T* data;
    int64_t first_row, first_column, row_stride;

    Run<T> run(int64_t column, int64_t count) const {
        return {data + (column - first_column) - first_row * row_stride, count, 1};
    }
};

// How the sum over all pixels is cut. The shape alone decides, so that the order of the sum is the same for any number of
// threads: pixels are cut into chunks (added up in order at the end) only where gw is too small to be cut into enough tasks.
struct WeightBlocks {
    int64_t chunks, pixels;
    Blocks blocks;  // of gw' (C/groups * R * S, K/groups)
    int64_t groups;

    int64_t tasks() const { return groups * chunks * blocks.count(); }
};

constexpr int64_t MOST_SUMS = 128 * 1024;  // elements of gw that one thread adds up at a time

WeightBlocks cut_weight_blocks(const ConvShape& shape) {
    constexpr int64_t TASKS = 16, FEWEST_PIXELS = 4 * MAX_DEPTH, MOST_COLUMNS = 512;
    const int64_t rows = shape.group_channels() * shape.R * shape.S, columns = shape.group_filters();
    const int64_t column_parts = ceil_div(columns, MOST_COLUMNS);
    const int64_t row_parts = ceil_div(rows, MOST_SUMS / std::min(columns, MOST_COLUMNS));
    const Blocks blocks{rows, columns, row_parts, column_parts};
    const int64_t pixels = shape.N * shape.P * shape.Q;
    const int64_t chunks = std::min(ceil_div(TASKS, blocks.count() * shape.groups), pixels / FEWEST_PIXELS);
    return {std::max<int64_t>(1, chunks), pixels, blocks, shape.groups};
}

// Task: one chunk of the pixels, one block of one group's gw. `partials` is (chunks, K, C/groups * R * S).
template <class T>
void backward_weight_block(const ColumnMatrix<T>& columns, const T* gy, T* partials, const WeightBlocks& cut, int64_t task,
                           const ConvShape& shape) {
    const int64_t block = task % cut.blocks.count(), rest = task / cut.blocks.count();
    const int64_t chunk = rest % cut.chunks, first_filter = rest / cut.chunks * shape.group_filters();
    const int64_t group = rest / cut.chunks, depth = cut.blocks.rows;
    const Range rows = cut.blocks.row_range(block), filters = cut.blocks.column_range(block);
    const Range pixels = part(cut.pixels, cut.chunks, chunk);
    ColumnMatrix<T> source = columns;
    source.source += group * shape.group_channels() * shape.H * shape.W;
    const int64_t out_plane = shape.P * shape.Q, stride = block_stride<T>(filters.size());
    T* const sums = scratch<T>(Slot::SUMS, rows.size() * stride);
    multiply_block<T>(rows, filters, pixels.size(), ColumnsLeft<T>{source, pixels.begin},
                      TurnedGradient<T>{gy + first_filter * out_plane, shape.K * out_plane, out_plane, pixels.begin},
                      LocalSums<T>{sums, rows.begin, filters.begin, stride});
    T* const out = partials + (chunk * shape.K + first_filter + filters.begin) * depth + rows.begin;
    best_tile<T>().transpose(rows.size(), filters.size(), sums, stride, out, depth);
}

}  // namespace

template <class T>
void conv2d_forward_im2col(const T* x, const T* w, const T* bias, T* y, const ConvShape& shape) {
    if (shifted_forward_wins<T>(shape)) return conv2d_forward_shifted(x, w, bias, y, shape);
    const std::vector<Tap> taps = forward_taps(shape);
    const int64_t depth = shape.group_channels() * shape.R * shape.S, out_plane = shape.P * shape.Q;
    const PixelGrid<T> grid{y, shape.K * out_plane, out_plane, shape.P, shape.Q, shape.Q, 1};
    GroupedProduct<T>{shape.groups, shape.N, {w, depth}, shape.group_filters(), bias, forward_columns(x, taps, shape),
                      shape.group_channels() * shape.H * shape.W, grid}
        .run();
}

template <class T>
void conv2d_backward_input_im2col(const T* gy, const T* w, T* gx, const ConvShape& shape) {
    if (shifted_backward_input_wins<T>(shape)) return conv2d_backward_input_shifted(gy, w, gx, shape);
    for (int64_t row = 0; row < std::min(shape.stride_h, shape.H); ++row)
        for (int64_t column = 0; column < std::min(shape.stride_w, shape.W); ++column)
            backward_input_phase(gy, w, gx, make_phase(row, column, shape), shape);
}

template <class T>
void conv2d_backward_weight_im2col(const T* x, const T* gy, T* gw, const ConvShape& shape) {
    if (shifted_backward_weight_wins<T>(shape)) return conv2d_backward_weight_shifted(x, gy, gw, shape);
    const std::vector<Tap> taps = forward_taps(shape);
    const ColumnMatrix<T> columns = forward_columns(x, taps, shape);
    const WeightBlocks cut = cut_weight_blocks(shape);
    const int64_t size = shape.K * cut.blocks.rows;
    T* const partials = cut.chunks == 1 ? gw : scratch<T>(Slot::PARTIALS, cut.chunks * size);
    parallel_for(cut.tasks(), [&](int64_t task) { backward_weight_block(columns, gy, partials, cut, task, shape); });
    if (cut.chunks > 1) add_partials(partials, cut.chunks, size, gw);
}

int64_t conv2d_im2col_workspace_bytes(const ConvShape& shape, int64_t item_size) {
    const int64_t weights = shape.K * shape.group_channels() * shape.R * shape.S;
    const int64_t partials = cut_weight_blocks(shape).chunks * weights;
    return num_threads() * (BLOCK_BYTES + MOST_SUMS * item_size) + (weights + partials) * item_size;
}

#define GPUCNN_INSTANTIATE(T)                                                                         \
    template void conv2d_forward_im2col<T>(const T*, const T*, const T*, T*, const ConvShape&);       \
    template void conv2d_backward_input_im2col<T>(const T*, const T*, T*, const ConvShape&);          \
    template void conv2d_backward_weight_im2col<T>(const T*, const T*, T*, const ConvShape&);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
