// Convolutions of channels-last images on Hopper's tensor cores (tile_hopper.cuh), 16 bits. For sm_90a alone;
// conv2d_bfloat16_hopper.cu and conv2d_float16_hopper.cu.
//
// conv2d_hopper_images: c (pixels, filters) = images · weights. Rows are the pixels of the output (n,p,q), so c is the
// channels-last output; terms are (64 channels, tap, channel of the 64). A map of the kind im2col brings the 128 pixels'
// values of one tap and 64 channels in one copy, zeros beyond the borders, whatever rows and images the pixels reach over.
// Weights are packed (filter, tap, channel), a dimension each, so channels past the last are zeros in both operands.
// Pairs of blocks share them: each brings half of a tile's filters to both.
// - forward: images x and the weights (K,R,S,C)
// - backward_input, stride 1: images gy, whose windows are those of the filter turned round, and weights (C,R,S,K)
// Then bias, residual (of c's type and strides, or null) and ReLU. Or planes of float32 sums, where the terms are split,
// which gemm_hopper_add adds in their order.
//
// conv2d_hopper_weights: c (filters, columns) = gyᵀ · patches. Terms are pixels, 64 a step; columns are (tap, channels in
// slabs of 64), so every slab of patches is one copy. Each split has a plane of float32 sums, in which a tap takes whole
// slabs; conv2d_hopper_add adds them in their order, so bits do not depend on timing. Pairs of blocks share the patches.
//
// Groups are batches of the product. Those of few channels are bundled: a bundle of them counts as one group of up to 64
// channels, whose weights are zeros between its members. A slab that a group does not fill holds the next one's channels
// too, times zeros: an infinity or NaN there becomes a NaN here. Gradients of weights have no such neighbours.
#pragma once
#include "division.cuh"
#include "tile_hopper.cuh"

struct ImageWalk {
    int taps, columns, slabs, group_channels;   // of a filter: its taps, those of a row; slabs of 64 channels, channels
    int stride_h, stride_w, first_h, first_w;   // the place in the image of pixel (0, 0), and from pixel to pixel
    int dilation_h, dilation_w;
    unsigned by_image[3], by_row[3];            // divisors: pixels of an image and of a row of the output
};

// Where a pixel of the output stands in the images.
struct ImagePlace {
    int image, h, w;
};
__device__ __forceinline__ ImagePlace image_place(const ImageWalk& walk, int pixel) {
    int rest, q;
    const int image = divide(pixel, walk.by_image, rest), p = divide(rest, walk.by_row, q);
    return {image, walk.first_h + p * walk.stride_h, walk.first_w + q * walk.stride_w};
}

template <class Tile>
struct ImageTiles {
    const TensorMap &images, &weights;
    const GemmShape& shape;
    const ImageWalk& walk;
    ImagePlace place;
    int filter, first, slab, tap, row, column;  // the group's first channel; the tap, and its row and column of the filter

    __device__ __forceinline__ void start(const Position& at) {
        place = image_place(walk, at.row);
        filter = at.batch * shape.N + at.column, first = at.batch * walk.group_channels;
        const int step = at.split * (shape.split_terms / Tile::TERMS);
        slab = step / walk.taps, tap = step % walk.taps;
        row = tap / walk.columns, column = tap % walk.columns;
    }
    __device__ __forceinline__ void operator()(unsigned char* left, unsigned char* right, Barrier* full) {
        const int channel = slab * Tile::TERMS;
        const int start = share_start<Tile>(), filters[3] = {channel, tap, filter + start};
        const int pixels[4] = {first + channel, place.w, place.h, place.image};
        tma_load_im2col(left, images, full, pixels, column * walk.dilation_w, row * walk.dilation_h);
        load_box<Tile::CLUSTER>(right + start * LINE_BYTES, weights, full, filters);
        ++tap;
        if (++column == walk.columns) column = 0, ++row;
        if (tap == walk.taps) tap = row = 0, ++slab;
    }
};

// Pixels of one tap to this block alone, or to all BLOCKS of the cluster.
template <int BLOCKS>
__device__ __forceinline__ void load_walk(unsigned char* target, const TensorMap& map, Barrier* full, const int (&at)[4],
                                          int offset_w, int offset_h) {
    if constexpr (BLOCKS == 1)
        tma_load_im2col(target, map, full, at, offset_w, offset_h);
    else
        tma_load_im2col_multicast(target, map, full, at, offset_w, offset_h, (1 << BLOCKS) - 1);
}

template <class Tile>
struct PatchTiles {
    const TensorMap &gradients, &images;
    const GemmShape& shape;
    const ImageWalk& walk;
    int pixel, filter, first, slab;  // the group's first channel

    __device__ __forceinline__ void start(const Position& at) {
        pixel = at.split * shape.split_terms, slab = at.column / Tile::SLAB;
        filter = at.batch * shape.M + at.row, first = at.batch * walk.group_channels;
    }
    __device__ __forceinline__ void operator()(unsigned char* left, unsigned char* right, Barrier* full) {
#pragma unroll
        for (int i = 0; i < Tile::TILE_M / Tile::SLAB; ++i) {
            const int at[3] = {filter + i * Tile::SLAB, pixel, 0};
            tma_load<3>(left + i * Tile::SLAB_BYTES, gradients, full, at);
        }
        const ImagePlace place = image_place(walk, pixel);
        const int start = share_start<Tile>() / Tile::SLAB;
        for (int i = start; i < start + Tile::SHARE / Tile::SLAB; ++i) {
            const int number = min(slab + i, walk.taps * walk.slabs - 1);  // past the last, any: its sums are not stored
            const int tap = number / walk.slabs, row = tap / walk.columns;
            const int at[4] = {first + number % walk.slabs * Tile::SLAB, place.w, place.h, place.image};
            load_walk<Tile::CLUSTER>(right + i * Tile::SLAB_BYTES, images, full, at,
                                     (tap - row * walk.columns) * walk.dilation_w, row * walk.dilation_h);
        }
        pixel += Tile::TERMS;
    }
};

struct WeightPlanes {
    int splits, channels, pitch, taps;  // of a group; the pitch of a tap's channels
    int filters, bundle, count;         // of a group; groups of a bundle; all weights
};

// gw[k,c,tap] = Σ planes (splits,K,taps,pitch) in their order, where a tap's channels are those of a bundle.
template <class Output>
__device__ __forceinline__ void add_planes(const float* planes, Output* gw, const WeightPlanes& shape) {
    const int64 plane = static_cast<int64>(shape.count / (shape.channels * shape.taps)) * shape.taps * shape.pitch;
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < shape.count; i += gridDim.x * 256) {
        const unsigned tap = i % shape.taps, rest = i / shape.taps;
        const unsigned filter = rest / shape.channels, member = filter / shape.filters % shape.bundle;
        const unsigned channel = member * shape.channels + rest % shape.channels;
        const float* from = planes + (static_cast<int64>(filter) * shape.taps + tap) * shape.pitch + channel;
        float sum = 0.0f;
#pragma unroll 4
        for (int split = 0; split < shape.splits; ++split) sum += from[split * plane];
        gw[i] = round_to<Output>(sum);
    }
}

struct WeightOrder {
    int channels, taps, turned;         // of a bundle
    int filters, members, bundle, count;  // filters and channels of a group; groups of a bundle; all packed weights
    int64 group_stride, filter_stride, channel_stride;
};

// packed[f,tap,c] = weights[f,c,tap] by strides, for taps in their order or, `turned`, from the last on; c goes over the
// channels of a bundle, of which those of other groups than f's are zeros.
template <class Source, class Type>
__device__ __forceinline__ void pack_weights(const Source* weights, Type* packed, const WeightOrder& order) {
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < order.count; i += gridDim.x * 256) {
        const unsigned channel = i % order.channels, rest = i / order.channels;
        const unsigned tap = rest % order.taps, filter = rest / order.taps, group = filter / order.filters;
        const int64 from = group * order.group_stride + filter % order.filters * order.filter_stride +
                           channel % order.members * order.channel_stride + (order.turned ? order.taps - 1 - tap : tap);
        const bool own = group % order.bundle == channel / order.members;
        packed[i] = round_to<Type>(own ? to_float(weights[from]) : 0.0f);
    }
}
