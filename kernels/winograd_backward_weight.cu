// Gradient of 3×3 weights at stride 1 by Winograd's F(3×3,2×2): gw[k,c] = AT (Σ_tiles (G e GT) ∘ (BT d B)) A, where d
// are 4×4 pixels of x and e the 2×2 of gy that they reach. gw is overwritten. BT is that of winograd.cuh; the others'
// halves stand at the end, where they are multiplied by once a sum:
//   G = 1  0    AT = 1  ½  ½  0
//       1  1         0  ½ −½  0
//       1 −1         0  ½  ½  1
//       0  1
// A block sums 64 filters × 32 channels (the columns and rows of winograd.cuh) over the tiles of its split, TERMS at a
// step, and transforms both operands on the way to shared memory, two stages deep with one barrier between the steps.
// After TILE_CHUNK tiles the sums are transformed and added to gw, so that the error of 1e5 terms stays below 2e-6.
//
// Layouts: x (N,C,H,W) and gy (N,K,P,Q) by strides; gw (K,C/groups,3,3) contiguous. Warps read TERMS tiles side by side
// of several channels, or with `channels_last` 32 channels of one tile. Grid: x blocks of filters, then of channels; y
// splits; z groups. With splits, gw is a workspace (splits,K,C/groups,3,3), which gemm_add_splits sums.
#include "winograd.cuh"

constexpr int TILE_CHUNK = 512;  // tiles summed in one go
constexpr int TAPS = 9;

struct WinogradSplit {
    int64 stride;  // floats from one split's plane to the next
    int tiles;     // of each split but the last, in whole steps
};

// G e GT without its halves.
__device__ __forceinline__ void transform_gradient(const float (&e)[4], float (&components)[16]) {
    float columns[8];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        columns[j] = e[j], columns[2 + j] = e[j] + e[2 + j];
        columns[4 + j] = e[j] - e[2 + j], columns[6 + j] = e[2 + j];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float first = columns[2 * i], second = columns[2 * i + 1];
        components[4 * i] = first, components[4 * i + 1] = first + second;
        components[4 * i + 2] = first - second, components[4 * i + 3] = second;
    }
}

// One dimension of AT, of four numbers `step` apart.
__device__ __forceinline__ void transform_sums_line(const float* m, int step, float* target) {
    const float half_sum = 0.5f * (m[step] + m[2 * step]);
    target[0] = m[0] + half_sum;
    target[1] = 0.5f * (m[step] - m[2 * step]);
    target[2] = half_sum + m[3 * step];
}

// Loads a thread's tile of one channel of x and of two filters of gy, and transforms them to shared memory.
template <int TERMS>
struct PairLoader {
    const WinogradShape& s;
    const ImageStrides &x_strides, &gy_strides;
    const float *x, *gy;
    int x_offset, gy_offset;  // of the thread's channel, and of its first filter, in an image; less than 2^31
    int exist;                // bit 0: the channel, bits 1 and 2: its filters
    float pixels[16], gradients[2][4];

    __device__ __forceinline__ void start(int first_channel, int first_filter) {
        const int channel = first_channel + row(), filter = first_filter + row();
        exist = (channel < s.channels) | (filter < s.filters) << 1 | (filter + 32 < s.filters) << 2;
        // Not known to the compiler, or it would compute them anew at each step.
        const int x_step = static_cast<int>(x_strides.channel), gy_step = static_cast<int>(gy_strides.channel);
        x_offset = opaque((blockIdx.z * s.channels + min(channel, s.channels - 1)) * x_step);
        gy_offset = opaque((blockIdx.z * s.filters + min(filter, s.filters - 1)) * gy_step);
    }
    // The thread's tile of a step, and its channel, which is also its filter; computed anew where they are needed, so
    // that they take no registers in between.
    __device__ __forceinline__ int term() const {
        const int thread = opaque(threadIdx.x);
        return s.channels_last ? thread / ROWS : thread % TERMS;
    }
    __device__ __forceinline__ int row() const {
        const int thread = opaque(threadIdx.x);
        return s.channels_last ? thread % ROWS : thread / TERMS;
    }
    __device__ __forceinline__ bool active() const {
        return TERMS * ROWS == WINOGRAD_THREADS || threadIdx.x < TERMS * ROWS;
    }

    // Of the step's tiles from `first` on; from `end` on there are none.
    __device__ __forceinline__ void load(int first, int end) {
        if (!active()) return;
        const int tile = first + term();
        int rest, w;
        const int n = divide(tile, s.by_image, rest), h = divide(rest, s.by_row, w) * 2;
        w *= 2;
        const int top = h - s.padding_h, left = w - s.padding_w;
        const int x_row = opaque(x_strides.row), x_column = opaque(x_strides.column);  // see load_tile
        const int gy_row = opaque(gy_strides.row), gy_column = opaque(gy_strides.column);
        const bool exists = tile < end;
        const unsigned inside = exists && exist & 1 ? inside_bits(top, left, s.height, s.width) : 0;
        const unsigned reached =
            exists ? (w + 1 < s.out_width ? 0x33u : 0x11u) & (h + 1 < s.out_height ? 0xffu : 0x0fu) : 0;
        const float* corner = x + n * x_strides.image + (x_offset + top * x_row + left * x_column);
        load_tile<4>(corner, inside, x_row, x_column, pixels);
        const float* gradient = gy + n * gy_strides.image + (gy_offset + h * gy_row + w * gy_column);
#pragma unroll
        for (int i = 0; i < 2; ++i, gradient += 32 * gy_strides.channel)
            load_tile<2>(gradient, exist >> (1 + i) & 1 ? reached : 0, gy_row, gy_column, gradients[i]);
    }
    __device__ __forceinline__ void finish(float* left, float* right) {
        if (!active()) return;
        const int term = this->term(), place = swizzled<TERMS>(term, row());
        transform_input(pixels);
#pragma unroll
        for (int i = 0; i < COMPONENTS; ++i) left[(i * TERMS + term) * ROWS + place] = pixels[i];
#pragma unroll
        for (int filter = 0; filter < 2; ++filter) {
            float components[16];
            transform_gradient(gradients[filter], components);
#pragma unroll
            for (int i = 0; i < COMPONENTS; ++i)
                right[(i * TERMS + term) * COLUMNS + place + 32 * filter] = components[i];
        }
    }
};

// Transforms the sums and writes them, or adds them to what stands there. A warp has 32 channels of one filter, which
// are neighbours in gw but for its end; it turns them in shared memory so that its lanes write side by side.
__device__ __forceinline__ void store_weights(const ComponentSums& sums, float* shared, float* gw, const WinogradShape& s,
                                              const WinogradSplit& split, bool add) {
    // From the indices of the block anew, so that nothing of it takes registers in the main loop.
    const int block = opaque(blockIdx.x), filter_blocks = ceil_div(s.filters, COLUMNS), lane = threadIdx.x % WARP_SIZE;
    const int first_filter = block % filter_blocks * COLUMNS, first_channel = block / filter_blocks * ROWS;
    const int count = min(ROWS, s.channels - first_channel) * TAPS;
    const int64 group = static_cast<int64>(opaque(blockIdx.z)) * s.filters;
    float* line = shared + COMPONENTS * 16 * PITCH + threadIdx.x / WARP_SIZE * ROWS * TAPS;
    for_each_result(sums, shared, [&](int column, const float (&m)[16]) {
        if (first_filter + column >= s.filters) return;
        float columns[12];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float rows[3];
            transform_sums_line(m + j, 4, rows);
#pragma unroll
            for (int i = 0; i < 3; ++i) columns[4 * i + j] = rows[i];
        }
        __syncwarp();  // the filter before has been read
#pragma unroll
        for (int i = 0; i < 3; ++i) transform_sums_line(columns + 4 * i, 1, line + lane * TAPS + 3 * i);
        __syncwarp();
        float* target = gw + opaque(blockIdx.y) * split.stride +
                        ((group + first_filter + column) * s.channels + first_channel) * TAPS;
#pragma unroll
        for (int i = lane; i < ROWS * TAPS; i += WARP_SIZE)
            if (i < count) target[i] = (add ? target[i] : 0.0f) + line[i];
    });
}

// From the index of the block anew, so that it takes no register in between.
__device__ __forceinline__ int end_of_split(const WinogradShape& s, const WinogradSplit& split) {
    const int first = opaque(blockIdx.y) * split.tiles;
    return first + min(split.tiles, s.tiles - first);
}

template <int TERMS>
__device__ __forceinline__ void sum_tiles(const float* x, const float* gy, float* gw, const WinogradShape& s,
                                          const ImageStrides& x_strides, const ImageStrides& gy_strides,
                                          const WinogradSplit& split) {
    DYNAMIC_SHARED(float, shared);
    const int filter_blocks = ceil_div(s.filters, COLUMNS);
    PairLoader<TERMS> load{s, x_strides, gy_strides, x, gy};
    load.start(blockIdx.x / filter_blocks * ROWS, blockIdx.x % filter_blocks * COLUMNS);
    int begin = blockIdx.y * split.tiles;
    bool add = false;
#pragma unroll 1
    do {
        const int last = min(begin + TILE_CHUNK, end_of_split(s, split));
        ComponentSums sums = {};
#pragma unroll 1
        for (int tile = begin - TERMS, stage = 1; tile < last; tile += TERMS, stage ^= 1) {
            float* next = shared + (stage ^ 1) * Stage<TERMS>::FLOATS;
            const bool more = tile + TERMS < last;
            if (more) load.load(tile + TERMS, last);
            if (tile >= begin) multiply_components<TERMS, true>(shared, stage * Stage<TERMS>::FLOATS, sums);
            if (more) load.finish(next, next + Stage<TERMS>::LEFT);
            __syncthreads();  // the next stage is there, and this one is no longer read
        }
        store_weights(sums, shared, gw, s, split, add);
        begin += TILE_CHUNK, add = true;
        __syncthreads();  // the results have been read
    } while (begin < end_of_split(s, split));
}

#define WINOGRAD_BACKWARD_WEIGHT(TERMS)                                                                                \
    KERNEL(256, 1) winograd_backward_weight_64x32x##TERMS(const float* x, const float* gy, float* gw,                  \
                                                          WinogradShape shape, ImageStrides x_strides,                 \
                                                          ImageStrides gy_strides, WinogradSplit split) {              \
        sum_tiles<TERMS>(x, gy, gw, shape, x_strides, gy_strides, split);                                              \
    }

WINOGRAD_BACKWARD_WEIGHT(8)  // 96 KB of shared memory
WINOGRAD_BACKWARD_WEIGHT(4)  // 48 KB
