// Convolution through the Fourier transform (Mathieu et al., ICLR 2014), on tiles of the images, by overlap and save:
//
//     X[f][c][t] = F(tile t of x)[f]    W[f][k][c] = F(w)[f]    Y[f][k][t] = sum over c of conj(W)[f] X[f]    y = F^-1(Y)
//
// where f is a frequency and t counts the tiles. A tile is as large as the transform; in the circular correlation with a
// kernel of R x S, only the first (height - R + 1) x (width - S + 1) results do not wrap round, and tiles start so far apart.
// Frequencies are outermost, so the sum is a batch of complex matrix products. The gradient of the images is the forward pass
// on gradients of the outputs with turned filters and padding R - 1 - padding. That of the weights correlates tiles of the
// images with what falls on them of the gradients of the outputs, and sums the products over all tiles.
#include <utility>

#include "conv2d.hpp"
#include "expect.hpp"
#include "fft.hpp"
#include "gemm.hpp"

namespace gpucnn {
namespace {

// ---- tiles ----

// Transforms of height x width; real input, so width / 2 + 1 frequencies along rows.
template <class T>
struct Plan {
    Fft<T> rows, columns;

    int64_t width() const { return rows.length; }
    int64_t height() const { return columns.length; }
    int64_t half() const { return width() / 2 + 1; }
    int64_t frequencies() const { return height() * half(); }
};

// Planes of images or filters, and windows of them: the tile (i, j) of a plane is what lies in extent_h x extent_w pixels from
// (i * step_h - padding_h, j * step_w - padding_w) on, zero outside the plane.
template <class T>
struct Tiles {
    T* first;  // pixel (0, 0) of channel 0 of image 0
    int64_t channels, H, W, row_stride, column_stride;
    int64_t rows, columns, step_h, step_w, padding_h, padding_w, extent_h, extent_w;
    bool channels_inside;  // the order of the tiles that are transformed: [tile][channel], otherwise [channel][tile]
    Range range;           // of tiles, in reading order, image after image

    int64_t count() const { return channels * range.size(); }
};

template <class T>
struct Window {
    T* plane;
    int64_t channel, row, column;
};

template <class T>
Window<T> window(const Tiles<T>& tiles, int64_t index) {
    const int64_t inside = tiles.channels_inside ? tiles.channels : tiles.range.size();
    const int64_t channel = tiles.channels_inside ? index % inside : index / inside;
    const int64_t tile = tiles.range.begin + (tiles.channels_inside ? index / inside : index % inside);
    const int64_t row = tile / tiles.columns, image = row / tiles.rows;
    return {tiles.first + (image * tiles.channels + channel) * tiles.H * tiles.W, channel,
            row % tiles.rows * tiles.step_h - tiles.padding_h, tile % tiles.columns * tiles.step_w - tiles.padding_w};
}

// Row `row` of a window, to `out` where it lies in the plane.
template <class T>
void load_line(const Tiles<const T>& tiles, const Window<const T>& window, int64_t row, T* out) {
    row += window.row;
    if (row < 0 || row >= tiles.H) return;
    const T* in = window.plane + row * tiles.row_stride + window.column * tiles.column_stride;
    const int64_t begin = std::max<int64_t>(0, -window.column), end = std::min(tiles.extent_w, tiles.W - window.column);
    if (tiles.column_stride == 1 && begin < end)
        std::copy(in + begin, in + end, out + begin);
    else
        for (int64_t j = begin; j < end; ++j) out[j] = in[j * tiles.column_stride];
}

// Row `row` of a window of results: in * scale + bias, where it lies in the plane.
template <class T>
void store_line(const Tiles<T>& tiles, const Window<T>& window, int64_t row, const T* in, T scale, T bias) {
    row += window.row;
    if (row >= tiles.H) return;
    T* const out = window.plane + row * tiles.row_stride + window.column;
    const int64_t end = std::min(tiles.extent_w, tiles.W - window.column);
    for (int64_t j = 0; j < end; ++j) out[j] = in[j] * scale + bias;
}

// Memory of one block of LANES tiles: their transforms, one complex line, and one line of each tile.
template <class T>
struct Block {
    T *transforms, *line, *pixels;
};

template <class T>
int64_t block_size(const Plan<T>& plan) {
    const int64_t rows = std::max<int64_t>(2, plan.height());  // rows come in pairs
    return (rows * plan.half() + plan.width()) * NUMBER + plan.width() * LANES;
}

template <class T>
Block<T> make_block(const Plan<T>& plan) {
    T* const memory = scratch<T>(Slot::BLOCK, block_size(plan));
    T* const line = memory + std::max<int64_t>(2, plan.height()) * plan.half() * NUMBER;
    return {memory, line, line + plan.width() * NUMBER};
}

// block.line = rows `row` + i rows `row` + 1 of the windows' pixels
template <class T>
void load_two_rows(const Tiles<const T>& tiles, const Window<const T>* windows, int64_t count, int64_t row, int64_t width,
                   const Block<T>& block) {
    for (int64_t part = 0; part < 2; ++part) {
        std::fill(block.pixels, block.pixels + width * LANES, T{0});
        for (int64_t lane = 0; lane < count && row + part < tiles.extent_h; ++lane)
            load_line(tiles, windows[lane], row + part, block.pixels + lane * width);
        best_tile<T>().transpose(LANES, width, block.pixels, width, block.line + part * LANES, NUMBER);
    }
}

// spectra[frequency][real, imaginary][tile]: the transforms of tiles [begin, begin + count), count <= LANES
template <class T>
void transform_block(const Tiles<const T>& tiles, int64_t begin, int64_t count, const Plan<T>& plan, T* spectra) {
    const Block<T> block = make_block(plan);
    const int64_t row_size = plan.half() * NUMBER, total = tiles.count();
    Window<const T> windows[LANES];
    for (int64_t lane = 0; lane < count; ++lane) windows[lane] = window(tiles, begin + lane);
    for (int64_t row = 0; row < plan.height(); row += 2) {
        T* const out = block.transforms + row * row_size;
        if (row >= tiles.extent_h) {
            std::fill(out, out + 2 * row_size, T{0});
            continue;
        }
        load_two_rows(tiles, windows, count, row, plan.width(), block);
        transform(plan.rows, block.line, NUMBER);
        separate(plan.rows, block.line, out, out + row_size);
    }
    for (int64_t v = 0; v < plan.half(); ++v) transform(plan.columns, block.transforms + v * NUMBER, row_size);
    for (int64_t i = 0; i < 2 * plan.frequencies(); ++i)
        std::copy(block.transforms + i * LANES, block.transforms + i * LANES + count, spectra + i * total + begin);
}

// The inverse: results from their spectra, plus bias of their channel unless it is null.
template <class T>
void transform_block_back(const T* spectra, int64_t begin, int64_t count, const Plan<T>& plan, const T* bias,
                          const Tiles<T>& tiles) {
    const Block<T> block = make_block(plan);
    const int64_t width = plan.width(), row_size = plan.half() * NUMBER, total = tiles.count();
    const T scale = T(1) / T(plan.height() * width);
    Window<T> windows[LANES];
    for (int64_t lane = 0; lane < count; ++lane) windows[lane] = window(tiles, begin + lane);
    for (int64_t i = 0; i < 2 * plan.frequencies(); ++i) {
        T* const lanes = block.transforms + i * LANES;
        std::copy(spectra + i * total + begin, spectra + i * total + begin + count, lanes);
        std::fill(lanes + count, lanes + LANES, T{0});
    }
    if (plan.height() == 1) std::fill(block.transforms + row_size, block.transforms + 2 * row_size, T{0});
    for (int64_t v = 0; v < plan.half(); ++v) transform_back(plan.columns, block.transforms + v * NUMBER, row_size);
    for (int64_t row = 0; row < tiles.extent_h; row += 2) {
        const T* const in = block.transforms + row * row_size;
        join(plan.rows, in, in + row_size, block.line);
        transform_back(plan.rows, block.line, NUMBER);
        for (int64_t part = 0; part < 2 && row + part < tiles.extent_h; ++part) {
            best_tile<T>().transpose(width, LANES, block.line + part * LANES, NUMBER, block.pixels, width);
            for (int64_t lane = 0; lane < count; ++lane)
                store_line(tiles, windows[lane], row + part, block.pixels + lane * width, scale,
                           bias ? bias[windows[lane].channel] : T{0});
        }
    }
}

// Calls body(begin, count) for blocks of at most LANES of `total` tiles.
template <class Body>
void for_each_block(int64_t total, const Body& body) {
    parallel_for(ceil_div(total, LANES),
                 [&](int64_t i) { body(i * LANES, std::min(LANES, total - i * LANES)); });
}

template <class T>
void transform_tiles(const Tiles<const T>& tiles, const Plan<T>& plan, T* spectra) {
    for_each_block(tiles.count(), [&](int64_t begin, int64_t count) { transform_block(tiles, begin, count, plan, spectra); });
}

template <class T>
void transform_tiles_back(const T* spectra, const Plan<T>& plan, const T* bias, const Tiles<T>& tiles) {
    for_each_block(tiles.count(), [&](int64_t begin, int64_t count) {
        transform_block_back(spectra, begin, count, plan, bias, tiles);
    });
}

// ---- products ----

// The conjugate of a complex matrix (rows, depth), as the real matrix (re im / -im re) of 2 rows x 2 depth.
template <class T>
struct ConjugateRows {
    const T* a;  // real parts, then imaginary parts
    int64_t rows, depth;

    void pack(int64_t row, int64_t count, int64_t k, int64_t terms, T* out) const {
        for (int64_t i = row; i < row + count; ++i, out += A_STRIDE)
            for (int64_t j = k; j < k + terms;) {
                const bool lower = i >= rows, right = j >= depth;
                const int64_t run = std::min(right ? 2 * depth : depth, k + terms) - j;
                const T* const in = a + ((lower != right) * rows + i % rows) * depth + j % depth;
                const T sign = lower && !right ? T(-1) : T(1);
                for (int64_t t = 0; t < run; ++t) out[j - k + t] = sign * in[t];
                j += run;
            }
    }
};

template <class T>
struct PlainRows {
    T* data;
    int64_t row_stride;

    void pack(int64_t k, int64_t depth, int64_t column, int64_t columns, T* out, int64_t stride) const {
        for (int64_t i = 0; i < depth; ++i)
            std::memcpy(out + i * stride, data + (k + i) * row_stride + column, columns * sizeof(T));
    }
    Run<T> run(int64_t column, int64_t count) const { return {data + column, count, 1}; }
};

// c[f] (rows, columns) = or += conj(a[f]) (rows, depth) @ b[f] (depth, columns), each real parts, then imaginary parts
template <class T>
void multiply_spectra(const T* a, T* b, T* c, int64_t frequencies, int64_t rows, int64_t depth, int64_t columns, bool add) {
    const Blocks blocks = cut_blocks<T>(2 * rows, columns, 2 * depth, frequencies);
    parallel_for(frequencies * blocks.count(), [&](int64_t i) {
        const int64_t f = i / blocks.count(), block = i % blocks.count();
        multiply_block<T>(blocks.row_range(block), blocks.column_range(block), 2 * depth,
                          ConjugateRows<T>{a + 2 * f * rows * depth, rows, depth},
                          PlainRows<T>{b + 2 * f * depth * columns, columns},
                          PlainRows<T>{c + 2 * f * rows * columns, columns}, nullptr, add);
    });
}

// ---- the size of the transforms, and chunks ----

struct Size {
    int64_t height, width;
};

// About how long all work with transforms of one size takes, in multiply-adds.
int64_t cost(const ConvShape& shape, Size size) {
    const int64_t step_h = size.height - shape.R + 1, step_w = size.width - shape.S + 1;
    const int64_t tiles = shape.N * ceil_div(shape.P, step_h) * ceil_div(shape.Q, step_w);
    const int64_t numbers = size.height * (size.width / 2 + 1);
    int64_t passes = 8;  // loads, stores and arrangement of a number count as so many passes of the transform
    for (int64_t length = size.height * size.width; length > 1; length /= 2) ++passes;
    const int64_t planes = tiles * (shape.C + shape.K) + shape.C * shape.K;
    return numbers * (4 * round_up(tiles, MAX_TILE_COLUMNS / 2) * shape.C * shape.K + 4 * passes * planes);
}

// The cheapest powers of two that are no shorter than the kernel, up to 64 where that is possible.
Size choose_size(const ConvShape& shape) {
    constexpr int64_t LONGEST = 64;  // a block of 64 x 64 still fits the second-level cache
    const auto shortest = [](int64_t taps) {
        int64_t length = 1;
        while (length < taps) length *= 2;
        return length;
    };
    const Size least{shortest(shape.R), shortest(shape.S)};
    Size best = least;
    for (int64_t height = least.height; height <= std::max(LONGEST, least.height); height *= 2)
        for (int64_t width = least.width; width <= std::max(LONGEST, least.width); width *= 2)
            if (cost(shape, {height, width}) < cost(shape, best)) best = {height, width};
    return best;
}

// Everything that the three passes share: the transforms, the tiles of an image, and how they are cut into chunks.
template <class T>
struct Tiling {
    Plan<T> plan;
    int64_t rows, columns, step_h, step_w, tiles, chunks;

    Range chunk(int64_t index) const { return part(tiles, chunks, index, LANES); }
    int64_t longest() const { return chunks ? chunk(0).size() : 0; }
};

// Spectra of the tiles of a chunk fill about this much memory, or as much as those of the filters, which each chunk reads anew.
constexpr int64_t CHUNK_BYTES = 32 * 1024 * 1024, FEWEST_TILES = 64;

template <class T>
Tiling<T> make_tiling(const ConvShape& shape) {
    const Size size = choose_size(shape);
    Tiling<T> tiling{{make_fft<T>(size.width), make_fft<T>(size.height)},
                     0, 0, size.height - shape.R + 1, size.width - shape.S + 1, 0, 0};
    tiling.rows = ceil_div(shape.P, tiling.step_h), tiling.columns = ceil_div(shape.Q, tiling.step_w);
    tiling.tiles = shape.N * tiling.rows * tiling.columns;
    const int64_t plane_bytes = 2 * tiling.plan.frequencies() * int64_t{sizeof(T)};
    const int64_t most = std::max(CHUNK_BYTES, plane_bytes * shape.C * shape.K) / (plane_bytes * (shape.C + shape.K));
    tiling.chunks = ceil_div(tiling.tiles, std::max(FEWEST_TILES, most));
    return tiling;
}

// ---- the three passes ----

// Tiles of the plane's pixels that an output tile needs: windows as large as the transform.
template <class T>
Tiles<const T> image_tiles(const T* x, const ConvShape& shape, const Tiling<T>& tiling, bool channels_inside) {
    return {x, shape.C, shape.H, shape.W, shape.W, 1, tiling.rows, tiling.columns, tiling.step_h, tiling.step_w,
            shape.padding_h, shape.padding_w, tiling.plan.height(), tiling.plan.width(), channels_inside, {0, 0}};
}

// Tiles of outputs (or their gradients), one beside the other.
template <class T, class U>
Tiles<U> output_tiles(U* y, const ConvShape& shape, const Tiling<T>& tiling) {
    return {y, shape.K, shape.P, shape.Q, shape.Q, 1, tiling.rows, tiling.columns, tiling.step_h, tiling.step_w,
            0, 0, tiling.step_h, tiling.step_w, false, {0, 0}};
}

// Filters (or their gradients), each one tile, in the order in which they lie.
template <class U>
Tiles<U> filter_tiles(U* w, int64_t filters, int64_t channels, const ConvShape& shape) {
    return {w, channels, shape.R, shape.S, shape.S, 1, 1, 1, 0, 0, 0, 0, shape.R, shape.S, true, {0, filters}};
}

template <class T>
void convolve(const T* x, const Tiles<const T>& filters, const T* bias, T* y, const ConvShape& shape) {
    const Tiling<T> tiling = make_tiling<T>(shape);
    const Plan<T>& plan = tiling.plan;
    const int64_t C = shape.C, K = shape.K, numbers = 2 * plan.frequencies();
    if (tiling.tiles == 0) return;
    const auto weights = uninitialized<T>(numbers * K * C), images = uninitialized<T>(numbers * C * tiling.longest()),
               outputs = uninitialized<T>(numbers * K * tiling.longest());
    transform_tiles(filters, plan, weights.get());
    Tiles<const T> inputs = image_tiles(x, shape, tiling, false);
    Tiles<T> results = output_tiles(y, shape, tiling);
    for (int64_t chunk = 0; chunk < tiling.chunks; ++chunk) {
        inputs.range = results.range = tiling.chunk(chunk);
        transform_tiles(inputs, plan, images.get());
        multiply_spectra(weights.get(), images.get(), outputs.get(), plan.frequencies(), K, C, inputs.range.size(), false);
        transform_tiles_back(outputs.get(), plan, bias, results);
    }
}

void expect_shape(const ConvShape& shape) {
    const bool plain = shape.stride_h == 1 && shape.stride_w == 1 && shape.dilation_h == 1 && shape.dilation_w == 1;
    expect(plain && shape.groups == 1, "conv2d_fft", "stride, dilation and groups must be 1");
}

// The convolution that computes the gradient of the images.
ConvShape turned(const ConvShape& shape) {
    ConvShape result = shape;
    std::swap(result.C, result.K), std::swap(result.H, result.P), std::swap(result.W, result.Q);
    result.padding_h = shape.R - 1 - shape.padding_h, result.padding_w = shape.S - 1 - shape.padding_w;
    return result;
}

}  // namespace

template <class T>
void conv2d_forward_fft(const T* x, const T* w, const T* bias, T* y, const ConvShape& shape) {
    expect_shape(shape);
    convolve(x, filter_tiles(w, shape.K, shape.C, shape), bias, y, shape);
}

template <class T>
void conv2d_backward_input_fft(const T* gy, const T* w, T* gx, const ConvShape& shape) {
    expect_shape(shape);
    Tiles<const T> filters = filter_tiles(w + shape.R * shape.S - 1, shape.K, shape.C, shape);
    filters.row_stride = -shape.S, filters.column_stride = -1, filters.channels_inside = false;
    convolve(gy, filters, static_cast<const T*>(nullptr), gx, turned(shape));
}

template <class T>
void conv2d_backward_weight_fft(const T* x, const T* gy, T* gw, const ConvShape& shape) {
    expect_shape(shape);
    const Tiling<T> tiling = make_tiling<T>(shape);
    const Plan<T>& plan = tiling.plan;
    const int64_t C = shape.C, K = shape.K, numbers = 2 * plan.frequencies();
    const auto sums = uninitialized<T>(numbers * K * C), images = uninitialized<T>(numbers * C * tiling.longest()),
               gradients = uninitialized<T>(numbers * K * tiling.longest());
    if (tiling.tiles == 0) std::fill(sums.get(), sums.get() + numbers * K * C, T{0});
    Tiles<const T> inputs = image_tiles(x, shape, tiling, true), outputs = output_tiles(gy, shape, tiling);
    for (int64_t chunk = 0; chunk < tiling.chunks; ++chunk) {
        inputs.range = outputs.range = tiling.chunk(chunk);
        transform_tiles(inputs, plan, images.get());
        transform_tiles(outputs, plan, gradients.get());
        multiply_spectra(gradients.get(), images.get(), sums.get(), plan.frequencies(), K, inputs.range.size(), C, chunk > 0);
    }
    transform_tiles_back(sums.get(), plan, static_cast<const T*>(nullptr), filter_tiles(gw, K, C, shape));
}

template <class T>
int64_t conv2d_fft_workspace_bytes(const ConvShape& shape) {
    const auto bytes = [&](const Tiling<T>& tiling) {
        const int64_t planes = shape.C * shape.K + (shape.C + shape.K) * tiling.longest();
        const int64_t numbers = 2 * tiling.plan.frequencies() * planes + num_threads() * block_size(tiling.plan);
        return numbers * int64_t{sizeof(T)};
    };
    return std::max(bytes(make_tiling<T>(shape)), bytes(make_tiling<T>(turned(shape))));
}

#define GPUCNN_INSTANTIATE(T) \
    template void conv2d_forward_fft<T>(const T*, const T*, const T*, T*, const ConvShape&); \
    template void conv2d_backward_input_fft<T>(const T*, const T*, T*, const ConvShape&); \
    template void conv2d_backward_weight_fft<T>(const T*, const T*, T*, const ConvShape&); \
    template int64_t conv2d_fft_workspace_bytes<T>(const ConvShape&);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
