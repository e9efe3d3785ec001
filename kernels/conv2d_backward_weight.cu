// Gradient of the weights by implicit GEMM: gw[k,c,r,s] = Σ_{n,p,q} gy[n,k,p,q] · x[n, c, p·stride + r·dilation − padding, …].
// Rows are filters, columns are the weights of a filter, terms are the pixels of all images. gw is overwritten.
//
// Layouts: x (N,C,H,W) and gy (N,K,P,Q) by strides; gw (K,C/groups,R,S) contiguous. Grid: x tiles of filters, then of
// columns; y splits of the pixels; z groups.
// - conv2d_backward_weight: columns (c,r,s); each has its place in a table. With splits, gw is a workspace
//   (splits,K,C/groups,R,S), which gemm_add_splits sums.
// - conv2d_backward_weight_channels, for multiples of 64 channels a group: columns (r,s,c), so that 64 of them share a tap
//   and a pixel is compared with the image's borders once for them. gw is a workspace (splits,K,R,S,C/groups), which
//   conv2d_add_weight_planes sums and brings into order.
#include "conv2d_backward_weight.cuh"

#define CONV2D_BACKWARD_WEIGHT(name, Columns, M, N, STAGES, groups_m, groups_n, threads, blocks)                   \
    KERNEL(threads, blocks) conv2d_##name##_##M##x##N(const float* x, const float* gy, float* gw, ConvShape shape, \
                                                      ImageStrides x_strides, ImageStrides gy_strides,             \
                                                      ConvProduct product) {                                       \
        using Tile = Tiling<M, N, 16, groups_m, groups_n>;                                                         \
        STAGES(Tile, stages);                                                                                      \
        SHARED(Column, table, [Columns<Tile>::PLACES]);                                                            \
        WeightGradient<Tile, Columns<Tile>>{x, gy, gw, shape, x_strides, gy_strides, product, table}.run(          \
            shared_floats(stages));                                                                                \
    }

CONV2D_BACKWARD_WEIGHT(backward_weight, AnyColumns, 128, 256, DYNAMIC_STAGES, 2, 4, 256, 1)
CONV2D_BACKWARD_WEIGHT(backward_weight, AnyColumns, 128, 128, STATIC_STAGES, 2, 2, 256, 2)
CONV2D_BACKWARD_WEIGHT(backward_weight, AnyColumns, 64, 128, STATIC_STAGES, 2, 2, 128, 3)
CONV2D_BACKWARD_WEIGHT(backward_weight, AnyColumns, 64, 64, STATIC_STAGES, 2, 1, 128, 4)
CONV2D_BACKWARD_WEIGHT(backward_weight_channels, ChannelColumns, 128, 256, DYNAMIC_STAGES, 2, 4, 256, 1)
CONV2D_BACKWARD_WEIGHT(backward_weight_channels, ChannelColumns, 128, 128, STATIC_STAGES, 2, 2, 256, 2)
CONV2D_BACKWARD_WEIGHT(backward_weight_channels, ChannelColumns, 64, 128, STATIC_STAGES, 2, 2, 128, 3)
CONV2D_BACKWARD_WEIGHT(backward_weight_channels, ChannelColumns, 64, 64, STATIC_STAGES, 2, 1, 128, 4)
