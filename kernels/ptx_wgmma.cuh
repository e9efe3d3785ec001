// Tensor cores of sm_90a by wgmma, each primitive with two bodies: PTX on the device, its meaning in the simulator.
//
// A warpgroup, four warps of which the first has a number divisible by four, multiplies a (64,k) by b (k,N) from shared
// memory and adds to d (64,N) in registers; k is 16 terms of 16 bits or 8 of tf32. With warp w of the four, g = lane / 4
// and t = lane % 4, d[i] is in row 16w + g + 8 * (i / 2 % 2) and column 8 * (i / 4) + 2t + i % 2. An operand is K-major
// where the terms of a row of a (a column of b) lie side by side, MN-major where the rows (columns) of a term do.
//
// Operations are asynchronous: wgmma_fence, any number of wgmma, wgmma_commit, wgmma_wait. Until the wait for their group
// nobody may read or write d, or overwrite what they read, registers or shared memory. Shared memory that threads have
// written themselves needs fence_async_shared by the writers and a barrier before. Every register array is indexed by
// constants, and all of this is inlined, or the compiler waits for each operation. Sums are cut off, not rounded.
// On other architectures the functions do nothing.
#pragma once
#include "ptx_convert.cuh"

// The bits of float32 values, of which tf32 keeps 10 of fraction.
struct Tf32Bits {
    uint32_t bits;
};

// Where an operand lies, by its first element, and how: in rows of SWIZZLE_BYTES (32, 64, 128; 0: 16 and no swizzle) that
// make groups of eight. Bits 7, 8 and 9 of an address are added to 4, 5 and 6 by exclusive or, as the copy engine does.
// Multiples of 16 bytes:
// - K-major: groups of eight rows of the matrix are `stride_bytes` apart; leading_bytes is not used
// - MN-major: groups of eight terms are `stride_bytes` apart, SWIZZLE_BYTES of a term and the next `leading_bytes`
// - no swizzle: two neighbours in k are `leading_bytes` apart (K-major: 16 bytes each; MN-major: eight terms), two in
//   the rows of the matrix `stride_bytes` (groups of eight rows)
// The first element is in the first row of its group, which starts at a multiple of 8 * SWIZZLE_BYTES.
template <int SWIZZLE_BYTES>
__device__ __forceinline__ uint64_t matrix_descriptor(const void* shared, int leading_bytes, int stride_bytes) {
    static_assert(SWIZZLE_BYTES == 0 || SWIZZLE_BYTES == 32 || SWIZZLE_BYTES == 64 || SWIZZLE_BYTES == 128, "the swizzles");
    constexpr uint64_t MODE = SWIZZLE_BYTES == 128 ? 1 : SWIZZLE_BYTES == 64 ? 2 : SWIZZLE_BYTES == 32 ? 3 : 0;
#if !defined(__CUDACC__)
    const uint64_t address = simulator::shared_address(shared);
#else
    const uint64_t address = static_cast<unsigned>(__cvta_generic_to_shared(shared)) & 0x3ffff;
#endif
    return address >> 4 | static_cast<uint64_t>(leading_bytes >> 4) << 16 | static_cast<uint64_t>(stride_bytes >> 4) << 32 |
           MODE << 62;
}


// How PTX writes an element type, and the majors, which tf32 has no choice of: "%C" operands of the instructions below.
template <class Type>
struct WgmmaType;
template <>
struct WgmmaType<bfloat16> {
    static constexpr char NAME[] = "k16.f32.bf16.bf16";
    static constexpr int BYTES = 2;
};
template <>
struct WgmmaType<float16> {
    static constexpr char NAME[] = "k16.f32.f16.f16";
    static constexpr int BYTES = 2;
};
template <>
struct WgmmaType<Tf32Bits> {
    static constexpr char NAME[] = "k8.f32.tf32.tf32";
    static constexpr int BYTES = 4;
};
template <int BYTES, bool A_MN_MAJOR, bool B_MN_MAJOR>
struct WgmmaMajors {
    static constexpr char BOTH[] = {',', A_MN_MAJOR ? '1' : '0', ',', B_MN_MAJOR ? '1' : '0', 0};
    static constexpr char OF_B[] = {',', B_MN_MAJOR ? '1' : '0', 0};
};
template <bool A_MN_MAJOR, bool B_MN_MAJOR>
struct WgmmaMajors<4, A_MN_MAJOR, B_MN_MAJOR> {
    static_assert(!A_MN_MAJOR && !B_MN_MAJOR, "tf32 has K-major operands only");
    static constexpr char BOTH[] = "", OF_B[] = "";
};

#if !defined(__CUDACC__)
inline simulator::Format wgmma_format(bfloat16) { return simulator::Format::BF16; }
inline simulator::Format wgmma_format(float16) { return simulator::Format::F16; }
inline simulator::Format wgmma_format(Tf32Bits) { return simulator::Format::TF32; }
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
// "%0,%1,…,%n": the registers of d in PTX, in tens and what is left, and the operands that they stand for.
#define GPUCNN_2(t) "%" #t "0,%" #t "1"
#define GPUCNN_4(t) GPUCNN_2(t) ",%" #t "2,%" #t "3"
#define GPUCNN_6(t) GPUCNN_4(t) ",%" #t "4,%" #t "5"
#define GPUCNN_8(t) GPUCNN_6(t) ",%" #t "6,%" #t "7"
#define GPUCNN_10(t) GPUCNN_8(t) ",%" #t "8,%" #t "9,"
#define GPUCNN_40 GPUCNN_10() GPUCNN_10(1) GPUCNN_10(2) GPUCNN_10(3)
#define GPUCNN_90 GPUCNN_40 GPUCNN_10(4) GPUCNN_10(5) GPUCNN_10(6) GPUCNN_10(7) GPUCNN_10(8)
#define GPUCNN_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define GPUCNN_D8(i) GPUCNN_D4(i), GPUCNN_D4(i + 4)
#define GPUCNN_D16(i) GPUCNN_D8(i), GPUCNN_D8(i + 8)
#define GPUCNN_D32(i) GPUCNN_D16(i), GPUCNN_D16(i + 16)
#define GPUCNN_D48(i) GPUCNN_D32(i), GPUCNN_D16(i + 32)
#define GPUCNN_D64(i) GPUCNN_D32(i), GPUCNN_D32(i + 32)
#define GPUCNN_D96(i) GPUCNN_D64(i), GPUCNN_D32(i + 64)
#define GPUCNN_D100(i) GPUCNN_D96(i), GPUCNN_D4(i + 96)
#define GPUCNN_D128(i) GPUCNN_D64(i), GPUCNN_D64(i + 64)
// Every N, its registers, their operands, and the numbers of the operands that follow.
#define GPUCNN_WGMMA_SIZES(USE)                                                                                       \
    USE(8, GPUCNN_4(), GPUCNN_D4(0), 4, 5, 6, 7, 8, 9, 10, 11)                                                        \
    USE(16, GPUCNN_8(), GPUCNN_D8(0), 8, 9, 10, 11, 12, 13, 14, 15)                                                   \
    USE(32, GPUCNN_10() GPUCNN_6(1), GPUCNN_D16(0), 16, 17, 18, 19, 20, 21, 22, 23)                                   \
    USE(64, GPUCNN_10() GPUCNN_10(1) GPUCNN_10(2) GPUCNN_2(3), GPUCNN_D32(0), 32, 33, 34, 35, 36, 37, 38, 39)         \
    USE(96, GPUCNN_40 GPUCNN_8(4), GPUCNN_D48(0), 48, 49, 50, 51, 52, 53, 54, 55)                                     \
    USE(128, GPUCNN_40 GPUCNN_10(4) GPUCNN_10(5) GPUCNN_4(6), GPUCNN_D64(0), 64, 65, 66, 67, 68, 69, 70, 71)          \
    USE(192, GPUCNN_90 GPUCNN_6(9), GPUCNN_D96(0), 96, 97, 98, 99, 100, 101, 102, 103)                                \
    USE(200, GPUCNN_90 GPUCNN_8(9) ",%98,%99", GPUCNN_D100(0), 100, 101, 102, 103, 104, 105, 106, 107)                \
    USE(256, GPUCNN_90 GPUCNN_10(9) GPUCNN_10(10) GPUCNN_10(11) GPUCNN_8(12), GPUCNN_D128(0), 128, 129, 130, 131,     \
        132, 133, 134, 135)
#define GPUCNN_WGMMA_TEXT(SIZE, REGISTERS, A, B, SCALE, FORM, MAJORS)                                 \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %" #SCALE ", 0;\nwgmma.mma_async.sync.aligned.m64n" #SIZE "%" #FORM \
    " {" REGISTERS "}, " A ", %" #B ", p, 1, 1%" #MAJORS ";\n}"
#define GPUCNN_WGMMA_SHARED(SIZE, REGISTERS, D, A, B, SCALE, FORM, MAJORS, ...)                                     \
    if constexpr (N == SIZE)                                                                                      \
        asm volatile(GPUCNN_WGMMA_TEXT(SIZE, REGISTERS, "%" #A, B, SCALE, FORM, MAJORS)                             \
                     : D                                                                                          \
                     : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "C"(WgmmaType<Type>::NAME), "C"(Majors::BOTH));
#define GPUCNN_WGMMA_REGISTERS(SIZE, REGISTERS, D, A0, A1, A2, A3, B, SCALE, FORM, MAJORS)                              \
    if constexpr (N == SIZE)                                                                                          \
        asm volatile(GPUCNN_WGMMA_TEXT(SIZE, REGISTERS, "{%" #A0 ",%" #A1 ",%" #A2 ",%" #A3 "}", B, SCALE, FORM, MAJORS) \
                     : D                                                                                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),           \
                       "C"(WgmmaType<Type>::NAME), "C"(Majors::OF_B));
#else
#define GPUCNN_WGMMA_SIZES(USE)
#endif

template <int N>
constexpr bool WGMMA_HAS_SIZE = N == 8 || N == 16 || N == 32 || N == 64 || N == 96 || N == 128 || N == 192 || N == 200 ||
                                N == 256;

// d = a · b, plus d itself with `accumulate`; without it d need not be set before. Both operands from shared memory.
template <class Type, int N, bool A_MN_MAJOR = false, bool B_MN_MAJOR = false>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(WGMMA_HAS_SIZE<N>, "the sizes that are written out above");
    using Majors = WgmmaMajors<WgmmaType<Type>::BYTES, A_MN_MAJOR, B_MN_MAJOR>;
#if !defined(__CUDACC__)
    simulator::multiply_warpgroup(
        {wgmma_format(Type{}), N, A_MN_MAJOR, B_MN_MAJOR, accumulate, a, b, nullptr, d}, {__FILE__, __LINE__});
#else
    GPUCNN_WGMMA_SIZES(GPUCNN_WGMMA_SHARED)
#endif
}

// The same with rows 16w to 16w + 15 of a in registers, as a warp holds them for mma.sync (ptx_mma.cuh). They may not
// change until the wait either.
template <class Type, int N, bool B_MN_MAJOR = false>
__device__ __forceinline__ void wgmma_registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(WGMMA_HAS_SIZE<N>, "the sizes that are written out above");
    using Majors = WgmmaMajors<WgmmaType<Type>::BYTES, false, B_MN_MAJOR>;
#if !defined(__CUDACC__)
    simulator::multiply_warpgroup(
        {wgmma_format(Type{}), N, false, B_MN_MAJOR, accumulate, 0, b, a, d}, {__FILE__, __LINE__});
#else
    GPUCNN_WGMMA_SIZES(GPUCNN_WGMMA_REGISTERS)
#endif
}

// Before the first wgmma, and before one whose registers other instructions have touched since.
__device__ __forceinline__ void wgmma_fence() {
#if !defined(__CUDACC__)
    simulator::warpgroup_fence({__FILE__, __LINE__});
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// The operations since the last one are a group.
__device__ __forceinline__ void wgmma_commit() {
#if !defined(__CUDACC__)
    simulator::warpgroup_commit({__FILE__, __LINE__});
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Until at most GROUPS groups are under way.
template <int GROUPS>
__device__ __forceinline__ void wgmma_wait() {
    static_assert(GROUPS >= 0 && GROUPS < 8, "what wgmma.wait_group takes");
#if !defined(__CUDACC__)
    simulator::warpgroup_wait(GROUPS, {__FILE__, __LINE__});
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
#endif
}

// Keeps the compiler from moving accesses to the registers across this place: it knows nothing of what is under way.
// Between the last wait and the first use of d; before the first fence where d was set.
template <int COUNT>
__device__ __forceinline__ void wgmma_hold(float (&d)[COUNT]) {
#if defined(__CUDACC__)
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}
