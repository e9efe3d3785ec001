// What Winograd's kernels of F(2×2,3×3) share: 16 products of numbers in the place of 36 (Lavin and Gray, CVPR 2016).
//
// In one dimension, with points 0, 1, −1, ∞, two outputs of three taps are AT · ((G g) ∘ (BT d)), d being four pixels:
//   BT = 1  0 −1  0    G = 1   0   0    AT = 1  1  1  0
//        0  1  1  0        ½   ½   ½         0  1 −1  1
//        0 −1  1  0        ½  −½   ½
//        0 −1  0  1        0   0   1
// In two dimensions a transform acts along columns and then along rows. Component 4·i + j is that of row i, column j.
//
// A block's product has 32 rows × 64 columns of each of the 16 components, and TERMS terms at a step. Warp w computes
// components 2w and 2w + 1, each lane 8 rows × 8 columns of both: 128 sums. Both operands lie in shared memory as
// [component][term][row or column], where rows of term t are at `swizzled(t, row)`: four of them stay side by side for
// LDS.128, and whether a warp's lanes are 32 rows of a term, or ROWS / TERMS rows of every term, they hit 32 banks.
#pragma once
#include "conv2d.cuh"
#include "tile.cuh"

constexpr int COMPONENTS = 16, ROWS = 32, COLUMNS = 64, WINOGRAD_THREADS = 256;
constexpr int PITCH = 36;  // of results in shared memory: eight lanes of STS.128 fall into eight groups of banks
static_assert(COMPONENTS == 2 * WINOGRAD_THREADS / WARP_SIZE, "two components a warp");
static_assert(ROWS == 2 * GROUP_ROWS && COLUMNS == 2 * GROUP_COLUMNS, "a lane has two groups of four of both");

// Of one launch. Tiles are 2×2 pixels of y (or gy), counted along rows, columns and images.
struct WinogradShape {
    int channels, filters;              // of a group
    int height, width;                  // of the images whose tiles of 4×4 are read
    int out_height, out_width;          // of those of 2×2
    int padding_h, padding_w;           // below 0 the image is cropped
    int tiles, channels_last, relu;
    unsigned by_image[3], by_row[3];    // divisors: tiles of an image, of a row
};

// Floats of shared memory: two stages of both operands, where the results come later.
template <int TERMS>
struct Stage {
    static constexpr int LEFT = COMPONENTS * TERMS * ROWS, FLOATS = LEFT + COMPONENTS * TERMS * COLUMNS;
    static_assert(TERMS == 4 || TERMS == 8, "a thread has one tile of four or eight");
    static_assert(2 * FLOATS >= COMPONENTS * 16 * PITCH + WINOGRAD_THREADS / WARP_SIZE * ROWS * 9, "room for results");
};

using ComponentSums = float[2][8][8];  // component, row, column

// Two floats in one access of 8 bytes; the address must be a multiple of 8.
__device__ __forceinline__ void store2(float* address, float first, float second) {
#if defined(__CUDACC__)
    *reinterpret_cast<float2*>(address) = make_float2(first, second);
#else
    typedef float vector __attribute__((vector_size(8)));
    *reinterpret_cast<vector*>(address) = vector{first, second};
#endif
}
__device__ __forceinline__ bool is_aligned8(const void* address) {
    return (reinterpret_cast<uint64_t>(address) & 7) == 0;
}

template <int TERMS>
__device__ __forceinline__ int swizzled(int term, int index) {
    return index ^ term * (ROWS / TERMS);
}

// One dimension of BT, of four numbers `step` apart.
__device__ __forceinline__ void transform_input_line(float* d, int step) {
    const float d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    d[0] = d0 - d2, d[step] = d1 + d2, d[2 * step] = d2 - d1, d[3 * step] = d3 - d1;
}
__device__ __forceinline__ void transform_input(float (&d)[16]) {
#pragma unroll
    for (int column = 0; column < 4; ++column) transform_input_line(d + column, 4);
#pragma unroll
    for (int row = 0; row < 4; ++row) transform_input_line(d + 4 * row, 1);
}

// SPREAD bits for each of four pixels from `first` on that lie in 0 … extent − 1; bits from 4 · SPREAD on mean nothing.
template <int SPREAD>
__device__ __forceinline__ unsigned inside_line(int first, int extent) {
    const int begin = min(max(-first, 0), 4), end = min(max(extent - first, 0), 4);
    return ((1u << SPREAD * end) - 1) & 0xffffu << SPREAD * begin;
}
// A bit for each of 4×4 pixels from (h, w) on, row by row: whether it is in the image.
__device__ __forceinline__ unsigned inside_bits(int h, int w, int height, int width) {
    return inside_line<4>(h, height) & (inside_line<1>(w, width) & 0xfu) * 0x1111u;
}

// The pixels of SIZE × SIZE whose bits of a 4×4 tile are set, and zeros. Where pixels of a row are neighbours, their
// places are constants in the instructions. Strides are best not known to the compiler (`opaque`), which else keeps
// their multiples in registers through the main loop.
template <int SIZE>
__device__ __forceinline__ void load_tile(const float* source, unsigned bits, int row, int column,
                                          float (&values)[SIZE * SIZE]) {
    if (SIZE == 4 && column == 1) {
#pragma unroll
        for (int i = 0; i < SIZE; ++i, source += row) {
#pragma unroll
            for (int j = 0; j < SIZE; ++j) values[SIZE * i + j] = bits >> (4 * i + j) & 1 ? source[j] : 0.0f;
        }
    } else {
#pragma unroll
        for (int i = 0; i < SIZE * SIZE; ++i)
            values[i] = bits >> (i / SIZE * 4 + i % SIZE) & 1 ? source[i / SIZE * row + i % SIZE * column] : 0.0f;
    }
}

// sums += Σ_term left[component][term][row] · right[component][term][column], of the stage at `stage` in shared memory.
template <int TERMS, bool COLUMNS_SWIZZLED>
__device__ __forceinline__ void multiply_components(const float* shared, int stage, ComponentSums& sums) {
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    // Not known to the compiler, or it would keep the places with each term's swizzle in registers through the loop.
    // What is added to a lane's row or column are multiples of 32, which a swizzle does not touch.
    const int left = stage + opaque(2 * warp * TERMS * ROWS + lane_row(lane));
    const int right = stage + opaque(Stage<TERMS>::LEFT + 2 * warp * TERMS * COLUMNS + lane_column(lane));
#pragma unroll
    for (int component = 0; component < 2; ++component) {
#pragma unroll
        for (int t = 0; t < TERMS; ++t) {
            const int term = component * TERMS + t, swizzle = swizzled<TERMS>(t, 0);
            // The upper bit of rows' swizzle only exchanges their groups.
            const float* row = shared + (left ^ swizzle % GROUP_ROWS) + term * ROWS;
            const float* column = shared + (COLUMNS_SWIZZLED ? right ^ swizzle : right) + term * COLUMNS;
            float rows[8], columns[8];
#pragma unroll
            for (int g = 0; g < 2; ++g) {
                unpack(load4(row + (g ^ swizzle / GROUP_ROWS) * GROUP_ROWS), rows + 4 * g);
                unpack(load4(column + g * GROUP_COLUMNS), columns + 4 * g);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
#pragma unroll
                for (int j = 0; j < 8; ++j)
                    sums[component][i][j] = multiply_add(rows[i], columns[j], sums[component][i][j]);
            }
        }
    }
}

// Gathers each result's components in shared memory, which all threads must have done with, 16 columns at a time:
// consume(column, components) with a lane for each row.
template <class Consume>
__device__ __forceinline__ void for_each_result(const ComponentSums& sums, float* shared, const Consume& consume) {
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    // In a round each lane gives two of its columns.
    float* target = shared + 2 * warp * 16 * PITCH + lane_column(lane) / 2 * PITCH + lane_row(lane);
#pragma unroll
    for (int round = 0; round < 4; ++round) {
        if (round > 0) __syncthreads();  // the round before has been read
#pragma unroll
        for (int component = 0; component < 2; ++component) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
#pragma unroll
                for (int g = 0; g < 2; ++g) {
                    const auto& s = sums[component];
                    const int k = 2 * round + j;
                    store4(target + (component * 16 + j) * PITCH + g * GROUP_ROWS,
                           make_float4(s[4 * g][k], s[4 * g + 1][k], s[4 * g + 2][k], s[4 * g + 3][k]));
                }
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int place = warp; place < 16; place += WINOGRAD_THREADS / WARP_SIZE) {
            float components[16];
#pragma unroll
            for (int i = 0; i < COMPONENTS; ++i) components[i] = shared[(i * 16 + place) * PITCH + lane];
            consume(place / 2 * 4 + round % 2 * 2 + place % 2 + round / 2 * GROUP_COLUMNS, components);
        }
    }
}
