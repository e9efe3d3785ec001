// Winograd's convolution: M x M outputs of a 3 x 3 filter from (M + 2)^2 products instead of 9 M^2, after linear transforms of
// images, filters and outputs (Lavin and Gray, CVPR 2016, section 4). Here as stages over chunks of tiles:
//
//     U[e][k][c] = (G w Gt)[e]    V[e][c][t] = (Bt d B)[e]    Y[e] = U[e] @ V[e], (M + 2)^2 matrix products    y = At Y A
//
// where e is an element of a transformed tile and t counts the tiles. The gradient of the images is the forward pass on
// gradients of the outputs with turned filters and padding 2 - padding. That of the weights exchanges roles: a 3 x 3 "output"
// from "filters" of M x M output gradients, F(3 x 3, M x M), with products summed over all tiles.
#include <array>
#include <utility>

#include "conv2d.hpp"
#include "expect.hpp"
#include "gemm.hpp"
#include "operations.hpp"

namespace gpucnn {
namespace {

template <int R, int C>
struct Table {
    static constexpr int ROWS = R, COLUMNS = C;
    double value[R][C];
};

// The transforms, for M = 2 with the points 0, 1, -1 and infinity, for M = 4 with 0, +-5/8, +-3/2 and infinity: their
// powers are short binary fractions, and rounding errors are half of those with +-1, +-2.
template <int M>
struct Form;

template <>
struct Form<2> {
    static constexpr Table<4, 4> IMAGE{{{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}}};
    static constexpr Table<4, 3> FILTER{{{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}}};
    static constexpr Table<2, 4> OUTPUT{{{1, 1, 1, 0}, {0, 1, -1, 1}}};
    static constexpr Table<4, 2> OUTPUT_GRADIENT{{{1, 0}, {.5, .5}, {.5, -.5}, {0, 1}}};
    static constexpr Table<3, 4> FILTER_GRADIENT{{{1, 1, 1, 0}, {0, 1, -1, 0}, {0, 1, 1, 1}}};
};

template <>
struct Form<4> {
    static constexpr double a = 5. / 8, b = 3. / 2, p = a * a, q = b * b;
    static constexpr double g = 1 / (2 * p * (p - q)), h = 1 / (2 * q * (q - p));
    static constexpr Table<6, 6> IMAGE{{{p * q, 0, -p - q, 0, 1, 0},
                                        {0, -a * q, -q, a, 1, 0},
                                        {0, a * q, -q, -a, 1, 0},
                                        {0, -b * p, -p, b, 1, 0},
                                        {0, b * p, -p, -b, 1, 0},
                                        {0, p * q, 0, -p - q, 0, 1}}};
    static constexpr Table<6, 3> FILTER{
        {{1 / (p * q), 0, 0}, {g, g * a, g * p}, {g, -g * a, g * p}, {h, h * b, h * q}, {h, -h * b, h * q}, {0, 0, 1}}};
    static constexpr Table<4, 6> OUTPUT{{{1, 1, 1, 1, 1, 0},
                                         {0, a, -a, b, -b, 0},
                                         {0, p, p, q, q, 0},
                                         {0, a * p, -a * p, b * q, -b * q, 1}}};
    static constexpr Table<6, 4> OUTPUT_GRADIENT{{{1 / (p * q), 0, 0, 0},
                                                  {g, g * a, g * p, g * a * p},
                                                  {g, -g * a, g * p, -g * a * p},
                                                  {h, h * b, h * q, h * b * q},
                                                  {h, -h * b, h * q, -h * b * q},
                                                  {0, 0, 0, 1}}};
    static constexpr Table<3, 6> FILTER_GRADIENT{{{1, 1, 1, 1, 1, 0}, {0, a, -a, b, -b, 0}, {0, p, p, q, q, 1}}};
};

// ---- one transform of many tiles ----

constexpr int64_t LANES = 64;  // tiles transformed at a time; the innermost loops run over them
constexpr int TAPS = 9;

#define GPUCNN_INLINE __attribute__((always_inline)) inline

// sum + the terms of row ROW from COLUMN on; coefficients 0 and +-1 cost no multiplication.
template <const auto& TABLE, int ROW, int COLUMN, bool EMPTY, class T>
GPUCNN_INLINE T dot(const T* values, T sum) {
    using Shape = std::decay_t<decltype(TABLE)>;
    if constexpr (COLUMN == Shape::COLUMNS) {
        return sum;
    } else {
        constexpr double factor = TABLE.value[ROW][COLUMN];
        const T value = values[COLUMN];
        if constexpr (factor == 0)
            return dot<TABLE, ROW, COLUMN + 1, EMPTY>(values, sum);
        else if constexpr (EMPTY)
            return dot<TABLE, ROW, COLUMN + 1, false>(values, factor == 1 ? value : T(factor) * value);
        else
            return dot<TABLE, ROW, COLUMN + 1, false>(values, factor == 1    ? sum + value
                                                              : factor == -1 ? sum - value
                                                                             : sum + T(factor) * value);
    }
}

// out[i * out_stride + t] = sum over k of TABLE[i][k] * in[k * in_stride + t], t < count
template <const auto& TABLE, class T, std::size_t... ROW, std::size_t... COLUMN>
GPUCNN_INLINE void transform_axis(const T* __restrict in, int64_t in_stride, T* __restrict out, int64_t out_stride,
                                  int64_t count, std::index_sequence<ROW...>, std::index_sequence<COLUMN...>) {
#pragma GCC ivdep
    for (int64_t t = 0; t < count; ++t) {
        const T values[] = {in[COLUMN * in_stride + t]...};
        const T results[] = {dot<TABLE, ROW, 0, true>(values, T{0})...};
        ((out[ROW * out_stride + t] = results[ROW]), ...);
    }
}

// out[(i * ROWS + j) * out_stride + t] = sum over k, l of TABLE[i][k] * TABLE[j][l] * in[(k * COLUMNS + l) * in_stride + t]
template <const auto& TABLE, class T>
GPUCNN_CLONES void transform(const T* in, int64_t in_stride, T* out, int64_t out_stride, int64_t count) {
    using Shape = std::decay_t<decltype(TABLE)>;
    constexpr int ROWS = Shape::ROWS, COLUMNS = Shape::COLUMNS;
    constexpr std::make_index_sequence<ROWS> rows;
    constexpr std::make_index_sequence<COLUMNS> columns;
    alignas(64) T middle[ROWS * COLUMNS * LANES];
    for (int l = 0; l < COLUMNS; ++l)
        transform_axis<TABLE>(in + l * in_stride, COLUMNS * in_stride, middle + l * LANES, COLUMNS * LANES, count, rows,
                              columns);
    for (int i = 0; i < ROWS; ++i)
        transform_axis<TABLE>(middle + i * COLUMNS * LANES, LANES, out + i * ROWS * out_stride, out_stride, count, rows,
                              columns);
}

// ---- tiles of images ----

// One channel of a batch: its planes of H x W pixels lie image_stride apart.
template <class T>
struct Channel {
    T* first;
    int64_t image_stride, H, W;
};

// Tiles in reading order, image after image; tile (i, j) starts at pixel (i * M - padding_h, j * M - padding_w).
struct Grid {
    int64_t images, rows, columns, padding_h, padding_w;
    int64_t count() const { return images * rows * columns; }
};

// Calls body(image, tile row, tile column, run, done) for each run of tiles of [begin, begin + count) within one tile row.
template <class Body>
GPUCNN_INLINE void for_each_run(const Grid& grid, int64_t begin, int64_t count, const Body& body) {
    for (int64_t done = 0; done < count;) {
        const int64_t row = (begin + done) / grid.columns, column = (begin + done) % grid.columns;
        const int64_t run = std::min(grid.columns - column, count - done);
        body(row / grid.rows, row % grid.rows, column, run, done);
        done += run;
    }
}

// `length` pixels of a row from `column` on, zero outside the image: in place if all are inside, otherwise in `copy`.
template <class T>
GPUCNN_INLINE const T* line_of(const T* plane, int64_t H, int64_t W, int64_t row, int64_t column, int64_t length, T* copy) {
    const bool row_inside = row >= 0 && row < H;
    if (row_inside && column >= 0 && column + length <= W) return plane + row * W + column;
    std::fill(copy, copy + length, T{0});
    const int64_t first = std::max<int64_t>(column, 0), last = std::min(W, column + length);
    if (row_inside && first < last) std::copy(plane + row * W + first, plane + row * W + last, copy + first - column);
    return copy;
}

// out[(k * SIDE + l) * LANES + t] = pixel (k, l) of tile begin + t, t < count <= LANES
template <int M, int SIDE, class T>
GPUCNN_CLONES void gather_tiles(const Channel<const T>& channel, const Grid& grid, int64_t begin, int64_t count, T* out) {
    T copy[LANES * M + SIDE];
    for_each_run(grid, begin, count, [&](int64_t n, int64_t i, int64_t j, int64_t run, int64_t done) __attribute__((always_inline)) {
        const T* plane = channel.first + n * channel.image_stride;
        for (int k = 0; k < SIDE; ++k) {
            const T* line = line_of(plane, channel.H, channel.W, i * M + k - grid.padding_h, j * M - grid.padding_w,
                                    (run - 1) * M + SIDE, copy);
            for (int l = 0; l < SIDE; ++l) {
                T* __restrict lanes = out + (k * SIDE + l) * LANES + done;
                for (int64_t t = 0; t < run; ++t) lanes[t] = line[t * M + l];
            }
        }
    });
}

// Pixel (k, l) of tile begin + t becomes in[(k * M + l) * LANES + t] + bias, where it lies inside the image.
template <int M, class T>
GPUCNN_CLONES void scatter_tiles(const T* in, T bias, const Grid& grid, int64_t begin, int64_t count, const Channel<T>& channel) {
    for_each_run(grid, begin, count, [&](int64_t n, int64_t i, int64_t j, int64_t run, int64_t done) __attribute__((always_inline)) {
        for (int k = 0; k < M && i * M + k < channel.H; ++k) {
            T* __restrict line = channel.first + n * channel.image_stride + (i * M + k) * channel.W + j * M;
            const T* pixels = in + k * M * LANES + done;
            const int64_t left = channel.W - j * M, whole = std::min(run, left / M);
            for (int64_t t = 0; t < whole; ++t)
                for (int l = 0; l < M; ++l) line[t * M + l] = pixels[l * LANES + t] + bias;
            if (whole < run)
                for (int64_t l = 0; whole * M + l < left; ++l) line[whole * M + l] = pixels[l * LANES + whole] + bias;
        }
    });
}

// ---- stages ----

// Weight (k, c) has its taps at first + k * filter_stride + c * channel_stride, tap_stride apart.
template <class T>
struct Filters {
    const T* first;
    int64_t filter_stride, channel_stride, tap_stride;
};

// Calls body(row, begin, count) for all rows and for blocks of at most LANES columns of each.
template <class Body>
void for_each_block(int64_t rows, int64_t columns, const Body& body) {
    const int64_t blocks = ceil_div(columns, LANES);
    parallel_for(rows * blocks, [&](int64_t index) {
        const int64_t begin = index % blocks * LANES;
        body(index / blocks, begin, std::min(LANES, columns - begin));
    });
}

// Tiles of one chunk: together with their products they fill about this much memory, yet enough for an efficient product.
constexpr int64_t CHUNK_BYTES = 16 * 1024 * 1024, FEWEST_TILES = 512;

template <int M>
Grid grid_of(const ConvShape& shape) {
    return {shape.N, ceil_div(shape.P, M), ceil_div(shape.Q, M), shape.padding_h, shape.padding_w};
}

template <int M>
int64_t chunk_count(const ConvShape& shape, int64_t item_size) {
    const int64_t tile_bytes = (M + 2) * (M + 2) * (shape.C + shape.K) * item_size;
    return ceil_div(grid_of<M>(shape).count(), std::max(FEWEST_TILES, CHUNK_BYTES / tile_bytes));
}

// out[element][k][c], the transformed filters
template <int M, class T>
void transform_filters(const Filters<T>& filters, int64_t K, int64_t C, T* out) {
    for_each_block(K, C, [&](int64_t k, int64_t begin, int64_t count) {
        alignas(64) T taps[TAPS * LANES];
        for (int64_t c = 0; c < count; ++c) {
            const T* weight = filters.first + k * filters.filter_stride + (begin + c) * filters.channel_stride;
            for (int tap = 0; tap < TAPS; ++tap) taps[tap * LANES + c] = weight[tap * filters.tap_stride];
        }
        transform<Form<M>::FILTER>(taps, LANES, out + k * C + begin, K * C, count);
    });
}

// out[element][channel][tile], the transformed tiles of `range`; SIDE x SIDE pixels each
template <int M, int SIDE, const auto& TABLE, class T>
void transform_tiles(const T* images, int64_t channels, int64_t H, int64_t W, const Grid& grid, Range range, T* out) {
    for_each_block(channels, range.size(), [&](int64_t c, int64_t begin, int64_t count) {
        alignas(64) T pixels[SIDE * SIDE * LANES];
        const Channel<const T> channel{images + c * H * W, channels * H * W, H, W};
        gather_tiles<M, SIDE>(channel, grid, range.begin + begin, count, pixels);
        transform<TABLE>(pixels, LANES, out + c * range.size() + begin, channels * range.size(), count);
    });
}

// y, from products[element][k][tile]
template <int M, class T>
void transform_outputs(const T* products, const T* bias, const ConvShape& shape, const Grid& grid, Range range, T* y) {
    for_each_block(shape.K, range.size(), [&](int64_t k, int64_t begin, int64_t count) {
        alignas(64) T pixels[M * M * LANES];
        const Channel<T> channel{y + k * shape.P * shape.Q, shape.K * shape.P * shape.Q, shape.P, shape.Q};
        transform<Form<M>::OUTPUT>(products + k * range.size() + begin, shape.K * range.size(), pixels, LANES, count);
        scatter_tiles<M>(pixels, bias ? bias[k] : T{0}, grid, range.begin + begin, count, channel);
    });
}

// gw, from products[element][k][c]
template <int M, class T>
void transform_weight_gradients(const T* products, int64_t K, int64_t C, T* gw) {
    for_each_block(K, C, [&](int64_t k, int64_t begin, int64_t count) {
        alignas(64) T taps[TAPS * LANES];
        transform<Form<M>::FILTER_GRADIENT>(products + k * C + begin, K * C, taps, LANES, count);
        for (int64_t c = 0; c < count; ++c)
            for (int tap = 0; tap < TAPS; ++tap) gw[(k * C + begin + c) * TAPS + tap] = taps[tap * LANES + c];
    });
}

template <int M, class T>
void convolve(const T* x, const Filters<T>& filters, const T* bias, T* y, const ConvShape& shape) {
    constexpr int SIDE = M + 2, ELEMENTS = SIDE * SIDE;
    const Grid grid = grid_of<M>(shape);
    const int64_t C = shape.C, K = shape.K, chunks = chunk_count<M>(shape, sizeof(T));
    if (grid.count() == 0) return;
    const int64_t longest = part(grid.count(), chunks, 0, LANES).size();
    const auto weights = uninitialized<T>(ELEMENTS * K * C), tiles = uninitialized<T>(ELEMENTS * C * longest),
               products = uninitialized<T>(ELEMENTS * K * longest);
    transform_filters<M>(filters, K, C, weights.get());
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const Range range = part(grid.count(), chunks, chunk, LANES);
        const int64_t count = range.size();
        transform_tiles<M, SIDE, Form<M>::IMAGE>(x, C, shape.H, shape.W, grid, range, tiles.get());
        gemm<T>({{weights.get(), C, 1}, K * C}, {{tiles.get(), count, 1}, C * count}, products.get(), nullptr, ELEMENTS, K, C,
                count);
        transform_outputs<M>(products.get(), bias, shape, grid, range, y);
    }
}

void expect_shape(const ConvShape& shape) {
    const bool plain = shape.stride_h == 1 && shape.stride_w == 1 && shape.dilation_h == 1 && shape.dilation_w == 1;
    expect(shape.R == 3 && shape.S == 3 && plain && shape.groups == 1, "conv2d_winograd",
           "the kernel must be 3x3, stride, dilation and groups 1");
}

}  // namespace

template <int M, class T>
void conv2d_forward_winograd(const T* x, const T* w, const T* bias, T* y, const ConvShape& shape) {
    expect_shape(shape);
    convolve<M>(x, Filters<T>{w, shape.C * TAPS, TAPS, 1}, bias, y, shape);
}

template <int M, class T>
void conv2d_backward_input_winograd(const T* gy, const T* w, T* gx, const ConvShape& shape) {
    expect_shape(shape);
    ConvShape turned = shape;
    std::swap(turned.C, turned.K), std::swap(turned.H, turned.P), std::swap(turned.W, turned.Q);
    turned.padding_h = 2 - shape.padding_h, turned.padding_w = 2 - shape.padding_w;
    convolve<M>(gy, Filters<T>{w + TAPS - 1, TAPS, shape.C * TAPS, -1}, static_cast<const T*>(nullptr), gx, turned);
}

template <int M, class T>
void conv2d_backward_weight_winograd(const T* x, const T* gy, T* gw, const ConvShape& shape) {
    expect_shape(shape);
    constexpr int SIDE = M + 2, ELEMENTS = SIDE * SIDE;
    const Grid grid = grid_of<M>(shape);
    const Grid output_grid{grid.images, grid.rows, grid.columns, 0, 0};
    const int64_t C = shape.C, K = shape.K, size = ELEMENTS * K * C, chunks = chunk_count<M>(shape, sizeof(T));
    const int64_t longest = chunks ? part(grid.count(), chunks, 0, LANES).size() : 0;
    const auto sums = uninitialized<T>(size), products = uninitialized<T>(chunks > 1 ? size : 0),
               tiles = uninitialized<T>(ELEMENTS * C * longest), gradients = uninitialized<T>(ELEMENTS * K * longest);
    if (chunks == 0) std::fill(sums.get(), sums.get() + size, T{0});
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const Range range = part(grid.count(), chunks, chunk, LANES);
        const int64_t count = range.size();
        transform_tiles<M, SIDE, Form<M>::IMAGE>(x, C, shape.H, shape.W, grid, range, tiles.get());
        transform_tiles<M, M, Form<M>::OUTPUT_GRADIENT>(gy, K, shape.P, shape.Q, output_grid, range, gradients.get());
        T* const out = chunk == 0 ? sums.get() : products.get();
        gemm<T>({{gradients.get(), count, 1}, K * count}, {{tiles.get(), 1, count}, C * count}, out, nullptr, ELEMENTS, K,
                count, C);
        if (chunk > 0)
            parallel_for_ranges(size, GRAIN, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) sums[i] += products[i];
            });
    }
    transform_weight_gradients<M>(sums.get(), K, C, gw);
}

template <int M>
int64_t conv2d_winograd_workspace_bytes(const ConvShape& shape, int64_t item_size) {
    constexpr int ELEMENTS = (M + 2) * (M + 2);
    const auto tiles = [&](const ConvShape& cut) {
        const int64_t chunks = chunk_count<M>(cut, item_size);
        return chunks ? part(grid_of<M>(cut).count(), chunks, 0, LANES).size() : 0;
    };
    ConvShape turned = shape;
    std::swap(turned.C, turned.K), std::swap(turned.H, turned.P), std::swap(turned.W, turned.Q);
    const int64_t most = std::max(tiles(shape), tiles(turned));
    return ELEMENTS * item_size * (2 * shape.K * shape.C + (shape.C + shape.K) * most);
}

#define GPUCNN_INSTANTIATE(M, T) \
    template void conv2d_forward_winograd<M, T>(const T*, const T*, const T*, T*, const ConvShape&); \
    template void conv2d_backward_input_winograd<M, T>(const T*, const T*, T*, const ConvShape&); \
    template void conv2d_backward_weight_winograd<M, T>(const T*, const T*, T*, const ConvShape&);
GPUCNN_INSTANTIATE(2, float)
GPUCNN_INSTANTIATE(2, double)
GPUCNN_INSTANTIATE(4, float)
GPUCNN_INSTANTIATE(4, double)
template int64_t conv2d_winograd_workspace_bytes<2>(const ConvShape&, int64_t);
template int64_t conv2d_winograd_workspace_bytes<4>(const ConvShape&, int64_t);

}  // namespace gpucnn
