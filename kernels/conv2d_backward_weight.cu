// Gradient of the weights by implicit GEMM: gw[k,c,r,s] = Σ_{n,p,q} gy[n,k,p,q] · x[n, c, p·stride + r·dilation − padding, …].
// Rows are filters, columns are (c,r,s), terms are the pixels of all images. gw is overwritten.
//
// Layouts: x (N,C,H,W) and gy (N,K,P,Q) by strides; gw (K,C/groups,R,S) contiguous. Grid: x tiles of filters, then of
// columns; y splits of the pixels; z groups. With splits, gw is a workspace (splits,K,C/groups,R,S), which
// gemm_add_splits sums.
//
// Eight lanes read eight neighbouring pixels of one row or column, a sector of 32 bytes. Each thread walks along the
// pixels in steps of 8 by additions with carries, without dividing.
#include "conv2d_gemm.cuh"

struct PixelWalk {
    int n, p, q;
    int step_n, step_p, step_q;

    __device__ __forceinline__ PixelWalk(int pixel, int step, const ConvShape& shape, const ConvProduct& product) {
        int rest;
        n = divide(pixel, product.by_image, rest);
        p = divide(rest, product.by_row, q);
        step_n = divide(step, product.by_image, rest);
        step_p = divide(rest, product.by_row, step_q);
    }
    __device__ __forceinline__ void advance(const ConvShape& shape) {
        q += step_q;
        const bool next_row = q >= shape.Q;
        if (next_row) q -= shape.Q;
        p += step_p + next_row;
        const bool next_image = p >= shape.P;
        if (next_image) p -= shape.P;
        n += step_n + next_image;
    }
};

// gy [pixel][filter]; filters past the last are zeros.
template <class Tile>
struct GradientLoader {
    const float* gy;  // of the thread's first row
    const ConvShape& shape;
    const ImageStrides& strides;
    PixelWalk walk;
    int passes;

    __device__ __forceinline__ void copy(float* tile, int left) {
        const int term = threadIdx.x % Tile::LANES, row = threadIdx.x / Tile::LANES;
        const float* pixel = gy + walk.n * strides.image +
                             (walk.p * static_cast<int>(strides.row) + walk.q * static_cast<int>(strides.column));
        const int exist = term < left ? passes : 0, stride = Tile::ROWS * static_cast<int>(strides.channel);
        float* target = tile + term * (Tile::TILE_M + PAD) + row;
#pragma unroll
        for (int pass = 0; pass < Tile::PASSES_M; ++pass)
            copy_async4(target + pass * Tile::ROWS, pixel + pass * stride, pass < exist);
        walk.advance(shape);
    }
};

// x [pixel][column]; columns past the last repeat it.
template <class Tile>
struct WindowLoader {
    const float* x;
    const ConvShape& shape;
    const ImageStrides& strides;
    PixelWalk walk;
    int columns[Tile::PASSES_N], rights[Tile::PASSES_N], downs[Tile::PASSES_N];

    __device__ __forceinline__ void copy(float* tile, int left) {
        const int term = threadIdx.x % Tile::LANES, row = threadIdx.x / Tile::LANES;
        const float* image = x + walk.n * strides.image;
        const int h = walk.p * shape.stride_h - shape.padding_h, w = walk.q * shape.stride_w - shape.padding_w;
        const int corner = h * static_cast<int>(strides.row) + w * static_cast<int>(strides.column);
        const unsigned height = term < left ? shape.H : 0;
        float* target = tile + term * (Tile::TILE_N + PAD) + row;
#pragma unroll
        for (int pass = 0; pass < Tile::PASSES_N; ++pass) {
            const bool inside = static_cast<unsigned>(h + downs[pass]) < height &&
                                static_cast<unsigned>(w + rights[pass]) < static_cast<unsigned>(shape.W);
            copy_async4(target + pass * Tile::ROWS, image + (corner + columns[pass]), inside);
        }
        walk.advance(shape);
    }
};

template <class Tile>
__device__ __forceinline__ void backward_weight(const float* x, const float* gy, float* gw, const ConvShape& shape,
                                                const ImageStrides& x_strides, const ImageStrides& gy_strides,
                                                const ConvProduct& product) {
    const int split = blockIdx.y, group = blockIdx.z;
    const int filters = shape.K / shape.groups, channels = shape.C / shape.groups, width = channels * shape.R * shape.S;
    const int tiles_m = ceil_div(filters, Tile::TILE_M);
    const int first_row = blockIdx.x % tiles_m * Tile::TILE_M, first_column = blockIdx.x / tiles_m * Tile::TILE_N;
    const int begin = split * product.split_terms;
    const int terms = min(product.split_terms, shape.N * static_cast<int>(product.by_image[0]) - begin);
    const int row = threadIdx.x / Tile::LANES;

    const PixelWalk walk(begin + threadIdx.x % Tile::LANES, Tile::TERMS, shape, product);
    const int filter = first_row + row;
    GradientLoader<Tile> left{gy + (group * filters + filter) * gy_strides.channel, shape, gy_strides, walk,
                              ceil_div(filters - filter, Tile::ROWS)};

    WindowLoader<Tile> right{x + group * channels * x_strides.channel, shape, x_strides, walk, {}, {}, {}};
#pragma unroll
    for (int pass = 0; pass < Tile::PASSES_N; ++pass) {
        const int column = min(first_column + row + pass * Tile::ROWS, width - 1), tap = column / shape.S;
        right.rights[pass] = column % shape.S * shape.dilation_w;
        right.downs[pass] = tap % shape.R * shape.dilation_h;
        right.columns[pass] = tap / shape.R * static_cast<int>(x_strides.channel) +
                              right.downs[pass] * static_cast<int>(x_strides.row) +
                              right.rights[pass] * static_cast<int>(x_strides.column);
    }

    sum_products<Tile>(left, right, terms, [&](auto& sums, bool add, bool last) {
        // Computed anew for each chunk, so that nothing of it takes registers in the main loop.
        const int tile = opaque(blockIdx.x), split = opaque(blockIdx.y), group = opaque(blockIdx.z);
        const int tiles_m = ceil_div(filters, Tile::TILE_M), first = tile / tiles_m * Tile::TILE_N;
        const int m = tile % tiles_m * Tile::TILE_M + thread_row<Tile::TILE_N, Tile::GROUPS_M, Tile::GROUPS_N>();
        float* target = gw + split * product.split_stride + static_cast<int64>(group) * filters * width;
        const bool vectors = width % 4 == 0 && is_aligned16(target);
#pragma unroll
        for (int block = 0; block < Tile::GROUPS_N; ++block) {
            const int column = first + thread_column<Tile::TILE_N, Tile::GROUPS_M, Tile::GROUPS_N>() + block * GROUP_COLUMNS;
            int64 places[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) places[j] = column + j < width ? column + j : -1;
            store_columns<Tile>(sums, block, target, places, vectors, width, m, filters, nullptr, add, false);
        }
    });
}

#define CONV2D_BACKWARD_WEIGHT(M, N, terms, groups_m, groups_n, threads, blocks)                                         \
    KERNEL(threads, blocks) conv2d_backward_weight_##M##x##N(const float* x, const float* gy, float* gw, ConvShape shape, \
                                                             ImageStrides x_strides, ImageStrides gy_strides,            \
                                                             ConvProduct product) {                                      \
        backward_weight<Tiling<M, N, terms, groups_m, groups_n>>(x, gy, gw, shape, x_strides, gy_strides, product);      \
    }

CONV2D_BACKWARD_WEIGHT(128, 128, 8, 2, 2, 256, 2)
CONV2D_BACKWARD_WEIGHT(64, 64, 8, 2, 1, 128, 4)
