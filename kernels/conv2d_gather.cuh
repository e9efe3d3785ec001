// Forward convolution and its gradient of the input as one implicit matrix product: rows are filters (of one group),
// columns are output pixels of all images, terms are (channel, tap), whose products no memory ever holds.
//
// Output number u along an axis collects from the source's positions u·scale + offset + i·delta through taps
// first + i·step, i < count:
// - forward: all taps, u·stride − padding + i·dilation.
// - backward_input: output h = phase + u·stride is reached by tap r from p = (h + padding − r·dilation) / stride, where
//   that is whole. Every phase is a convolution of its own with the taps that reach it: no zero is multiplied. A phase that
//   no tap reaches has no terms, so zeros are written.
//
// Terms are numbered (channels of 16, tap, channel), as conv2d_pack_weights.cu orders the weights: a step's 16 terms are
// one tap of 16 channels, so a thread tests once whether its pixel's tap is inside the image, and its 16 bytes of weights
// follow each other. A table in shared memory leads from tap to tap. Channels left over are numbered (channel, tap), and
// the table then has a tap's place for every term; this also serves first layers, which have few channels.
//
// Taps have two bits, of their row and their column, and a pixel's mask has the bits of rows and columns that are outside
// the image: padding costs one comparison and no branch.
#pragma once
#include "conv2d_gemm.cuh"

constexpr int MAX_TAPS = 256;  // of rows + columns ≤ 32

struct Axis {
    int scale, offset, delta;  // of positions in the source
    int first, step, count;    // of taps
};

// What both passes have in common: `channels` are summed, `filters` computed, each of one group.
struct Gather {
    int channels, filters, height, width;          // of the source
    int out_height, out_width, step_h, step_w, phase_h, phase_w;
    Axis rows, columns;
};

__device__ __forceinline__ Axis forward_axis(int taps, int stride, int padding, int dilation) {
    return {stride, -padding, dilation, 0, 1, taps};
}

// The taps that reach a phase are an arithmetic progression of stride / gcd(stride, dilation).
__device__ __forceinline__ Axis backward_axis(int phase, int taps, int stride, int padding, int dilation) {
    int step = 1;
    while (step * dilation % stride != 0) ++step;
    int first = 0;
    while (first < step && (phase + padding - first * dilation) % stride != 0) ++first;
    const int count = first < min(step, taps) ? ceil_div(taps - first, step) : 0;
    return {1, (phase + padding - first * dilation) / stride, -(step * dilation / stride), first, step, count};
}

template <bool BACKWARD>
__device__ __forceinline__ Gather make_gather(const ConvShape& s, int phase) {
    const int channels = s.C / s.groups, filters = s.K / s.groups;
    if (!BACKWARD)
        return {channels, filters, s.H, s.W, s.P, s.Q, 1, 1, 0, 0,
                forward_axis(s.R, s.stride_h, s.padding_h, s.dilation_h),
                forward_axis(s.S, s.stride_w, s.padding_w, s.dilation_w)};
    const int phase_h = phase / s.stride_w, phase_w = phase % s.stride_w;
    return {filters, channels, s.P, s.Q, s.H, s.W, s.stride_h, s.stride_w, phase_h, phase_w,
            backward_axis(phase_h, s.R, s.stride_h, s.padding_h, s.dilation_h),
            backward_axis(phase_w, s.S, s.stride_w, s.padding_w, s.dilation_w)};
}

// A tap of the table that leads through the taps of 16 channels, and then to the next 16.
struct Tap {
    int source, bits, weights, next;  // floats to the next tap's values and weights; its number
};

// Where a tap of a channel lies, and its bits.
struct Place {
    int source, bits;
};

template <class Tile>
struct TapTables {
    static constexpr int PLACES = MAX_TAPS + Tile::TERMS;  // goes on into the next channels: a step may begin at any tap
    static constexpr int INTS = 3 * PLACES > 4 * MAX_TAPS ? 3 * PLACES : 4 * MAX_TAPS;
    int* memory;
    __device__ __forceinline__ Tap* taps() const { return reinterpret_cast<Tap*>(memory); }
    __device__ __forceinline__ Place* places() const { return reinterpret_cast<Place*>(memory); }
    __device__ __forceinline__ int* terms() const { return memory + 2 * PLACES; }  // numbers of packed weights
};

// Tap t of a phase, in the order of the table, and its number among all.
__device__ __forceinline__ int source_offset(const Gather& g, const ImageStrides& strides, int t) {
    const int i = t / g.columns.count, j = t % g.columns.count;
    return static_cast<int>(i * g.rows.delta * strides.row + j * g.columns.delta * strides.column);
}
__device__ __forceinline__ int tap_number(const Gather& g, int width, int t) {
    const int i = t / g.columns.count, j = t % g.columns.count;
    return (g.rows.first + i * g.rows.step) * width + g.columns.first + j * g.columns.step;
}
__device__ __forceinline__ int tap_bits(const Gather& g, int t) {
    return 1 << t / g.columns.count | 1 << (g.rows.count + t % g.columns.count);
}

template <class Tile>
__device__ __forceinline__ void fill_taps(Tap* taps, const Gather& g, const ConvShape& s, const ImageStrides& strides) {
    const int count = g.rows.count * g.columns.count, row = Tile::TERMS * Tile::TILE_M;
    for (int t = threadIdx.x; t < count; t += Tile::THREADS) {
        const int next = t + 1 < count ? t + 1 : 0;
        const int channels = next ? 0 : static_cast<int>(Tile::TERMS * strides.channel);
        const int weights = tap_number(g, s.S, next) - tap_number(g, s.S, t) + (next ? 0 : s.R * s.S);
        taps[t] = {channels + source_offset(g, strides, next) - source_offset(g, strides, t), tap_bits(g, t), weights * row,
                   next};
    }
}

// Entry t is tap t % count of channel t / count, for t below count + TERMS.
template <class Tile>
__device__ __forceinline__ void fill_places(const TapTables<Tile>& table, const Gather& g, const ConvShape& s,
                                            const ImageStrides& strides) {
    const int count = g.rows.count * g.columns.count;
    for (int t = threadIdx.x; t < count + Tile::TERMS; t += Tile::THREADS) {
        const int channel = t / count, tap = t % count;
        const int offset = static_cast<int>(channel * strides.channel) + source_offset(g, strides, tap);
        table.places()[t] = {offset, tap_bits(g, tap)};
        table.terms()[t] = channel * s.R * s.S + tap_number(g, s.S, tap);
    }
}

__device__ __forceinline__ unsigned outside_bits(const Axis& axis, int u, int extent) {
    unsigned bits = 0;
    for (int i = 0, position = u * axis.scale + axis.offset; i < axis.count; ++i, position += axis.delta)
        bits |= static_cast<unsigned>(position < 0 || position >= extent) << i;
    return bits;
}

// How a block's threads share the copies of a step: 16 bytes of weights, and values of one pixel.
template <class Tile>
struct Copies {
    static constexpr int QUADS = Tile::TILE_M / 4, WEIGHT_STEP = Tile::THREADS / QUADS;    // terms apart
    static constexpr int PIXEL_STEP = Tile::THREADS / Tile::TILE_N;
    static constexpr int WEIGHTS = Tile::TERMS / WEIGHT_STEP, PIXELS = Tile::TERMS / PIXEL_STEP;  // copies of a thread
    static_assert(WEIGHTS * WEIGHT_STEP == Tile::TERMS && PIXELS * PIXEL_STEP == Tile::TERMS, "whole copies");
    SharedFloats left, right;

    __device__ __forceinline__ void start(SharedFloats tiles) {
        left = opaque(tiles + (threadIdx.x / QUADS * Tile::PITCH_M + threadIdx.x % QUADS * 4));
        right = opaque(tiles + (Tile::RIGHT + threadIdx.x / Tile::TILE_N * Tile::PITCH_N + threadIdx.x % Tile::TILE_N));
    }
    __device__ __forceinline__ void move(int distance) {
        left += distance;
        right += distance;
    }
};

// Of whole 16 channels: one tap a step.
template <class Tile>
struct ChannelLoader : Copies<Tile> {
    using Own = Copies<Tile>;
    const Tap* taps;
    const float *weights, *source;  // of the next step, for the thread; the source even if it lies outside
    int channels;                   // floats from one copy's channel to the next
    unsigned outside;               // all bits for pixels past the last
    int tap;

    __device__ __forceinline__ void first(SharedFloats tiles) {
        this->start(tiles);
        copy();
    }
    __device__ __forceinline__ void operator()(int distance) {
        this->move(distance);
        copy();
    }
    __device__ __forceinline__ void copy() {
        const Tap at = taps[tap];  // read before any copy, which reads may not overtake
        const bool inside = (outside & at.bits) == 0;
        const float* from = source;
#pragma unroll
        for (int i = 0; i < Own::WEIGHTS; ++i)
            copy_async16(this->left + i * Own::WEIGHT_STEP * Tile::PITCH_M, weights + i * Own::WEIGHT_STEP * Tile::TILE_M, 16);
#pragma unroll
        for (int i = 0; i < Own::PIXELS; ++i, from += channels)
            copy_async4(this->right + i * Own::PIXEL_STEP * Tile::PITCH_N, from, inside);
        weights += at.weights;
        source += at.source;
        tap = at.next;
    }
};

// Of the channels left over, (channel, tap): a tap's place is looked up for every term.
template <class Tile>
struct TermLoader : Copies<Tile> {
    using Own = Copies<Tile>;
    TapTables<Tile> table;
    const float *weights, *source;  // of the current channel
    int64 weight_channel, source_channel;
    unsigned outside;
    int tap, taps, remaining;  // terms

    // The first step of all is the one that may have fewer terms.
    __device__ __forceinline__ void first(SharedFloats tiles) {
        this->start(tiles);
        const int terms = (remaining - 1) % Tile::TERMS + 1;
        copy(terms);
        go_on(terms);
    }
    __device__ __forceinline__ void operator()(int distance) {
        this->move(distance);
        copy(Tile::TERMS);
        go_on(Tile::TERMS);
    }
    __device__ __forceinline__ void copy(int terms) {
        const int weight = threadIdx.x / Own::QUADS, pixel = threadIdx.x / Tile::TILE_N;
        int numbers[Own::WEIGHTS];
        Place places[Own::PIXELS];  // read before any copy, which reads may not overtake
#pragma unroll
        for (int i = 0; i < Own::WEIGHTS; ++i) numbers[i] = table.terms()[tap + weight + i * Own::WEIGHT_STEP];
#pragma unroll
        for (int i = 0; i < Own::PIXELS; ++i) places[i] = table.places()[tap + pixel + i * Own::PIXEL_STEP];
#pragma unroll
        for (int i = 0; i < Own::WEIGHTS; ++i)
            copy_async16(this->left + i * Own::WEIGHT_STEP * Tile::PITCH_M, weights + numbers[i] * Tile::TILE_M,
                         weight + i * Own::WEIGHT_STEP < terms ? 16 : 0);
#pragma unroll
        for (int i = 0; i < Own::PIXELS; ++i)
            copy_async4(this->right + i * Own::PIXEL_STEP * Tile::PITCH_N, source + places[i].source,
                        (outside & places[i].bits) == 0 && pixel + i * Own::PIXEL_STEP < terms);
    }
    __device__ __forceinline__ void go_on(int terms) {
        remaining -= terms;
        tap += terms;
        const int channel = tap / taps;
        tap -= channel * taps;
        weights += channel * weight_channel;
        source += channel * source_channel;
    }
};

// A block's place in the work, computed anew where it is wanted, so that it takes no registers in the main loop.
struct BlockPlace {
    int row, pixel, split, phase, group;
};
template <class Tile>
__device__ __forceinline__ BlockPlace block_place(int filters, int splits) {
    const int tiles_m = ceil_div(filters, Tile::TILE_M), tile = opaque(blockIdx.x), part = opaque(blockIdx.y);
    return {tile % tiles_m * Tile::TILE_M, tile / tiles_m * Tile::TILE_N, part % splits, part / splits, opaque(blockIdx.z)};
}

template <class Tile, bool BACKWARD>
struct Convolution {
    const float *x, *packed, *bias;
    float* y;
    const ConvShape& shape;
    const ImageStrides& strides;
    const ConvProduct& product;
    TapTables<Tile> table;

    // The thread's pixel in channel 0 of the block's group, and the bits of what is outside.
    __device__ __forceinline__ const float* pixel(const Gather& g, const BlockPlace& at, unsigned& outside) const {
        int rest, v;
        const int number = at.pixel + threadIdx.x % Tile::TILE_N;
        const int n = divide(number, product.by_image, rest), u = divide(rest, product.by_row, v);
        outside = outside_bits(g.rows, u, g.height) | outside_bits(g.columns, v, g.width) << g.rows.count;
        if (n >= shape.N) outside = ~0u;
        return x + n * strides.image + static_cast<int64>(at.group) * g.channels * strides.channel +
               (u * g.rows.scale + g.rows.offset) * strides.row + (v * g.columns.scale + g.columns.offset) * strides.column;
    }
    __device__ __forceinline__ const float* weights(const Gather& g, const BlockPlace& at) const {
        const int64 tile = at.group * ceil_div(g.filters, Tile::TILE_M) + at.row / Tile::TILE_M;
        return packed + tile * g.channels * shape.R * shape.S * Tile::TILE_M + threadIdx.x % Copies<Tile>::QUADS * 4;
    }

    __device__ __forceinline__ void add_channels(int step, int steps, SharedFloats tiles, Sums<Tile>& sums) const {
        const BlockPlace at = place();
        const Gather g = make_gather<BACKWARD>(shape, at.phase);
        const int count = g.rows.count * g.columns.count, chunk = step / count, tap = step % count;
        ChannelLoader<Tile> load;
        const float* from = pixel(g, at, load.outside);
        load.taps = table.taps();
        load.tap = tap;
        load.channels = static_cast<int>(Copies<Tile>::PIXEL_STEP * strides.channel);
        load.source = from + (chunk * Tile::TERMS + static_cast<int>(threadIdx.x / Tile::TILE_N)) * strides.channel +
                      source_offset(g, strides, tap);
        const int64 term = (static_cast<int64>(chunk) * shape.R * shape.S + tap_number(g, shape.S, tap)) * Tile::TERMS;
        load.weights = weights(g, at) + (term + threadIdx.x / Copies<Tile>::QUADS) * Tile::TILE_M;
        multiply_steps<Tile>(load, steps, tiles, sums);
    }

    __device__ __forceinline__ void add_terms(int step, int steps, SharedFloats tiles, Sums<Tile>& sums) const {
        const BlockPlace at = place();
        const Gather g = make_gather<BACKWARD>(shape, at.phase);
        const int whole = g.channels - g.channels % Tile::TERMS, taps = g.rows.count * g.columns.count;
        __syncthreads();  // the table and the stages may be in use
        fill_places(table, g, shape, strides);
        __syncthreads();
        const int total = (g.channels - whole) * taps;
        const int begin = step ? step * Tile::TERMS - (-total & (Tile::TERMS - 1)) : 0, channel = begin / taps;
        TermLoader<Tile> load;
        load.table = table;
        load.source = pixel(g, at, load.outside) + (whole + channel) * strides.channel;
        load.weight_channel = static_cast<int64>(shape.R) * shape.S * Tile::TILE_M;
        load.weights = weights(g, at) + (whole + channel) * load.weight_channel;
        load.source_channel = strides.channel;
        load.tap = begin - channel * taps;
        load.taps = taps;
        load.remaining = total - begin;
        multiply_steps<Tile>(load, steps, tiles, sums);
    }

    __device__ __forceinline__ BlockPlace place() const {
        return block_place<Tile>((BACKWARD ? shape.C : shape.K) / shape.groups, product.splits);
    }

    __device__ __forceinline__ void store(Sums<Tile>& sums, bool add, bool last) const {
        const BlockPlace at = place();
        const Gather g = make_gather<BACKWARD>(shape, at.phase);
        const int64 plane = static_cast<int64>(g.out_height) * g.out_width;
        const int group = at.group;
        float* target = y + at.split * product.split_stride + group * g.filters * plane;
        const bool vectors = product.by_image[0] % 4 == 0 && g.step_h * g.step_w == 1 && is_aligned16(target);
#pragma unroll
        for (int block = 0; block < Tile::GROUPS_N; ++block) {
            const int out = at.pixel + thread_column<Tile>() + block * GROUP_COLUMNS;
            int64 places_out[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                int inner, out_v;
                const int image = divide(out + j, product.by_image, inner), out_u = divide(inner, product.by_row, out_v);
                const int h = out_u * g.step_h + g.phase_h, q = out_v * g.step_w + g.phase_w;
                const bool exists = image < shape.N && h < g.out_height && q < g.out_width;
                places_out[j] = exists ? image * plane * g.filters * shape.groups + h * g.out_width + q : -1;
            }
            store_columns<Tile>(sums, block, target, places_out, vectors, plane, at.row + thread_row<Tile>(), g.filters,
                                last && bias ? bias + group * g.filters : nullptr, add, last && product.relu);
        }
    }

    // Steps of the block: begin … end, of which those below `whole` have 16 channels of one tap.
    struct Steps {
        int begin, whole, end;
    };
    __device__ __forceinline__ Steps steps() const {
        const BlockPlace at = place();
        const Gather g = make_gather<BACKWARD>(shape, at.phase);
        const int taps = g.rows.count * g.columns.count, whole = g.channels / Tile::TERMS * taps;
        const int begin = at.split * (product.split_terms / Tile::TERMS);
        const int all = whole + ceil_div(g.channels % Tile::TERMS * taps, Tile::TERMS);
        return {begin, whole, min(all, begin + product.split_terms / Tile::TERMS)};
    }

    __device__ __forceinline__ void run(SharedFloats tiles) const {
        fill_taps<Tile>(table.taps(), make_gather<BACKWARD>(shape, place().phase), shape, strides);
        __syncthreads();
        for (int done = steps().begin;;) {
            Sums<Tile> sums = {};
            Steps s = steps();
            int until = min(min(done + Tile::CHUNK_STEPS, s.end), s.whole);
            if (done < until) add_channels(done, until - done, tiles, sums);
            s = steps();
            const int first = max(done, s.whole);
            until = min(done + Tile::CHUNK_STEPS, s.end);
            if (first < until) add_terms(first - s.whole, until - first, tiles, sums);
            s = steps();
            const bool last = done + Tile::CHUNK_STEPS >= s.end;
            store(sums, done > s.begin, last);
            if (last) break;
            done += Tile::CHUNK_STEPS;
        }
    }
};
