// Tensor cores by mma.sync, from sm_80 on, each primitive with two bodies: PTX on the device, its meaning in the simulator.
//
// A warp multiplies a (16,k) by b (k,8) and adds to d (16,8). With g = lane / 4 and t = lane % 4, a lane holds
// - of d: rows g, g, g + 8, g + 8; columns 2t, 2t + 1, 2t, 2t + 1
// - tf32, k = 8: of a rows g, g + 8, g, g + 8 and terms t, t, t + 4, t + 4; of b terms t, t + 4 in column g
// - 16 bits, k = 16, two terms a register, the first in its lower half: of a rows g, g + 8, g, g + 8 and terms 2t, 2t,
//   2t + 8, 2t + 8 and the ones after; of b terms 2t, 2t + 8 and the ones after, in column g
// (PTX ISA, matrix fragments of mma.m16n8k8 and mma.m16n8k16). Sums are cut off, not rounded, so long ones drift towards
// 0 unless they are added up outside. All lanes must take part. On sm_75 the functions do nothing: launches are refused
// by the operations that use them.
#pragma once
#include "common.cuh"

#if defined(__CUDACC__)
#define GPUCNN_MMA (__CUDA_ARCH__ >= 800)
#endif

// The nearest tf32, ties away from 0: float32 with 10 bits of fraction.
__device__ __forceinline__ uint32_t round_tf32(float value) {
#if !defined(__CUDACC__)
    const uint32_t bits = __float_as_uint(value);
    return ((bits & 0x7f800000u) == 0x7f800000u ? bits : bits + 0x1000u) & 0xffffe000u;
#elif GPUCNN_MMA
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
#else
    return __float_as_uint(value);
#endif
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDACC__)
    simulator::multiply_matrices(simulator::Format::TF32, 8, a, b, d, {__FILE__, __LINE__});
#elif GPUCNN_MMA
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDACC__)
    simulator::multiply_matrices(simulator::Format::BF16, 16, a, b, d, {__FILE__, __LINE__});
#elif GPUCNN_MMA
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDACC__)
    simulator::multiply_matrices(simulator::Format::F16, 16, a, b, d, {__FILE__, __LINE__});
#elif GPUCNN_MMA
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// ldmatrix: MATRICES (1, 2 or 4) matrices of 8×8 halves in shared memory. Lane 8j + r gives the address of row r of
// matrix j, a multiple of 16 (addresses of later lanes are ignored); register j gets row g, halves 2t and 2t + 1 of
// matrix j, or with TRANSPOSED rows 2t and 2t + 1 of column g. The rows of a matrix must fall into different 16-byte
// groups of a 128-byte line, or their reads take more than one pass.
template <int MATRICES, bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(uint32_t (&result)[MATRICES], const void* row) {
    static_assert(MATRICES == 1 || MATRICES == 2 || MATRICES == 4, "what ldmatrix has");
#if !defined(__CUDACC__)
    typedef uint32_t vector __attribute__((vector_size(16)));
    uint32_t own[4] = {};
    if (threadIdx.x % WARP_SIZE < 8 * MATRICES) {
        const vector values = *static_cast<const vector*>(row);
        for (int i = 0; i < 4; ++i) own[i] = values[i];
    }
    simulator::exchange_matrix_rows(own, result, MATRICES, TRANSPOSED, {__FILE__, __LINE__});
#elif GPUCNN_MMA
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if constexpr (MATRICES == 4) {
        if constexpr (TRANSPOSED)
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3]) : "r"(address) : "memory");
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3]) : "r"(address) : "memory");
    } else if constexpr (MATRICES == 2) {
        if constexpr (TRANSPOSED)
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                         : "=r"(result[0]), "=r"(result[1]) : "r"(address) : "memory");
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                         : "=r"(result[0]), "=r"(result[1]) : "r"(address) : "memory");
    } else {
        if constexpr (TRANSPOSED)
            asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(result[0]) : "r"(address) : "memory");
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(result[0]) : "r"(address) : "memory");
    }
#endif
}

// stmatrix, from sm_90 on: the inverse of load_matrices. Lane 8j + r gives the address of row r of matrix j, and register
// j has row g, halves 2t and 2t + 1 of matrix j, or with TRANSPOSED rows 2t and 2t + 1 of column g.
template <int MATRICES, bool TRANSPOSED>
__device__ __forceinline__ void store_matrices(void* row, const uint32_t (&values)[MATRICES]) {
    static_assert(MATRICES == 1 || MATRICES == 2 || MATRICES == 4, "what stmatrix has");
#if !defined(__CUDACC__)
    typedef uint32_t vector __attribute__((vector_size(16)));
    uint32_t own[4];
    simulator::gather_matrix_rows(values, own, MATRICES, TRANSPOSED, {__FILE__, __LINE__});
    if (threadIdx.x % WARP_SIZE < 8 * MATRICES) *static_cast<vector*>(row) = vector{own[0], own[1], own[2], own[3]};
#elif __CUDA_ARCH__ >= 900
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if constexpr (MATRICES == 4) {
        if constexpr (TRANSPOSED)
            asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};"
                         ::"r"(address), "r"(values[0]), "r"(values[1]), "r"(values[2]), "r"(values[3]) : "memory");
        else
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
                         ::"r"(address), "r"(values[0]), "r"(values[1]), "r"(values[2]), "r"(values[3]) : "memory");
    } else if constexpr (MATRICES == 2) {
        if constexpr (TRANSPOSED)
            asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};"
                         ::"r"(address), "r"(values[0]), "r"(values[1]) : "memory");
        else
            asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};"
                         ::"r"(address), "r"(values[0]), "r"(values[1]) : "memory");
    } else {
        if constexpr (TRANSPOSED)
            asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(values[0]) : "memory");
        else
            asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(address), "r"(values[0]) : "memory");
    }
#endif
}
