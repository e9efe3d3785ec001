// Forward convolution and its gradient of the input as one implicit matrix product: rows are filters (of one group),
// columns are output pixels of all images, terms are (channel, tap), whose products no memory ever holds.
//
// Terms are numbered (channels of 16, tap, channel), as conv2d_pack_weights.cu orders the weights: a step's 16 terms are
// one tap of 16 channels, so a thread tests once whether its pixel's tap is inside the image, and its 16 bytes of weights
// follow each other. A table in shared memory leads from tap to tap. Channels left over are numbered (channel, tap), and
// the table then has a tap's place for every term; this also serves first layers, which have few channels.
//
// Taps have two bits, of their row and their column, and a pixel's mask has the bits of rows and columns that are outside
// the image: padding costs one comparison and no branch.
#pragma once
#include "conv2d_taps.cuh"

// How a block's threads share the copies of a step: 16 bytes of weights, and values of one pixel.
template <class Tile>
struct Copies {
    static constexpr int QUADS = Tile::TILE_M / 4, WEIGHT_STEP = Tile::THREADS / QUADS;    // terms apart
    using Pixels = Spread<Tile, Tile::THREADS / Tile::TILE_N>;
    static constexpr int WEIGHTS = Tile::TERMS / WEIGHT_STEP, PIXELS = Pixels::COPIES;  // copies of a thread
    static_assert(WEIGHTS * WEIGHT_STEP == Tile::TERMS, "whole copies");
    static_assert(Tile::SWAP == 0 || WEIGHT_STEP == 2 * Tile::SWAP, "copies of a thread keep to the order of its first");
    SharedFloats left, right;

    __device__ __forceinline__ void start(SharedFloats tiles) {
        left = opaque(tiles + left_place<Tile>(threadIdx.x / QUADS, threadIdx.x % QUADS * 4));
        right = opaque(tiles + right_place<Tile>(pixel_term(), threadIdx.x % Tile::TILE_N));
    }
    static __device__ __forceinline__ int pixel_term() { return Pixels::term(threadIdx.x / Tile::TILE_N); }
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
            copy_async16(this->left + i * Own::WEIGHT_STEP * Tile::PITCH_M,
                         weights + i * Own::WEIGHT_STEP * Tile::TILE_M, 16);
#pragma unroll
        for (int i = 0; i < Own::PIXELS; ++i) {
            copy_async4(this->right + Own::Pixels::further(i) * Tile::PITCH_N, from, inside);
            from += (Own::Pixels::further(i + 1) - Own::Pixels::further(i)) / Own::Pixels::further(1) * channels;
        }
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
        const int weight = threadIdx.x / Own::QUADS, pixel = Own::pixel_term();
        int numbers[Own::WEIGHTS];
        Place places[Own::PIXELS];  // read before any copy, which reads may not overtake
#pragma unroll
        for (int i = 0; i < Own::WEIGHTS; ++i) numbers[i] = table.terms()[tap + weight + i * Own::WEIGHT_STEP];
#pragma unroll
        for (int i = 0; i < Own::PIXELS; ++i) places[i] = table.places()[tap + pixel + Own::Pixels::further(i)];
#pragma unroll
        for (int i = 0; i < Own::WEIGHTS; ++i)
            copy_async16(this->left + i * Own::WEIGHT_STEP * Tile::PITCH_M, weights + numbers[i] * Tile::TILE_M,
                         weight + i * Own::WEIGHT_STEP < terms ? 16 : 0);
#pragma unroll
        for (int i = 0; i < Own::PIXELS; ++i)
            copy_async4(this->right + Own::Pixels::further(i) * Tile::PITCH_N, source + places[i].source,
                        (outside & places[i].bits) == 0 && pixel + Own::Pixels::further(i) < terms);
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
    return {tile % tiles_m * Tile::TILE_M, tile / tiles_m * Tile::TILE_N, part % splits, part / splits,
            opaque(blockIdx.z)};
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
        const int64 h = u * g.rows.scale + g.rows.offset, w = v * g.columns.scale + g.columns.offset;
        return x + n * strides.image + static_cast<int64>(at.group) * g.channels * strides.channel + h * strides.row +
               w * strides.column;
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
        load.channels = static_cast<int>(Copies<Tile>::Pixels::further(1) * strides.channel);
        load.source = from + (chunk * Tile::TERMS + Copies<Tile>::pixel_term()) * strides.channel +
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
        constexpr int WIDTH = Tile::WIDTH;
        const bool vectors =
            product.by_image[0] % WIDTH == 0 && g.step_h * g.step_w == 1 && is_aligned<WIDTH>(target);
#pragma unroll
        for (int block = 0; block < Tile::BLOCKS; ++block) {
            const int out = at.pixel + thread_column<Tile>() + Tile::column(block);
            int64 places_out[WIDTH];
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) {
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
