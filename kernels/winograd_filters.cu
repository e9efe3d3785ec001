// Winograd's transform of 3×3 filters, U = G g GT, once for each launch of winograd.cu, which copies it as it stands to
// shared memory. u is overwritten.
//
// Layouts: w (K,C/groups,3,3) contiguous; u (groups, filters/64, channels/8, 16 components, 8 channels, 64 filters),
// zeros where there is no filter or channel. `rotated`: for the gradient of the input, filters are the convolution's
// channels and channels its filters, and taps are read from the last. A block transforms 64 filters of 8 channels.
// Grid: x blocks of channels, then of filters, then groups.
#include "winograd.cuh"

constexpr int CHANNELS = 8, TAPS = 9;
constexpr int FILTER_PITCH = COLUMNS + 1;  // odd, so that lanes side by side in w write to different banks

// One dimension of G, of three numbers `step` apart to four `target_step` apart.
__device__ __forceinline__ void transform_filter_line(const float* g, int step, float* target, int target_step) {
    const float ends = g[0] + g[2 * step];
    target[0] = g[0];
    target[target_step] = 0.5f * (ends + g[step]);
    target[2 * target_step] = 0.5f * (ends - g[step]);
    target[3 * target_step] = g[2 * step];
}

template <bool ROTATED>
__device__ __forceinline__ void transform_filters(const float* w, float* u, int filters, int channels) {
    SHARED(float, taps, [CHANNELS * TAPS * FILTER_PITCH]);
    const int channel_blocks = ceil_div(channels, CHANNELS), filter_blocks = ceil_div(filters, COLUMNS);
    const int first_channel = blockIdx.x % channel_blocks * CHANNELS, rest = blockIdx.x / channel_blocks;
    const int first_filter = rest % filter_blocks * COLUMNS;
    w += static_cast<int64>(rest / filter_blocks) * filters * channels * TAPS;
    for (int i = threadIdx.x; i < COLUMNS * CHANNELS * TAPS; i += WINOGRAD_THREADS) {
        // In the order of w.
        const int outer = i / TAPS, filter = ROTATED ? outer % COLUMNS : outer / CHANNELS;
        const int channel = ROTATED ? outer / COLUMNS : outer % CHANNELS, tap = i % TAPS;
        const int64 k = first_filter + filter, c = first_channel + channel;
        const int64 source = (ROTATED ? c * filters + k : k * channels + c) * TAPS + tap;
        taps[(channel * TAPS + (ROTATED ? TAPS - 1 - tap : tap)) * FILTER_PITCH + filter] =
            k < filters && c < channels ? w[source] : 0.0f;
    }
    __syncthreads();
    u += static_cast<int64>(blockIdx.x) * COMPONENTS * CHANNELS * COLUMNS;
    const int filter = threadIdx.x % COLUMNS;
    for (int channel = threadIdx.x / COLUMNS; channel < CHANNELS; channel += WINOGRAD_THREADS / COLUMNS) {
        float g[TAPS], columns[12], components[COMPONENTS];
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) g[tap] = taps[(channel * TAPS + tap) * FILTER_PITCH + filter];
#pragma unroll
        for (int j = 0; j < 3; ++j) transform_filter_line(g + j, 3, columns + j, 3);
#pragma unroll
        for (int i = 0; i < 4; ++i) transform_filter_line(columns + 3 * i, 1, components + 4 * i, 1);
#pragma unroll
        for (int i = 0; i < COMPONENTS; ++i) u[(i * CHANNELS + channel) * COLUMNS + filter] = components[i];
    }
}

KERNEL(256, 4) winograd_filters(const float* w, float* u, int filters, int channels) {
    transform_filters<false>(w, u, filters, channels);
}
KERNEL(256, 4) winograd_filters_rotated(const float* w, float* u, int filters, int channels) {
    transform_filters<true>(w, u, filters, channels);
}
