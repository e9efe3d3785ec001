// Float32 convolution with float32's errors on Hopper's tensor cores (tile_float32_hopper.cuh), one group. For sm_90a alone.
//
// c[n] (filters, pixels) = weights · patchesᵀ for each image n, so c is the output as (N,K,P,Q); then bias of each filter
// and ReLU. c is overwritten. Terms are (32 channels, tap, channel of the 32). Images and weights come as parts
// (split_hopper.cu): images (part and image, h, w, channel), whatever order they had before, by a map of the kind im2col,
// which brings a tap's 32 channels of 128 pixels of one part; weights (part, filter, tap, channel), all parts in one copy.
// Pixels past an image's last are others', and not stored.
// - forward: images x, weights by filter
// - backward_input, stride 1: images gy, weights by channel of x, with the last tap first (`turned`)
#include "division.cuh"
#include "tile_float32_hopper.cuh"

struct PartWalk {
    int images, taps, columns, turned;         // of a part; of a filter: its taps, those of a row
    int stride_h, stride_w, first_h, first_w;  // the place in the image of pixel (0, 0), and from pixel to pixel
    int dilation_h, dilation_w;
    unsigned by_row[3];                        // divisor: pixels of a row of the output
};

template <class Tile>
struct FilterAndImageParts {
    const TensorMap &weights, &images;
    const GemmShape& shape;
    const PartWalk& walk;
    int filter, image, h, w;
    int channel, tap, row, column;  // the tap, and its row and column of the filter

    __device__ __forceinline__ void start(const Position& at) {
        int q;
        const int p = divide(at.column, walk.by_row, q);
        filter = at.row, image = at.batch;
        h = walk.first_h + p * walk.stride_h, w = walk.first_w + q * walk.stride_w;
        channel = tap = row = column = 0;
    }
    __device__ __forceinline__ void operator()(unsigned char* left, unsigned char* right, Barrier* full) {
        const int at_weights[4] = {channel, walk.turned ? walk.taps - 1 - tap : tap, filter, 0};
        tma_load<4>(left, weights, full, at_weights);
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            const int at[4] = {channel, w, h, image + part * walk.images};
            tma_load_im2col(right + part * Tile::RIGHT_PART, images, full, at, column * walk.dilation_w,
                            row * walk.dilation_h);
        }
        ++tap;
        if (++column == walk.columns) column = 0, ++row;
        if (tap == walk.taps) tap = row = 0, channel += Tile::TERMS;
    }
};

KERNEL(384, 1) conv2d_hopper_float32_tensor_128x128(TENSOR_MAP weights, TENSOR_MAP images, TENSOR_MAP c, float* target,
                                                    const float* bias, GemmShape shape, PartWalk walk, int tiles,
                                                    int mapped) {
    using Load = FilterAndImageParts<PartTiling>;
    product_of_parts<PartTiling>(Load{weights, images, shape, walk}, c, target, bias, nullptr, shape, tiles,
                                 walk.images, mapped);
}
