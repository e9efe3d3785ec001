// Local response normalisation across channels (Krizhevsky, Sutskever, Hinton 2012, section 3.3; PyTorch's convention for
// alpha and for the window [c - size / 2, c + (size - 1) / 2], cut to the channels there are):
//
//   forward    scale_c = k + alpha / size * sum of x_j^2 over the window of c;   y = x scale^-beta
//   backward   gx_c = gy_c scale_c^-beta - 2 alpha beta / size * x_c * sum of gy_j x_j scale_j^(-beta - 1) over the j in
//              whose window c lies: the mirrored window
//
// A window's terms are added from the first channel to the last, each time anew: a running sum that also subtracts would
// keep the rounding errors of large values that have left the window. y, scale and gx are overwritten.
//
// planes: arrays (N,C,L), L pixels. A thread walks along the channels of one pixel, `segment` of them, with the window's
//         terms in a ring of shared memory, so that memory is read once, but for windows across a segment's border.
// direct: the same for windows too wide for the ring; the terms are computed again for each window.
// rows:   arrays (M,C), channels-last. A block takes 1024 neighbouring elements and the reach of the window beside them.
#include "common.cuh"

struct ResponseWindow {
    int64 positions;  // N L, or M
    int channels, pixels;
    int before, after;  // channels that a sum reaches on each side
    int segment;
};

constexpr int PLANE_THREADS = 128;
constexpr int ROW_THREADS = 256;
constexpr int ROW_ITEMS = 4;
constexpr int ROW_TILE = ROW_THREADS * ROW_ITEMS;

// scale^-beta. The beta of the paper, 0.75, needs two roots in place of a power.
__device__ __forceinline__ float negative_power(float scale, float beta) {
    if (beta != 0.75f) return powf(scale, -beta);
    const float root = rsqrtf(scale);
    return root * sqrtf(root);
}

// A pass reads an element's FLOATS numbers, of which the first gives the term of sums; finish writes from them and the sum.
struct Forward {
    static constexpr int FLOATS = 1;
    const float* x;
    float *y, *scale;
    float ratio, beta, k;
    __device__ __forceinline__ void read(int64 i, float* item) const { item[0] = x[i]; }
    static __device__ __forceinline__ float term(float first) { return first * first; }
    __device__ __forceinline__ void finish(int64 i, const float* item, float sum) const {
        const float base = multiply_add(ratio, sum, k);
        scale[i] = base;
        y[i] = item[0] * negative_power(base, beta);
    }
};
struct Backward {
    static constexpr int FLOATS = 3;
    const float *x, *scale, *gy;
    float* gx;
    float factor, beta;  // factor = 2 alpha beta / size
    __device__ __forceinline__ void read(int64 i, float* item) const {
        item[1] = gy[i] * negative_power(scale[i], beta);
        item[2] = x[i];
        item[0] = item[1] * item[2] / scale[i];
    }
    static __device__ __forceinline__ float term(float first) { return first; }
    __device__ __forceinline__ void finish(int64 i, const float* item, float sum) const {
        gx[i] = item[1] - factor * item[2] * sum;
    }
};

struct Segment {
    int64 base;  // element of channel 0 at this thread's pixel
    int first, end;
};
__device__ __forceinline__ Segment segment_of(const ResponseWindow& w, int64 position) {
    const int64 n = position / w.pixels;
    const int first = static_cast<int>(blockIdx.y) * w.segment;
    return {n * w.channels * w.pixels + position % w.pixels, first, min(first + w.segment, w.channels)};
}

// The ring holds what was read of channels c - before to c + after: of channel j in slot (j + before - first) % slots. Of
// channels that do not exist it holds zeros.
template <class Pass>
__device__ __forceinline__ void walk_planes(const ResponseWindow& w, const Pass& pass) {
    DYNAMIC_SHARED(float, shared);  // (FLOATS, slots, PLANE_THREADS): each thread reads and writes its own column
    const int64 position = global_thread();
    if (position >= w.positions) return;
    const Segment s = segment_of(w, position);
    float* ring = shared + threadIdx.x;
    const int slots = w.before + w.after + 1;
    auto place = [&](int number, int slot) -> float& { return ring[(number * slots + slot) * PLANE_THREADS]; };
    auto fill = [&](int slot, int c) {
        float item[Pass::FLOATS] = {};
        if (c >= 0 && c < w.channels) pass.read(s.base + static_cast<int64>(c) * w.pixels, item);
        for (int number = 0; number < Pass::FLOATS; ++number) place(number, slot) = item[number];
    };
    for (int slot = 0; slot + 1 < slots; ++slot) fill(slot, s.first - w.before + slot);
    int newest = slots - 1, center = w.before;
    for (int c = s.first; c < s.end; ++c) {
        fill(newest, c + w.after);
        float sum = 0.0f, item[Pass::FLOATS];
        for (int slot = newest + 1; slot < slots; ++slot) sum += Pass::term(place(0, slot));
        for (int slot = 0; slot <= newest; ++slot) sum += Pass::term(place(0, slot));
        for (int number = 0; number < Pass::FLOATS; ++number) item[number] = place(number, center);
        pass.finish(s.base + static_cast<int64>(c) * w.pixels, item, sum);
        newest = newest + 1 < slots ? newest + 1 : 0;
        center = center + 1 < slots ? center + 1 : 0;
    }
}

template <class Pass>
__device__ __forceinline__ void walk_direct(const ResponseWindow& w, const Pass& pass) {
    const int64 position = global_thread();
    if (position >= w.positions) return;
    const Segment s = segment_of(w, position);
    float item[Pass::FLOATS];
    for (int c = s.first; c < s.end; ++c) {
        float sum = 0.0f;
        const int end = min(c + w.after + 1, w.channels);
        for (int j = max(c - w.before, 0); j < end; ++j) {
            pass.read(s.base + static_cast<int64>(j) * w.pixels, item);
            sum += Pass::term(item[0]);
        }
        pass.read(s.base + static_cast<int64>(c) * w.pixels, item);
        pass.finish(s.base + static_cast<int64>(c) * w.pixels, item, sum);
    }
}

template <class Pass>
__device__ __forceinline__ void walk_rows(const ResponseWindow& w, const Pass& pass) {
    DYNAMIC_SHARED(float, terms);  // (before + ROW_TILE + after)
    const int64 count = w.positions * w.channels, start = static_cast<int64>(blockIdx.x) * ROW_TILE;
    float items[ROW_ITEMS][Pass::FLOATS] = {}, beside[Pass::FLOATS];
#pragma unroll
    for (int k = 0; k < ROW_ITEMS; ++k) {
        const int t = k * ROW_THREADS + threadIdx.x;
        if (start + t < count) pass.read(start + t, items[k]);
        terms[w.before + t] = Pass::term(items[k][0]);
    }
    for (int t = threadIdx.x; t < w.before + w.after; t += ROW_THREADS) {
        const int slot = t < w.before ? t : ROW_TILE + t;
        const int64 i = start - w.before + slot;
        const bool exists = i >= 0 && i < count;
        if (exists) pass.read(i, beside);
        terms[slot] = exists ? Pass::term(beside[0]) : 0.0f;
    }
    __syncthreads();
    const int64 channel_of_start = start % w.channels;
#pragma unroll
    for (int k = 0; k < ROW_ITEMS; ++k) {
        const int t = k * ROW_THREADS + threadIdx.x;
        if (start + t >= count) return;
        const int c = static_cast<int>((channel_of_start + t) % w.channels);
        const int first = max(-w.before, -c), end = min(w.after + 1, w.channels - c);
        float sum = 0.0f;
        for (int offset = first; offset < end; ++offset) sum += terms[t + w.before + offset];
        pass.finish(start + t, items[k], sum);
    }
}

#define RESPONSE_NORM(LAYOUT, THREADS)                                                                            \
    KERNEL(THREADS, 1024 / THREADS) local_response_norm_forward_##LAYOUT(                                         \
        const float* x, float* y, float* scale, ResponseWindow window, float ratio, float beta, float k) {        \
        walk_##LAYOUT(window, Forward{x, y, scale, ratio, beta, k});                                              \
    }                                                                                                             \
    KERNEL(THREADS, 1024 / THREADS) local_response_norm_backward_##LAYOUT(                                        \
        const float* x, const float* scale, const float* gy, float* gx, ResponseWindow window, float factor, float beta) { \
        walk_##LAYOUT(window, Backward{x, scale, gy, gx, factor, beta});                                          \
    }

RESPONSE_NORM(planes, PLANE_THREADS)
RESPONSE_NORM(direct, PLANE_THREADS)
RESPONSE_NORM(rows, ROW_THREADS)
