// Small programs of wgmma and stmatrix, as golden_mma.cu has them for mma.sync.
#include "ptx_mma.cuh"
#include "ptx_wgmma.cuh"
#if __has_include("ptx_barrier.cuh")
#include "ptx_barrier.cuh"
#else
__device__ __forceinline__ void fence_async_shared() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
#endif

constexpr int MEMORY_WORDS = 10240;  // of shared memory
constexpr int STEPS_MAX = 4;

// Where an operand begins in `memory`, as matrix_descriptor takes it, and how far the next step is.
struct GoldenOperand {
    int start, leading, stride, step;
};

__device__ __forceinline__ uint64_t golden_descriptor(int swizzle, const unsigned char* memory, GoldenOperand at, int step) {
    const unsigned char* const start = memory + at.start + step * at.step;
    if (swizzle == 128) return matrix_descriptor<128>(start, at.leading, at.stride);
    if (swizzle == 64) return matrix_descriptor<64>(start, at.leading, at.stride);
    if (swizzle == 32) return matrix_descriptor<32>(start, at.leading, at.stride);
    return matrix_descriptor<0>(start, at.leading, at.stride);
}

// `words` words of shared memory, from a multiple of 1024 bytes on, visible to the tensor cores.
#define GOLDEN_MEMORY(memory, words)                                                                                   \
    SHARED(uint32_t, space, [MEMORY_WORDS + 256]);                                                                     \
    unsigned char* const memory =                                                                                      \
        reinterpret_cast<unsigned char*>((reinterpret_cast<uint64_t>(&space[0]) + 1023) & ~uint64_t{1023});             \
    for (int i = threadIdx.x; i < MEMORY_WORDS; i += 128) reinterpret_cast<uint32_t*>(memory)[i] = words[i];           \
    fence_async_shared();                                                                                              \
    __syncthreads()

// y (128,N/2) = a · b of the operands in memory, added up over `steps` slices, + c of the same shape with `accumulate`.
#define GOLDEN_WGMMA(name, Type, N, A_MN, B_MN)                                                                       \
    KERNEL(128, 1) golden_wgmma_##name(const unsigned* words, const float* c, float* y, GoldenOperand a, GoldenOperand b, \
                                       int swizzle, int steps, int accumulate) {                                      \
        GOLDEN_MEMORY(memory, words);                                                                                 \
        float d[N / 2];                                                                                               \
        for (int i = 0; i < N / 2; ++i) d[i] = c[threadIdx.x * (N / 2) + i];                                          \
        wgmma_hold(d);                                                                                                \
        for (int k = 0; k < steps; ++k) {                                                                             \
            const uint64_t left = golden_descriptor(swizzle, memory, a, k);                                           \
            const uint64_t right = golden_descriptor(swizzle, memory, b, k);                                          \
            wgmma_fence();                                                                                            \
            wgmma<Type, N, A_MN, B_MN>(d, left, right, accumulate || k > 0);                                          \
        }                                                                                                             \
        wgmma_commit();                                                                                               \
        wgmma_wait<0>();                                                                                              \
        wgmma_hold(d);                                                                                                \
        for (int i = 0; i < N / 2; ++i) y[threadIdx.x * (N / 2) + i] = d[i];                                          \
    }
GOLDEN_WGMMA(bf16_8_kk, bfloat16, 8, false, false)
GOLDEN_WGMMA(bf16_16_kk, bfloat16, 16, false, false)
GOLDEN_WGMMA(bf16_32_kk, bfloat16, 32, false, false)
GOLDEN_WGMMA(bf16_64_kk, bfloat16, 64, false, false)
GOLDEN_WGMMA(bf16_96_kk, bfloat16, 96, false, false)
GOLDEN_WGMMA(bf16_128_kk, bfloat16, 128, false, false)
GOLDEN_WGMMA(bf16_192_kk, bfloat16, 192, false, false)
GOLDEN_WGMMA(bf16_200_kk, bfloat16, 200, false, false)
GOLDEN_WGMMA(bf16_256_kk, bfloat16, 256, false, false)
GOLDEN_WGMMA(bf16_8_mm, bfloat16, 8, true, true)
GOLDEN_WGMMA(bf16_64_mk, bfloat16, 64, true, false)
GOLDEN_WGMMA(bf16_128_km, bfloat16, 128, false, true)
GOLDEN_WGMMA(bf16_256_mm, bfloat16, 256, true, true)
GOLDEN_WGMMA(f16_8_kk, float16, 8, false, false)
GOLDEN_WGMMA(f16_64_mm, float16, 64, true, true)
GOLDEN_WGMMA(f16_96_km, float16, 96, false, true)
GOLDEN_WGMMA(tf32_8_kk, Tf32Bits, 8, false, false)
GOLDEN_WGMMA(tf32_64_kk, Tf32Bits, 64, false, false)
GOLDEN_WGMMA(tf32_256_kk, Tf32Bits, 256, false, false)

// The same with a in registers (STEPS_MAX,128,4).
#define GOLDEN_WGMMA_REGISTERS(name, Type, N, B_MN)                                                                   \
    KERNEL(128, 1) golden_wgmma_registers_##name(const unsigned* words, const unsigned* a, const float* c, float* y,  \
                                                 GoldenOperand b, int swizzle, int accumulate) {                      \
        GOLDEN_MEMORY(memory, words);                                                                                 \
        float d[N / 2];                                                                                               \
        for (int i = 0; i < N / 2; ++i) d[i] = c[threadIdx.x * (N / 2) + i];                                          \
        uint32_t left[STEPS_MAX][4];                                                                                  \
        for (int k = 0; k < STEPS_MAX; ++k)                                                                           \
            for (int i = 0; i < 4; ++i) left[k][i] = a[(k * 128 + threadIdx.x) * 4 + i];                              \
        wgmma_hold(d);                                                                                                \
        for (int k = 0; k < STEPS_MAX; ++k) {                                                                         \
            const uint64_t right = golden_descriptor(swizzle, memory, b, k);                                          \
            wgmma_fence();                                                                                            \
            wgmma_registers<Type, N, B_MN>(d, left[k], right, accumulate || k > 0);                                   \
        }                                                                                                             \
        wgmma_commit();                                                                                               \
        wgmma_wait<0>();                                                                                              \
        wgmma_hold(d);                                                                                                \
        for (int i = 0; i < N / 2; ++i) y[threadIdx.x * (N / 2) + i] = d[i];                                          \
    }
GOLDEN_WGMMA_REGISTERS(bf16_64_k, bfloat16, 64, false)
GOLDEN_WGMMA_REGISTERS(bf16_128_m, bfloat16, 128, true)
GOLDEN_WGMMA_REGISTERS(f16_32_k, float16, 32, false)
GOLDEN_WGMMA_REGISTERS(tf32_64_k, Tf32Bits, 64, false)

// y (6,32 rows,8 halves): what stmatrix x4, x2, x1, then transposed, writes over 0xFFFF to 32 rows whose order `rows`
// gives; registers (32,4).
KERNEL(32, 1) golden_store_matrices(const unsigned* registers, const int* rows, unsigned* y) {
    SHARED(uint32_t, tile, [32 * 4]);
    uint32_t four[4], two[2], one[1];
    for (int i = 0; i < 4; ++i) four[i] = registers[threadIdx.x * 4 + i];
    two[0] = four[0], two[1] = four[1], one[0] = four[0];
    uint32_t* const row = tile + rows[threadIdx.x] * 4;
    for (int form = 0; form < 6; ++form) {
        for (int i = threadIdx.x; i < 128; i += 32) tile[i] = 0xffffffffu;
        __syncthreads();
        if (form == 0) store_matrices<4, false>(row, four);
        if (form == 1) store_matrices<2, false>(row, two);
        if (form == 2) store_matrices<1, false>(row, one);
        if (form == 3) store_matrices<4, true>(row, four);
        if (form == 4) store_matrices<2, true>(row, two);
        if (form == 5) store_matrices<1, true>(row, one);
        __syncthreads();
        for (int i = threadIdx.x; i < 128; i += 32) y[form * 128 + i] = tile[i];
        __syncthreads();
    }
}
