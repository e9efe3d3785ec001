// Gradients after a loss that was multiplied by a scale (Micikevicius et al. 2018, section 3.2), and what becomes of the
// scale. Nothing of it is known to the host: four numbers in `scaling` are, in this order,
//
//   scale        what the loss is multiplied by
//   good_steps   since it last changed
//   skipped      steps in all
//   found        1 where this step's gradients have a value that is infinite or NaN, else 0
//
//   unscale        g /= scale, in place; found = 1 for each block that met such a value, else 0; a grid of (blocks, arrays)
//   any_found      scaling.found = 1 if any of the `count` blocks did, else 0; one block
//   adjust_scale   the other three numbers, and skips += found where it is not null; one thread
//
// The optimisers' kernels (update.cu) read `found`.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr float LARGEST = 0x1p127f, SMALLEST = 0x1p-126f;

struct Scaling {
    float scale, good_steps, skipped, found;
};

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) < INFINITY; }

// The value times factor; `wrong` where it is not finite.
__device__ __forceinline__ float unscaled(float value, float factor, bool& wrong) {
    wrong = wrong || !is_finite(value);
    return value * factor;
}

KERNEL(THREADS, 4) unscale(Pointers gradients, const Sizes sizes, const float* scaling, int* found) {
    float* g = gradients.data[blockIdx.y];
    const float factor = 1.0f / reinterpret_cast<const Scaling*>(scaling)->scale;
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

KERNEL(THREADS, 1) any_found(const int* found, float* scaling, int count) {
    bool wrong = false;
    for (int i = threadIdx.x; i < count; i += THREADS) wrong = wrong || found[i] != 0;
    const float any = block_reduce<Maximum, THREADS>(wrong ? 1.0f : 0.0f);
    if (threadIdx.x == 0) reinterpret_cast<Scaling*>(scaling)->found = any;
}

KERNEL(32, 1) adjust_scale(float* scaling, float* skips, float growth_factor, float backoff_factor,
                           float growth_interval) {
    if (threadIdx.x > 0) return;
    Scaling& now = *reinterpret_cast<Scaling*>(scaling);
    if (now.found != 0.0f) {
        now.skipped += 1.0f, now.good_steps = 0.0f;
        now.scale = fmaxf(now.scale * backoff_factor, SMALLEST);
        if (skips) skips[0] += 1.0f;
        return;
    }
    now.good_steps += 1.0f;
    if (now.good_steps < growth_interval) return;
    now.scale = fminf(now.scale * growth_factor, LARGEST), now.good_steps = 0.0f;
}
