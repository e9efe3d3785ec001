// Convolutions of channels-last images on Hopper's tensor cores (tile_hopper.cuh), 16 bits, one group. For sm_90a alone.
//
// conv2d_hopper_images: c (pixels, filters) = images · weights. Rows are the pixels of the output (n,p,q), so c is the
// channels-last output; terms are (64 channels, tap, channel of the 64). A map of the kind im2col brings the 128 pixels'
// values of one tap and 64 channels in one copy, zeros beyond the borders, whatever rows and images the pixels reach over.
// Weights are packed (filter, tap, channel), a dimension each, so channels past the last are zeros in both operands.
// - forward: images x and the weights (K,R,S,C)
// - backward_input, stride 1: images gy, whose windows are those of the filter turned round, and weights (C,R,S,K)
// Then bias, residual (of c's type and strides, or null) and ReLU.
//
// conv2d_hopper_weights: c (filters, columns) = gyᵀ · patches. Terms are pixels, 64 a step; columns are (tap, channels in
// slabs of 64), so every slab of patches is one copy. Each split has a plane of float32 sums, in which a tap takes whole
// slabs; conv2d_hopper_add adds them in their order, so bits do not depend on timing.
#include "division.cuh"
#include "tile_hopper.cuh"

struct ImageWalk {
    int taps, columns, slabs;                   // of a filter: its taps, those of a row; slabs of 64 channels
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
    int filter, slab, tap, row, column;  // the tap, and its row and column of the filter

    __device__ __forceinline__ void start(const Position& at) {
        place = image_place(walk, at.row);
        filter = at.column;
        const int step = at.split * (shape.split_terms / Tile::TERMS);
        slab = step / walk.taps, tap = step % walk.taps;
        row = tap / walk.columns, column = tap % walk.columns;
    }
    __device__ __forceinline__ void operator()(unsigned char* left, unsigned char* right, Barrier* full) {
        const int channel = slab * Tile::TERMS;
        const int pixels[4] = {channel, place.w, place.h, place.image}, filters[3] = {channel, tap, filter};
        tma_load_im2col(left, images, full, pixels, column * walk.dilation_w, row * walk.dilation_h);
        tma_load<3>(right, weights, full, filters);
        ++tap;
        if (++column == walk.columns) column = 0, ++row;
        if (tap == walk.taps) tap = row = 0, ++slab;
    }
};

template <class Tile>
struct PatchTiles {
    const TensorMap &gradients, &images;
    const GemmShape& shape;
    const ImageWalk& walk;
    int pixel, filter, slab;

    __device__ __forceinline__ void start(const Position& at) {
        pixel = at.split * shape.split_terms, filter = at.row, slab = at.column / Tile::SLAB;
    }
    __device__ __forceinline__ void operator()(unsigned char* left, unsigned char* right, Barrier* full) {
#pragma unroll
        for (int i = 0; i < Tile::TILE_M / Tile::SLAB; ++i) {
            const int at[3] = {filter + i * Tile::SLAB, pixel, 0};
            tma_load<3>(left + i * Tile::SLAB_BYTES, gradients, full, at);
        }
        const ImagePlace place = image_place(walk, pixel);
        for (int i = 0; i < Tile::TILE_N / Tile::SLAB; ++i) {
            const int number = min(slab + i, walk.taps * walk.slabs - 1);  // past the last, any: its sums are not stored
            const int tap = number / walk.slabs, row = tap / walk.columns;
            const int at[4] = {number % walk.slabs * Tile::SLAB, place.w, place.h, place.image};
            tma_load_im2col(right + i * Tile::SLAB_BYTES, images, full, at, (tap - row * walk.columns) * walk.dilation_w,
                            row * walk.dilation_h);
        }
        pixel += Tile::TERMS;
    }
};

// gw[k,c,tap] = Σ planes (splits,K,taps,pitch) in their order, of whose pitch the first `channels` count; `count` weights.
template <class Output>
__device__ __forceinline__ void add_planes(const float* planes, Output* gw, int splits, int channels, int pitch, int taps,
                                           int count) {
    const int64 plane = static_cast<int64>(count / (channels * taps)) * taps * pitch;
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) {
        const unsigned tap = i % taps, rest = i / taps, channel = rest % channels, filter = rest / channels;
        const float* from = planes + (static_cast<int64>(filter) * taps + tap) * pitch + channel;
        float sum = 0.0f;
#pragma unroll 4
        for (int split = 0; split < splits; ++split) sum += from[split * plane];
        gw[i] = round_to<Output>(sum);
    }
}

#define CONV2D_ADD(output, Output)                                                                                        \
    KERNEL(256, 4) conv2d_hopper_add_##output(const float* planes, Output* gw, int splits, int channels, int pitch, \
                                                     int taps, int count) {                                               \
        add_planes(planes, gw, splits, channels, pitch, taps, count);                                                     \
    }

CONV2D_ADD(bfloat16, bfloat16)
CONV2D_ADD(float16, float16)
CONV2D_ADD(float32, float)

// packed[f,tap,c] = weights[f,c,tap] by strides, for taps in their order or, `turned`, from the last on; `count` weights.
template <class Source, class Type>
__device__ __forceinline__ void pack_weights(const Source* weights, Type* packed, int channels, int taps,
                                             int64 filter_stride, int64 channel_stride, int turned, int count) {
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) {
        const unsigned channel = i % channels, rest = i / channels, tap = rest % taps, filter = rest / taps;
        const int64 from = filter * filter_stride + channel * channel_stride + (turned ? taps - 1 - tap : tap);
        packed[i] = round_to<Type>(to_float(weights[from]));
    }
}

#define CONV2D_PACK(source, Source, type)                                                                              \
    KERNEL(256, 4) conv2d_hopper_pack_##source##_##type(const Source* weights, type* packed, int channels, int taps,   \
                                                        int64 filter_stride, int64 channel_stride, int turned,         \
                                                        int count) {                                                   \
        pack_weights(weights, packed, channels, taps, filter_stride, channel_stride, turned, count);                   \
    }

CONV2D_PACK(float32, float, bfloat16)
CONV2D_PACK(float32, float, float16)
CONV2D_PACK(bfloat16, bfloat16, bfloat16)
CONV2D_PACK(float16, float16, float16)

#define CONV2D_IMAGES(type, M, N, stages)                                                                             \
    KERNEL(384, 1) conv2d_hopper_images_##type##_##M##x##N(                                                           \
        TENSOR_MAP images, TENSOR_MAP weights, TENSOR_MAP c, type* target, const float* bias, const type* residual,   \
        GemmShape shape, ImageWalk walk, int tiles, int mapped) {                                                     \
        using Tile = HopperTiling<type, type, M, N, stages, false, false>;                                            \
        hopper_product<Tile>(ImageTiles<Tile>{images, weights, shape, walk}, c, target, bias, residual, shape, tiles, \
                             1, mapped);                                                                              \
    }
#define CONV2D_WEIGHTS(type, M, N, stages)                                                                            \
    KERNEL(384, 1) conv2d_hopper_weights_##type##_##M##x##N(TENSOR_MAP gradients, TENSOR_MAP images, TENSOR_MAP c,    \
                                                            GemmShape shape, ImageWalk walk, int tiles) {            \
        using Tile = HopperTiling<type, float, M, N, stages, true, true>;                                            \
        hopper_product<Tile>(PatchTiles<Tile>{gradients, images, shape, walk}, c, nullptr, nullptr, nullptr, shape,  \
                             tiles, 1, true);                                                                        \
    }

CONV2D_IMAGES(bfloat16, 128, 256, 4)
CONV2D_IMAGES(bfloat16, 128, 128, 6)
CONV2D_IMAGES(float16, 128, 256, 4)
CONV2D_IMAGES(float16, 128, 128, 6)
CONV2D_WEIGHTS(bfloat16, 128, 256, 4)
CONV2D_WEIGHTS(bfloat16, 128, 128, 6)
CONV2D_WEIGHTS(float16, 128, 256, 4)
CONV2D_WEIGHTS(float16, 128, 128, 6)
