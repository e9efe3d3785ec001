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

// Of a column (c,r,s), relative to the pixel at the window's corner: rows down, columns to the right, and floats.
struct Column {
    int down, right, offset, unused;
};

// Copies gy [pixel][filter], zeros past the last filter, and x [pixel][column]; columns past the last repeat it.
// Offsets inside an image are counted in 32 bits.
template <class Tile>
struct WindowLoader {
    const float *x, *gy;
    const ConvShape& shape;
    const ImageStrides &x_strides, &gy_strides;
    const ConvProduct& product;
    const Column* columns;          // of the tile, in shared memory
    int filter, passes;             // offset of the thread's first filter in an image of gy; how many of its filters exist
    int n, p, q;                    // the thread's pixel
    const float *gradient, *image;  // of image n

    __device__ __forceinline__ void start(int pixel) {
        int rest;
        n = divide(pixel, product.by_image, rest);
        p = divide(rest, product.by_row, q);
        enter_image();
    }
    __device__ __forceinline__ void enter_image() {
        gradient = gy + n * gy_strides.image;
        image = x + n * x_strides.image;
    }
    __device__ __forceinline__ void advance() {
        q += product.step[2];
        const bool next_row = q >= shape.Q;
        if (next_row) q -= shape.Q;
        p += product.step[1] + next_row;
        const bool next_image = p >= shape.P;
        if (next_image) p -= shape.P;
        const int images = product.step[0] + next_image;
        n += images;
        if (images) enter_image();
    }

    __device__ __forceinline__ void operator()(float* left, float* right, int remaining) {
        const int term = threadIdx.x % Tile::LANES, row = threadIdx.x / Tile::LANES;
#pragma unroll
        for (int k = 0; k < Tile::TERMS; k += Tile::LANES) {
            copy(left + (k + term) * (Tile::TILE_M + PAD) + row, right + (k + term) * (Tile::TILE_N + PAD) + row,
                 k + term < remaining);
            advance();
        }
    }

    // The thread's pixel, if it exists, for all its filters and columns.
    __device__ __forceinline__ void copy(float* left, float* right, bool exists) {
        const int row = threadIdx.x / Tile::LANES;
        const int h = p * shape.stride_h - shape.padding_h, w = q * shape.stride_w - shape.padding_w;
        const int corner = h * static_cast<int>(x_strides.row) + w * static_cast<int>(x_strides.column);
        const unsigned height = exists ? shape.H : 0;
        int offsets[Tile::PASSES_N];
        bool inside[Tile::PASSES_N];
#pragma unroll
        for (int pass = 0; pass < Tile::PASSES_N; ++pass) {  // read before any copy, which reads may not overtake
            const Column column = columns[row + pass * Tile::ROWS];
            offsets[pass] = corner + column.offset;
            inside[pass] = static_cast<unsigned>(h + column.down) < height &&
                           static_cast<unsigned>(w + column.right) < static_cast<unsigned>(shape.W);
        }
#pragma unroll
        for (int pass = 0; pass < Tile::PASSES_N; ++pass)
            copy_async4(right + pass * Tile::ROWS, image + offsets[pass], inside[pass]);

        const int exist = exists ? passes : 0;
        int index = filter + p * static_cast<int>(gy_strides.row) + q * static_cast<int>(gy_strides.column);
#pragma unroll
        for (int pass = 0; pass < Tile::PASSES_M; ++pass, index += Tile::ROWS * static_cast<int>(gy_strides.channel))
            copy_async4(left + pass * Tile::ROWS, gradient + index, pass < exist);
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

    SHARED(Column, columns, [Tile::TILE_N]);
    if (threadIdx.x < Tile::TILE_N) {
        const int column = min(first_column + static_cast<int>(threadIdx.x), width - 1), tap = column / shape.S;
        const int down = tap % shape.R * shape.dilation_h, right = column % shape.S * shape.dilation_w;
        const int channel = group * channels + tap / shape.R;
        const int64 offset = channel * x_strides.channel + down * x_strides.row + right * x_strides.column;
        columns[threadIdx.x] = {down, right, static_cast<int>(offset), 0};
    }
    __syncthreads();

    const int filter = first_row + threadIdx.x / Tile::LANES;
    WindowLoader<Tile> load{x, gy, shape, x_strides, gy_strides, product, columns,
                            (group * filters + filter) * static_cast<int>(gy_strides.channel),
                            ceil_div(filters - filter, Tile::ROWS)};
    load.start(begin + threadIdx.x % Tile::LANES);

    sum_products<Tile>(load, terms, [&](Sums<Tile>& sums, bool add, bool last) {
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

CONV2D_BACKWARD_WEIGHT(128, 128, 16, 2, 2, 256, 2)
CONV2D_BACKWARD_WEIGHT(64, 64, 16, 2, 1, 128, 4)
