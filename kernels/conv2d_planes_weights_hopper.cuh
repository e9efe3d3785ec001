// The weight gradient of convolutions of NCHW images on Hopper's tensor cores (tile_hopper.cuh), 16 bits, stride 1, one
// group; nothing is transposed. For sm_90a alone; conv2d_planes_bfloat16_hopper.cu and conv2d_planes_float16_hopper.cu.
//
// conv2d_hopper_plane_weights: c (filters, columns) = gy · patchesᵀ. Terms are pixels of the output, 64 of a row at a
// time, which lie side by side in both operands; columns are (tap, channels in slabs of 64), so every slab of patches is
// one box of the images, shifted by its tap. Each split has a plane of float32 sums, in which a tap takes whole slabs;
// conv2d_hopper_add adds them in their order, so bits do not depend on timing.
// What hangs over the end of a row is zeros of gy, times the images' last columns: an infinity or NaN there reaches all
// taps of its channel.
#pragma once
#include "tile_hopper.cuh"

struct PlaneSteps {
    int rows, segments;              // of an image of the output, and of a row, 64 pixels each
    int taps, columns, slabs;        // of a filter: its taps, those of a row; slabs of 64 channels
    int first_h, first_w;            // where in the images the window of pixel (0, 0) begins
    int dilation_h, dilation_w;
};

template <class Tile>
struct PlanePatches {
    const TensorMap &gradients, &images;
    const GemmShape& shape;
    const PlaneSteps& steps;
    int image, row, segment, filter, slab;

    __device__ __forceinline__ void start(const Position& at) {
        const int step = at.split * (shape.split_terms / Tile::TERMS), line = step / steps.segments;
        image = line / steps.rows, row = line - image * steps.rows, segment = step - line * steps.segments;
        filter = at.row, slab = at.column / Tile::SLAB;
    }
    __device__ __forceinline__ void operator()(unsigned char* left, unsigned char* right, Barrier* full) {
        const int pixel = segment * Tile::TERMS, from[4] = {pixel, filter, row, image};
        tma_load<4>(left, gradients, full, from);
#pragma unroll
        for (int i = 0; i < Tile::TILE_N / Tile::SLAB; ++i) {
            const int number = min(slab + i, steps.taps * steps.slabs - 1);  // past the last, any: not stored
            const int tap = number / steps.slabs, r = tap / steps.columns, s = tap - r * steps.columns;
            const int at[4] = {pixel + steps.first_w + s * steps.dilation_w, (number - tap * steps.slabs) * Tile::SLAB,
                               row + steps.first_h + r * steps.dilation_h, image};
            tma_load<4>(right + i * Tile::SLAB_BYTES, images, full, at);
        }
        if (++segment == steps.segments) segment = 0, ++row;
        if (row == steps.rows) row = 0, ++image;
    }
};
