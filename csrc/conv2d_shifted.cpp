// Convolution of small images with stride 1 by shifts of a padded image; see conv2d_shifted.hpp.
//
//     forward          y[k]       = sum over (c, r, s) of w[k][c][r][s] * shift(x[c], r, s)
//     backward input   gx[c]      = sum over (k, r, s) of w[k][c][R-1-r][S-1-s] * shift(gy[k], r, s), gy padded by
//                                   dilation * (R - 1) - padding: again a forward pass
//     backward weight  gw[k][c][r][s] = dot product of gy[k] and shift(x[c], r, s)
#include "conv2d_shifted.hpp"

#include <cstring>
#include <vector>

#include "gemm.hpp"

namespace gpucnn {
namespace {

constexpr int64_t MOST_FILTERS = 64;          // above, a copied block is shared by enough filters
constexpr int64_t MOST_BYTES = 256 * 1024;    // of one image: with its results a fraction of the second-level cache
constexpr int64_t CHUNK_BYTES = 384 * 1024;   // of the images of one chunk in backward weight
constexpr int64_t MOST_CHUNKS = 16;

// One group of one image, padded: `channels` planes of `rows` rows, `pitch` elements apart; the outputs' P x Q grid in it.
struct Frame {
    int64_t channels, H, W, pad_h, pad_w, P, Q, pitch, plane;

    Frame(int64_t channels, int64_t H, int64_t W, int64_t pad_h, int64_t pad_w, int64_t P, int64_t Q)
        : channels(channels), H(H), W(W), pad_h(pad_h), pad_w(pad_w), P(P), Q(Q), pitch(W + 2 * pad_w),
          plane((H + 2 * pad_h) * pitch) {}

    int64_t size() const { return channels * plane + MAX_TILE_COLUMNS; }   // tiles read past the end
    int64_t length() const { return (P - 1) * pitch + Q; }                  // of the run that holds all output pixels
    int64_t stride() const { return round_up(length(), MAX_TILE_COLUMNS); }  // of the results' rows

    std::vector<int64_t> offsets(const ConvShape& shape) const {
        std::vector<int64_t> result;
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t r = 0; r < shape.R; ++r)
                for (int64_t s = 0; s < shape.S; ++s)
                    result.push_back(c * plane + r * shape.dilation_h * pitch + s * shape.dilation_w);
        return result;
    }

    template <class T>
    void pad(const T* source, T* out) const {
        std::fill(out, out + size(), T{0});
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t h = 0; h < H; ++h)
                std::memcpy(out + c * plane + (h + pad_h) * pitch + pad_w, source + (c * H + h) * W, W * sizeof(T));
    }
};

Frame forward_frame(const ConvShape& shape) {
    return {shape.group_channels(), shape.H, shape.W, shape.padding_h, shape.padding_w, shape.P, shape.Q};
}

Frame backward_frame(const ConvShape& shape) {
    return {shape.group_filters(),
            shape.P,
            shape.Q,
            shape.dilation_h * (shape.R - 1) - shape.padding_h,
            shape.dilation_w * (shape.S - 1) - shape.padding_w,
            shape.H,
            shape.W};
}

template <class T>
bool fits(const ConvShape& shape, const Frame& frame, int64_t filters) {
    const bool able = shape.stride_h == 1 && shape.stride_w == 1 && frame.pad_h >= 0 && frame.pad_w >= 0;
    const int64_t bytes = (frame.size() + filters * frame.stride()) * int64_t{sizeof(T)};
    return able && filters <= MOST_FILTERS && bytes <= MOST_BYTES;
}

// Filters (filters, depth) of one group cut into packed tiles, in the order in which correlate_image takes them.
template <class T>
struct PackedFilters {
    int64_t filters, depth, cuts, row_tiles;

    PackedFilters(int64_t filters, int64_t depth)
        : filters(filters), depth(depth), cuts(ceil_div(depth, MAX_DEPTH)),
          row_tiles(ceil_div(filters, best_tile<T>().rows)) {}

    static constexpr int64_t TILE = MAX_TILE_ROWS * A_STRIDE;
    int64_t size() const { return cuts * row_tiles * TILE; }
    Range k(int64_t cut) const { return part(depth, cuts, cut); }
    Range rows(int64_t tile) const { return part(filters, row_tiles, tile); }

    // weight(row, k): element of the matrix
    template <class Weight>
    void pack(const Weight& weight, T* out) const {
        for (int64_t cut = 0; cut < cuts; ++cut)
            for (int64_t tile = 0; tile < row_tiles; ++tile, out += TILE)
                for (int64_t i = rows(tile).begin; i < rows(tile).end; ++i)
                    for (int64_t j = k(cut).begin; j < k(cut).end; ++j)
                        out[(i - rows(tile).begin) * A_STRIDE + j - k(cut).begin] = weight(i, j);
    }
};

// sums (filters, frame.stride()) = packed filters times the shifts of a padded image (+ bias).
template <class T>
void correlate_image(const PackedFilters<T>& filters, const T* packed, const T* padded, const int64_t* offsets,
                     const T* bias, int64_t length, int64_t stride, T* sums) {
    const Tile<T>& tile = best_tile<T>();
    for (int64_t cut = 0; cut < filters.cuts; ++cut) {
        const Range k = filters.k(cut);
        for (int64_t i = 0; i < filters.row_tiles; ++i, packed += PackedFilters<T>::TILE) {
            const Range rows = filters.rows(i);
            const T* const tile_bias = bias && cut == 0 ? bias + rows.begin : nullptr;
            for (int64_t j = 0; j < length;) {
                const bool narrow = length - j <= tile.columns / 2;
                const auto multiply = narrow ? tile.narrow[rows.size()] : tile.wide[rows.size()];
                multiply(k.size(), packed, padded + j, offsets + k.begin, sums + rows.begin * stride + j, stride, tile_bias,
                         cut > 0);
                j += narrow ? tile.columns / 2 : tile.columns;
            }
        }
    }
}

// out (images, groups * filters, P, Q) = packed filters times shifts of source (images, groups * channels, H, W).
template <class T>
void correlate(const T* source, const PackedFilters<T>& filters, const T* packed, const T* bias, T* out, const Frame& frame,
               const ConvShape& shape) {
    std::vector<int64_t> offsets = frame.offsets(shape);
    offsets.resize(offsets.size() + PREFETCHED);
    const int64_t in_size = frame.channels * frame.H * frame.W, out_size = filters.filters * frame.P * frame.Q;
    parallel_for(shape.N * shape.groups, [&](int64_t task) {
        const int64_t group = task % shape.groups, stride = frame.stride();
        T* const padded = scratch<T>(Slot::BLOCK, frame.size());
        T* const sums = scratch<T>(Slot::SUMS, filters.filters * stride);
        frame.pad(source + task * in_size, padded);
        correlate_image(filters, packed + group * filters.size(), padded, offsets.data(),
                        bias ? bias + group * filters.filters : nullptr, frame.length(), stride, sums);
        T* to = out + task * out_size;
        for (int64_t k = 0; k < filters.filters; ++k)
            for (int64_t p = 0; p < frame.P; ++p, to += frame.Q)
                std::memcpy(to, sums + k * stride + p * frame.pitch, frame.Q * sizeof(T));
    });
}

// gy (K/groups, P, Q) with the pitch of the padded x, zero between the rows: there shifts meet no output pixels.
template <class T>
void spread_gradient(const T* gy, const Frame& frame, int64_t filters, T* out) {
    const int64_t stride = frame.stride();
    std::fill(out, out + filters * stride, T{0});
    for (int64_t k = 0; k < filters; ++k)
        for (int64_t p = 0; p < frame.P; ++p)
            std::memcpy(out + k * stride + p * frame.pitch, gy + (k * frame.P + p) * frame.Q, frame.Q * sizeof(T));
}

// gw (K/groups, depth) of one group, summed over `images` images that lie padded and spread one after the other.
template <class T>
void dot_products(const Frame& frame, int64_t images, const T* padded, const T* spread, int64_t filters,
                  const std::vector<int64_t>& offsets, T* gw) {
    const Tile<T>& tile = best_tile<T>();
    const int64_t depth = offsets.size(), stride = frame.stride(), row_tiles = ceil_div(filters, tile.dot_rows);
    for (int64_t i = 0; i < row_tiles; ++i) {
        const Range rows = part(filters, row_tiles, i);
        const Images<T> g{spread + rows.begin * stride, filters * stride, stride}, x{padded, frame.size(), 0};
        for (int64_t d = 0; d < depth; d += DOT_TAPS) {
            int64_t taps[DOT_TAPS];
            for (int64_t t = 0; t < DOT_TAPS; ++t) taps[t] = offsets[std::min(d + t, depth - 1)];
            T out[MAX_DOT_ROWS * DOT_TAPS];
            tile.dots[rows.size()](images, round_up(frame.length(), MAX_LANES), g, x, taps, out);
            for (int64_t row = 0; row < rows.size(); ++row)
                for (int64_t t = 0; t < std::min<int64_t>(DOT_TAPS, depth - d); ++t)
                    gw[(rows.begin + row) * depth + d + t] = out[row * DOT_TAPS + t];
        }
    }
}

template <class T>
int64_t chunk_count(const ConvShape& shape, const Frame& frame) {
    const int64_t bytes = (frame.size() + shape.group_filters() * frame.stride()) * int64_t{sizeof(T)};
    return std::max({int64_t{1}, std::min(shape.N, MOST_CHUNKS), ceil_div(shape.N * bytes, CHUNK_BYTES)});
}

}  // namespace

template <class T>
bool shifted_forward_wins(const ConvShape& shape) {
    return fits<T>(shape, forward_frame(shape), shape.group_filters());
}

template <class T>
bool shifted_backward_input_wins(const ConvShape& shape) {
    return fits<T>(shape, backward_frame(shape), shape.group_channels());
}

template <class T>
bool shifted_backward_weight_wins(const ConvShape& shape) {
    constexpr int64_t MOST_TAPS = 1024;
    return shape.group_channels() * shape.R * shape.S <= MOST_TAPS && shifted_forward_wins<T>(shape);
}

template <class T>
void conv2d_forward_shifted(const T* x, const T* w, const T* bias, T* y, const ConvShape& shape) {
    const int64_t depth = shape.group_channels() * shape.R * shape.S;
    const PackedFilters<T> filters(shape.group_filters(), depth);
    T* const packed = scratch<T>(Slot::WEIGHTS, shape.groups * filters.size());
    for (int64_t g = 0; g < shape.groups; ++g)
        filters.pack([&](int64_t k, int64_t d) { return w[(g * filters.filters + k) * depth + d]; },
                     packed + g * filters.size());
    correlate(x, filters, packed, bias, y, forward_frame(shape), shape);
}

template <class T>
void conv2d_backward_input_shifted(const T* gy, const T* w, T* gx, const ConvShape& shape) {
    const int64_t taps = shape.R * shape.S, channels = shape.group_channels(), group_filters = shape.group_filters();
    const PackedFilters<T> filters(channels, group_filters * taps);
    T* const packed = scratch<T>(Slot::WEIGHTS, shape.groups * filters.size());
    for (int64_t g = 0; g < shape.groups; ++g)
        filters.pack(
            [&](int64_t c, int64_t d) {
                const int64_t k = g * group_filters + d / taps;
                return w[(k * channels + c) * taps + taps - 1 - d % taps];
            },
            packed + g * filters.size());
    correlate<T>(gy, filters, packed, nullptr, gx, backward_frame(shape), shape);
}

template <class T>
void conv2d_backward_weight_shifted(const T* x, const T* gy, T* gw, const ConvShape& shape) {
    const Frame frame = forward_frame(shape);
    const std::vector<int64_t> offsets = frame.offsets(shape);
    const int64_t filters = shape.group_filters(), depth = offsets.size(), size = shape.K * depth;
    const int64_t chunks = chunk_count<T>(shape, frame), in_size = frame.channels * frame.H * frame.W;
    T* const partials = scratch<T>(Slot::PARTIALS, chunks * size);
    parallel_for(chunks * shape.groups, [&](int64_t task) {
        const int64_t chunk = task / shape.groups, group = task % shape.groups;
        const Range images = part(shape.N, chunks, chunk);
        T* const padded = scratch<T>(Slot::BLOCK, images.size() * frame.size());
        T* const spread = scratch<T>(Slot::SUMS, images.size() * filters * frame.stride());
        for (int64_t n = images.begin; n < images.end; ++n) {
            const int64_t part_of_image = n * shape.groups + group, i = n - images.begin;
            frame.pad(x + part_of_image * in_size, padded + i * frame.size());
            spread_gradient(gy + part_of_image * filters * frame.P * frame.Q, frame, filters,
                            spread + i * filters * frame.stride());
        }
        dot_products(frame, images.size(), padded, spread, filters, offsets,
                     partials + chunk * size + group * filters * depth);
    });
    add_partials(partials, chunks, size, gw);
}

#define GPUCNN_INSTANTIATE(T)                                                                          \
    template bool shifted_forward_wins<T>(const ConvShape&);                                           \
    template bool shifted_backward_input_wins<T>(const ConvShape&);                                    \
    template bool shifted_backward_weight_wins<T>(const ConvShape&);                                   \
    template void conv2d_forward_shifted<T>(const T*, const T*, const T*, T*, const ConvShape&);       \
    template void conv2d_backward_input_shifted<T>(const T*, const T*, T*, const ConvShape&);          \
    template void conv2d_backward_weight_shifted<T>(const T*, const T*, T*, const ConvShape&);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
