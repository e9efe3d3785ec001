// Included by tensor_core.cpp twice: for every CPU, and for those with wide vectors, whose code must not be the other's.

typedef float Floats __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(32), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(64)));
typedef int64_t LongIntegers __attribute__((vector_size(64)));

// c += a · b in eight columns over STEP terms of a row of a, of moderate numbers. Every term is an integer below 2^27
// once it is cut off, so that nine of them have a sum below 2^31.
template <int STEP>
inline __attribute__((always_inline)) void add_moderate(const float* a, const int* a_exponent, const float* b,
                                                        const int* b_exponent, float* c, int columns, int fraction) {
    const Floats before = *reinterpret_cast<const Floats*>(c);
    const Integers field = (reinterpret_cast<Integers>(before) >> 23 & 255) - 127;
    Integers largest = field > EXPONENT_MIN ? field : Integers{} + EXPONENT_MIN;  // no product that counts is smaller
#pragma GCC unroll 16
    for (int k = 0; k < STEP; ++k) {
        const Integers sum = a_exponent[k] + *reinterpret_cast<const Integers*>(b_exponent + k * columns);
        largest = sum > largest ? sum : largest;
    }
    const Floats scale = reinterpret_cast<Floats>((fraction + 127 - largest) << 23);
    Integers sums[2] = {__builtin_convertvector(before * scale, Integers), Integers{}};
#pragma GCC unroll 16
    for (int k = 0; k < STEP; ++k) {
        const Floats product = a[k] * *reinterpret_cast<const Floats*>(b + k * columns);
        sums[k / 8] += __builtin_convertvector(product * scale, Integers);
    }
    const Doubles unit = reinterpret_cast<Doubles>((__builtin_convertvector(largest, LongIntegers) + (1023 - fraction)) << 52);
    const Doubles sum = __builtin_convertvector(sums[0], Doubles) + __builtin_convertvector(sums[1], Doubles);
    // Without the bits that float32 has not, the conversion is exact.
    const LongIntegers cut = reinterpret_cast<LongIntegers>(sum * unit) >> 29 << 29;
    *reinterpret_cast<Floats*>(c) = __builtin_convertvector(reinterpret_cast<Doubles>(cut), Floats);
}

template <int STEP>
inline __attribute__((always_inline)) void add_moderate_rows(const MatrixProduct& p, const Operand& left,
                                                             const Operand& right, int fraction) {
    const float *const a = reinterpret_cast<const float*>(p.a), *const b = reinterpret_cast<const float*>(p.b);
    for (int row = 0; row < p.rows; ++row)
        for (int n = 0; n < p.columns; n += 8)
            for (int k = 0; k < p.terms; k += STEP) {
                const int at = row * p.terms + k, from = k * p.columns + n;
                add_moderate<STEP>(a + at, left.exponent + at, b + from, right.exponent + from, p.c + row * p.columns + n,
                                   p.columns, fraction);
            }
}

inline void add_moderate_product(const MatrixProduct& p, const Operand& left, const Operand& right, int fraction,
                                     int step) {
    if (step == 16) add_moderate_rows<16>(p, left, right, fraction);
    if (step == 8) add_moderate_rows<8>(p, left, right, fraction);
    if (step == 4) add_moderate_rows<4>(p, left, right, fraction);
}
