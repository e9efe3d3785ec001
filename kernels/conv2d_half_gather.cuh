// Forward convolution and its gradient of the input in 16 bits by implicit GEMM: rows are output pixels of all images,
// columns are filters (of one group), terms are (tap, channel).
//
// x, y: images of any strides; y is overwritten with ReLU(sums + bias + residual), of which each may be missing, rounded
// once. residual has y's strides. packed: (groups, phases, filters, pitch) of conv2d_half_pack.cu, which has zeros where a
// tile reaches further, so weights have no tails. Where terms are split, `planes` takes float32 sums, each plane dense in
// y's order, and conv2d_half_add.cu finishes them.
//
// - PixelUnits: channels contiguous and of a multiple of 8: 16-byte copies of 8 channels at a tap, [pixel][term].
// - PixelValues: everything else. Lanes stand along the pixels, two each, so that an image's contiguous rows are read in
//   whole sectors; values go through registers to [term][pixel].
//
// product.step: whole taps and channels that 32 terms go on by, and the packed weights' pitch.
//
// Eight neighbouring terms are a unit. A thread copies the same one of a step's four units all along, and goes from tap to
// tap by additions with carry. Padding is a mask of the pixel against bits of the tap, as in conv2d_gather.cuh.
#pragma once
#include "conv2d_half.cuh"
#include "conv2d_taps.cuh"

// Where the values of a tap lie from a pixel's corner, and the bits of its row and column.
struct HalfTap {
    int source;
    unsigned bits;
};

struct Term {
    int tap, channel;
    __device__ __forceinline__ void advance(const int (&step)[3], int channels) {
        tap += step[0];
        channel += step[1];
        if (channel >= channels) channel -= channels, ++tap;
    }
};

// A thread's share of the weights of a step: one unit of some filters.
template <class T, class Tile>
struct WeightUnits {
    static constexpr int UNITS = Tile::TERMS / UNIT, ROWS = Tile::THREADS / UNITS, COPIES = Tile::TILE_N / ROWS;
    static_assert(COPIES * ROWS == Tile::TILE_N && ROWS % 8 == 0, "whole copies");
    const T* source;
    int64 stride;  // from filter to filter of the thread
    static __device__ __forceinline__ int unit() { return threadIdx.x % UNITS; }
    static __device__ __forceinline__ int row() { return threadIdx.x / UNITS; }
    __device__ __forceinline__ void copy(T* stage) {
        T* to = stage + Tile::RIGHT + row_place(row(), unit());
#pragma unroll
        for (int i = 0; i < COPIES; ++i) copy_unit(to + i * ROWS * Tile::TERMS, source + i * stride, true);
        source += Tile::TERMS;
    }
};

template <class T, class Tile>
struct PixelUnits {
    static constexpr bool TERMS_FORM = false;
    static constexpr int UNITS = Tile::TERMS / UNIT, STEP = Tile::THREADS / UNITS, PIXELS = Tile::TILE_M / STEP;
    static_assert(PIXELS * STEP == Tile::TILE_M && STEP % 8 == 0, "whole copies");
    const T* corner[PIXELS];
    unsigned outside[PIXELS];
    static __device__ __forceinline__ int unit() { return threadIdx.x % UNITS; }
    static __device__ __forceinline__ int pixel(int i) { return threadIdx.x / UNITS + i * STEP; }
    __device__ __forceinline__ void fetch(T* stage, const HalfTap* table, int taps, Term at, int, int) {
        const bool exists = at.tap < taps;
        const HalfTap tap = table[exists ? at.tap : 0];
        T* to = stage + row_place(pixel(0), unit());
#pragma unroll
        for (int i = 0; i < PIXELS; ++i)
            copy_unit(to + i * STEP * Tile::TERMS, corner[i] + (tap.source + at.channel),
                      exists && (outside[i] & tap.bits) == 0);
    }
    __device__ __forceinline__ void put(T*) const {}
};

template <class T, class Tile>
struct PixelValues {
    static constexpr bool TERMS_FORM = true;
    static constexpr int PIXELS = 2, PAIRS = Tile::TILE_M / 2;
    static_assert(Tile::THREADS / PAIRS * UNIT == Tile::TERMS, "a unit of two pixels for each thread");
    const T* corner[PIXELS];
    unsigned outside[PIXELS];
    uint32_t values[UNIT];
    static __device__ __forceinline__ int unit() { return threadIdx.x / PAIRS; }
    static __device__ __forceinline__ int pixel(int i) { return threadIdx.x % PAIRS * 2 + i; }
    __device__ __forceinline__ void fetch(T*, const HalfTap* table, int taps, Term at, int channels, int stride) {
#pragma unroll
        for (int j = 0; j < UNIT; ++j, ++at.channel) {
            if (at.channel == channels) at.channel = 0, ++at.tap;
            const bool exists = at.tap < taps;
            const HalfTap tap = table[exists ? at.tap : 0];
            const int offset = tap.source + at.channel * stride;
            values[j] = load_bits16(corner[0] + offset, exists && (outside[0] & tap.bits) == 0) |
                        load_bits16(corner[1] + offset, exists && (outside[1] & tap.bits) == 0) << 16;
        }
    }
    __device__ __forceinline__ void put(T* stage) const {
#pragma unroll
        for (int j = 0; j < UNIT; ++j)
            store_pair(stage + term_place<Tile::TILE_M>(unit() * UNIT + j, pixel(0) / UNIT) + pixel(0) % UNIT, values[j]);
    }
};

template <class T, class Tile, class Pixels>
struct HalfLoader {
    static constexpr bool LEFT_TERMS = Pixels::TERMS_FORM, RIGHT_TERMS = false;
    Pixels pixels;
    WeightUnits<T, Tile> weights;
    const HalfTap* table;
    const ConvProduct& product;
    Term at;
    int taps, channels, stride;
    __device__ __forceinline__ void fetch(T* stage) {
        weights.copy(stage);
        pixels.fetch(stage, table, taps, at, channels, stride);
        at.advance(product.step, channels);
    }
    __device__ __forceinline__ void put(T* stage) const { pixels.put(stage); }
};

template <class T>
struct HalfArrays {
    const T *x, *packed;
    const float* bias;
    const T* residual;
    T* y;
    float* planes;
};

template <class T, class Tile, template <class, class> class PixelsOf, bool BACKWARD>
struct HalfConvolution {
    using Pixels = PixelsOf<T, Tile>;
    static constexpr int PITCH_M = Tile::TILE_M + 8, PITCH_N = Tile::TILE_N + 8;  // of the staged results
    static_assert(Tile::TILE_M * PITCH_N <= Tile::STAGES * Tile::STAGE && Tile::TILE_N * PITCH_M <= Tile::STAGES * Tile::STAGE,
                  "results fit the ring");
    const HalfArrays<T>& arrays;
    const ConvShape& shape;
    const ImageStrides &x_strides, &y_strides;
    const ConvProduct& product;
    HalfTap* table;

    struct Place {
        int pixel, filter, split, phase, group;
    };
    __device__ __forceinline__ Place place() const {
        const int filters = (BACKWARD ? shape.C : shape.K) / shape.groups, tiles = ceil_div(filters, Tile::TILE_N);
        const int tile = opaque(blockIdx.x), part = opaque(blockIdx.y);
        return {tile / tiles * Tile::TILE_M, tile % tiles * Tile::TILE_N, part % product.splits, part / product.splits,
                opaque(blockIdx.z)};
    }
    __device__ __forceinline__ Gather gather(const Place& at) const { return make_gather<BACKWARD>(shape, at.phase); }

    // Of output pixel `number`, its tap at the corner in the block's first channel, and the bits of what is outside.
    __device__ __forceinline__ const T* corner(const Gather& g, const Place& at, int number, unsigned& outside) const {
        int rest, v;
        const int n = divide(number, product.by_image, rest), u = divide(rest, product.by_row, v);
        outside = outside_bits(g.rows, u, g.height) | outside_bits(g.columns, v, g.width) << g.rows.count;
        if (n >= shape.N) outside = ~0u;
        const int64 h = u * g.rows.scale + g.rows.offset, w = v * g.columns.scale + g.columns.offset;
        return arrays.x + n * x_strides.image + static_cast<int64>(at.group) * g.channels * x_strides.channel +
               h * x_strides.row + w * x_strides.column;
    }

    // Where y has filter 0 of the block's group at output pixel `number`; negative if it does not exist.
    __device__ __forceinline__ int64 target(const Gather& g, const Place& at, int number) const {
        int rest, v;
        const int n = divide(number, product.by_image, rest), u = divide(rest, product.by_row, v);
        const int h = u * g.step_h + g.phase_h, w = v * g.step_w + g.phase_w;
        if (n >= shape.N || h >= g.out_height || w >= g.out_width) return -1;
        return n * y_strides.image + static_cast<int64>(at.group) * g.filters * y_strides.channel + h * y_strides.row +
               w * y_strides.column;
    }

    __device__ __forceinline__ void multiply(T* ring, typename Tile::Sums& sums) const {
        const Place at = place();
        const Gather g = gather(at);
        const int taps = g.rows.count * g.columns.count, all = ceil_div(taps * g.channels, Tile::TERMS);
        const int count = product.split_terms / Tile::TERMS, first = at.split * count;
        HalfLoader<T, Tile, Pixels> load{{}, {}, table, product, {}, taps, g.channels, static_cast<int>(x_strides.channel)};
#pragma unroll
        for (int i = 0; i < Pixels::PIXELS; ++i)
            load.pixels.corner[i] = corner(g, at, at.pixel + Pixels::pixel(i), load.pixels.outside[i]);
        const int term = first * Tile::TERMS + Pixels::unit() * UNIT;
        load.at = {term / g.channels, term % g.channels};
        const int pitch = product.step[2], filters = ceil_div(g.filters, Tile::TILE_N) * Tile::TILE_N;
        const int phases = BACKWARD ? shape.stride_h * shape.stride_w : 1;
        const int64 row = (static_cast<int64>(at.group) * phases + at.phase) * filters + at.filter + load.weights.row();
        load.weights.source = arrays.packed + row * pitch + first * Tile::TERMS + load.weights.unit() * UNIT;
        load.weights.stride = static_cast<int64>(load.weights.ROWS) * pitch;
        multiply_ring<T, Tile>(load, min(count, all - first), ring, sums);
    }

    // A thread's sums, with what is added to them, go to `planes`, or to the ring as [pixel][filter] or [filter][pixel].
    __device__ __forceinline__ void stage(const typename Tile::Sums& sums, T* ring, bool filters_contiguous) const {
        const Place at = place();
        const Gather g = gather(at);
        const int lane = threadIdx.x % WARP_SIZE, first_row = Tile::warp_row() + lane / 4;
        const int first_column = Tile::warp_column() + lane % 4 * 2;
        const bool whole = arrays.planes == nullptr;
#pragma unroll
        for (int i = 0; i < 2 * Tile::ROW_TILES; ++i) {
            const int row = first_row + i * 8;
            const int64 to = whole && !arrays.residual ? 0 : target(g, at, at.pixel + row);
#pragma unroll
            for (int n = 0; n < Tile::COLUMN_TILES; ++n) {
                const int column = first_column + n * 8;
                float values[2];
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const int filter = at.filter + column + j;
                    const int64 element = to + filter * y_strides.channel;
                    const bool exists = to >= 0 && filter < g.filters;
                    values[j] = sums.values[i / 2][n][i % 2 * 2 + j];
                    if (!whole) {
                        if (exists) arrays.planes[at.split * product.split_stride + element] = values[j];
                        continue;
                    }
                    if (arrays.bias && filter < g.filters) values[j] += arrays.bias[at.group * g.filters + filter];
                    if (arrays.residual && exists) values[j] += to_float(arrays.residual[element]);
                    values[j] = finish(values[j], product.relu);
                }
                if (!whole) continue;
                if (filters_contiguous) {
                    store_pair(ring + row * PITCH_N + column, pack<T>(values[0], values[1]));
                } else {
                    ring[column * PITCH_M + row] = round_to<T>(values[0]);
                    ring[(column + 1) * PITCH_M + row] = round_to<T>(values[1]);
                }
            }
        }
    }

    __device__ __forceinline__ bool multiples_of_8(int64 a, int64 b, int64 c) const { return ((a | b | c) & 7) == 0; }

    // [pixel][filter] to y whose filters are contiguous.
    __device__ __forceinline__ void store_filters(const T* ring) const {
        constexpr int CHUNKS = Tile::TILE_N / UNIT;
        const Place at = place();
        const Gather g = gather(at);
        const bool units = g.filters % UNIT == 0 && is_aligned16(arrays.y) &&
                           multiples_of_8(y_strides.image, y_strides.row, y_strides.column);
        const int chunk = threadIdx.x % CHUNKS * UNIT, filter = at.filter + chunk;
        for (int row = threadIdx.x / CHUNKS; row < Tile::TILE_M; row += Tile::THREADS / CHUNKS) {
            const int64 to = target(g, at, at.pixel + row);
            if (to < 0 || filter >= g.filters) continue;
            const T* from = ring + row * PITCH_N + chunk;
            if (units) {
                move_unit(arrays.y + to + filter, from);
            } else {
                for (int j = 0; j < min(UNIT, g.filters - filter); ++j) arrays.y[to + filter + j] = from[j];
            }
        }
    }

    // [filter][pixel] to y of any strides: eight neighbouring pixels at a time where they are neighbours there, too.
    __device__ __forceinline__ void store_pixels(const T* ring) const {
        constexpr int CHUNKS = Tile::TILE_M / UNIT;
        const Place at = place();
        const Gather g = gather(at);
        const int filters = min(Tile::TILE_N, g.filters - at.filter);
        const int64 first = at.filter * y_strides.channel;
        if (g.step_h * g.step_w == 1 && y_strides.column == 1 && y_strides.row == g.out_width && is_aligned16(arrays.y) &&
            multiples_of_8(product.by_image[0], y_strides.channel, y_strides.image)) {
            const int chunk = threadIdx.x % CHUNKS * UNIT;
            const int64 to = target(g, at, at.pixel + chunk);
            if (to < 0) return;
            for (int f = threadIdx.x / CHUNKS; f < filters; f += Tile::THREADS / CHUNKS)
                move_unit(arrays.y + to + first + f * y_strides.channel, ring + f * PITCH_M + chunk);
            return;
        }
        const int pixel = threadIdx.x % Tile::TILE_M;
        const int64 to = target(g, at, at.pixel + pixel);
        if (to < 0) return;
        for (int f = threadIdx.x / Tile::TILE_M; f < filters; f += Tile::THREADS / Tile::TILE_M)
            arrays.y[to + first + f * y_strides.channel] = ring[f * PITCH_M + pixel];
    }

    __device__ __forceinline__ void run(T* ring) const {
        const Gather g = gather(place());
        for (int t = threadIdx.x; t < g.rows.count * g.columns.count; t += Tile::THREADS)
            table[t] = {source_offset(g, x_strides, t), static_cast<unsigned>(tap_bits(g, t))};
        __syncthreads();
        typename Tile::Sums sums = {};
        multiply(ring, sums);
        const bool filters_contiguous = y_strides.channel == 1;
        stage(sums, ring, filters_contiguous);
        if (arrays.planes) return;
        __syncthreads();
        if (filters_contiguous) {
            store_filters(ring);
        } else {
            store_pixels(ring);
        }
    }
};
