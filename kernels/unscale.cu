// Gradients after a loss that was multiplied by a scale, of many arrays in two launches, and whether all are finite.
//
//   unscale         g *= factor, in place; found = 1 for each block that met a value that is infinite or NaN, else 0
//   any_found       flag = 1 if any of the `count` blocks did, else 0; one block
//
// g is changed; found and flag are overwritten. A grid of (blocks, arrays).
#include "common.cuh"

constexpr int THREADS = 256;

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) < INFINITY; }

// The value times factor; `wrong` where it is not finite.
__device__ __forceinline__ float unscaled(float value, float factor, bool& wrong) {
    wrong = wrong || !is_finite(value);
    return value * factor;
}

KERNEL(THREADS, 4) unscale(Pointers gradients, const Sizes sizes, float factor, int* found) {
    float* g = gradients.data[blockIdx.y];
    const int64 count = sizes.count[blockIdx.y], quads = is_aligned16(g) ? count / 4 : 0;
    bool wrong = false;
    for (int64 i = global_thread(); i < quads; i += global_threads()) {
        float4 v = load4(g + 4 * i);
        v.x = unscaled(v.x, factor, wrong), v.y = unscaled(v.y, factor, wrong);
        v.z = unscaled(v.z, factor, wrong), v.w = unscaled(v.w, factor, wrong);
        store4(g + 4 * i, v);
    }
    for (int64 i = 4 * quads + global_thread(); i < count; i += global_threads()) g[i] = unscaled(g[i], factor, wrong);
    const float any = block_reduce<Maximum, THREADS>(wrong ? 1.0f : 0.0f);
    if (threadIdx.x == 0) found[blockIdx.y * gridDim.x + blockIdx.x] = any > 0.0f;
}

KERNEL(THREADS, 1) any_found(const int* found, int* flag, int count) {
    bool wrong = false;
    for (int i = threadIdx.x; i < count; i += THREADS) wrong = wrong || found[i] != 0;
    const float any = block_reduce<Maximum, THREADS>(wrong ? 1.0f : 0.0f);
    if (threadIdx.x == 0) flag[0] = any > 0.0f;
}
