// What convolutions share: x (N,C,H,W), w (K,C/groups,R,S), y (N,K,P,Q), as integers.
#pragma once
#include "division.cuh"

// In the order of ConvShape.flat (gpucnn/ops/shapes.py).
struct ConvShape {
    int N, C, H, W, K, R, S, P, Q;
    int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    int groups;
};

// Floats from one element to the next along each axis of a tensor of images, whatever its layout.
struct ImageStrides {
    int64 image, channel, row, column;
};
__device__ __forceinline__ ImageStrides contiguous(int channels, int height, int width) {
    const int64 area = static_cast<int64>(height) * width;
    return {channels * area, area, width, 1};
}
