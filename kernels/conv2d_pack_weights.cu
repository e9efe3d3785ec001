// Weights in the order in which the implicit-GEMM convolutions read them: packed (groups, tiles, C·R·S, tile), overwritten.
// Filters stand in tiles of `tile`, zeros past the last; each term's are contiguous, so they are copied by 16 bytes.
//
// Terms are (channels of 16, tap, channel), then (channel, tap) of the channels left over: sixteen successive terms of the
// first part share their tap. Read are weights[group][filter][channel][tap] by strides, so forward and backward_input
// differ in what they call a filter and a channel. Grid: x 32 terms, y 32 filters, z groups.
#include "common.cuh"

constexpr int TILE = 32, THREADS = 256, ROWS = THREADS / TILE;
constexpr int CHANNELS = 16;

struct PackShape {
    int filters, channels, taps, tile;
    int64 group_stride;
    int filter_stride, channel_stride;
};

__device__ __forceinline__ int packed_term(int channel, int tap, const PackShape& s) {
    const int whole = s.channels - s.channels % CHANNELS;
    if (channel >= whole) return channel * s.taps + tap;
    return (channel / CHANNELS * s.taps + tap) * CHANNELS + channel % CHANNELS;
}

// Lanes lie along the terms for reading and along the filters for writing; between them is a tile of shared memory.
KERNEL(256, 4) conv2d_pack_weights(const float* weights, float* packed, PackShape s) {
    SHARED(float, values, [TILE][TILE + 1]);
    const int lane = threadIdx.x % TILE, row = threadIdx.x / TILE;
    const int terms = s.channels * s.taps, first_term = blockIdx.x * TILE, first_filter = blockIdx.y * TILE;
    const int term = first_term + lane, channel = term / s.taps, tap = term - channel * s.taps;
    const float* from = weights + blockIdx.z * s.group_stride + channel * s.channel_stride + tap;
    for (int i = row; i < TILE; i += ROWS) {
        const int filter = first_filter + i;
        values[i][lane] = term < terms && filter < s.filters ? from[filter * s.filter_stride] : 0.0f;
    }
    __syncthreads();
    const int filter = first_filter + lane, tiles = ceil_div(s.filters, s.tile);
    float* to = packed + (static_cast<int64>(blockIdx.z) * tiles + filter / s.tile) * terms * s.tile + filter % s.tile;
    for (int i = row; i < TILE && first_term + i < terms; i += ROWS) {
        const int channel = (first_term + i) / s.taps, tap = first_term + i - channel * s.taps;
        to[static_cast<int64>(packed_term(channel, tap, s)) * s.tile] = values[lane][i];
    }
}
