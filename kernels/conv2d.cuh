// The integers of a convolution, in the order of ConvShape.flat (gpucnn/ops/shapes.py): x (N,C,H,W),
// w (K,C/groups,R,S), y (N,K,P,Q).
#pragma once
#include "common.cuh"

struct ConvShape {
    int N, C, H, W, K, R, S, P, Q;
    int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    int groups;
};
