// What mma.sync computes, bit by bit, as measurements of tensor cores describe it (Li et al., MMA-Sim, arXiv 2511.10909):
//
// Products are exact. Of c and all products that are not 0, e is the largest exponent, a product's being the sum of its
// factors' (so its significand is below 4). Every term is cut off after FRACTION bits below 2^e, the sum of what is left
// is exact, and its result in float32 is cut off too: never rounded up. Ampere and Ada have 24 bits and add one half of
// the terms after the other; Hopper has 25 and adds all at once. Subnormals count; every NaN is 0x7FFFFFFF.
#include "runtime.hpp"

#include <algorithm>
#include <cmath>

namespace simulator {
namespace {

constexpr int ROWS = 16, COLUMNS = 8, TERMS_MAX = 16;
constexpr int NO_EXPONENT = -2000;  // of 0: below that of every product

float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

float from_half(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                            : exponent     ? ldexpf(1024 + fraction, exponent - 25)
                                           : ldexpf(fraction, -24);
    return bits >> 15 ? -magnitude : magnitude;
}

// The i-th element of a fragment's registers.
float element(Format format, const uint32_t* registers, int i) {
    if (format == Format::TF32) return from_bits(registers[i] & 0xFFFFE000u);  // the lowest 13 bits are not looked at
    const uint16_t half = registers[i / 2] >> 16 * (i % 2);
    return format == Format::BF16 ? from_bits(uint32_t{half} << 16) : from_half(half);
}

// The exponent with which a number is stored; of the format's subnormals, that of its smallest normal number.
int exponent(float value, int smallest) {
    if (value == 0) return NO_EXPONENT;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return std::max(static_cast<int>(bits >> 23 & 255) - 127, smallest);
}

struct Matrices {
    double a[ROWS][TERMS_MAX], b[TERMS_MAX][COLUMNS];
    int a_exponent[ROWS][TERMS_MAX], b_exponent[TERMS_MAX][COLUMNS];
    float c[ROWS][COLUMNS];
    bool finite = true;
};

struct Fragments {
    Format format;
    int terms;
    const uint32_t *a, *b;
    float* d;
};

// PTX ISA, "Matrix Fragments for mma.m16n8k8" and "m16n8k16": where a lane's elements stand.
void gather(void* const* lanes, Matrices& m) {
    const auto& first = *static_cast<const Fragments*>(lanes[0]);
    const bool tf32 = first.format == Format::TF32;
    const int smallest = first.format == Format::F16 ? -14 : -126;
    for (int lane = 0; lane < 32; ++lane) {
        const auto& own = *static_cast<const Fragments*>(lanes[lane]);
        const int group = lane / 4, member = lane % 4;
        for (int i = 0; i < first.terms / 2; ++i) {
            const int row = group + 8 * (tf32 ? i % 2 : i / 2 % 2);
            const int k = tf32 ? member + 4 * (i / 2) : 2 * member + i % 2 + 8 * (i / 4);
            const float value = element(first.format, own.a, i);
            m.a[row][k] = value;
            m.a_exponent[row][k] = exponent(value, smallest);
            m.finite &= std::isfinite(value);
        }
        for (int i = 0; i < first.terms / 4; ++i) {
            const int k = tf32 ? member + 4 * i : 2 * member + i % 2 + 8 * (i / 2);
            const float value = element(first.format, own.b, i);
            m.b[k][group] = value;
            m.b_exponent[k][group] = exponent(value, smallest);
            m.finite &= std::isfinite(value);
        }
        for (int i = 0; i < 4; ++i) {
            m.c[group + 8 * (i / 2)][2 * member + i % 2] = own.d[i];
            m.finite &= std::isfinite(own.d[i]);
        }
    }
}

// 2^exponent for exponents of normal doubles.
double power(int exponent) {
    const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

// A float32 between 0 and the value, the nearest one.
float cut_off(double value) {
    const float rounded = static_cast<float>(value);
    return std::fabs(value) < 0x1p128 && std::fabs(rounded) > std::fabs(value) ? nextafterf(rounded, 0) : rounded;
}

// c[row] += a[row] · b over the terms [first, first + count), of finite numbers.
void add_products(Matrices& m, int row, int first, int count, int fraction) {
    int largest[COLUMNS];
    double scale[COLUMNS], sum[COLUMNS];
    for (int n = 0; n < COLUMNS; ++n) largest[n] = std::max(exponent(m.c[row][n], -126), -300);
    for (int k = first; k < first + count; ++k)
        for (int n = 0; n < COLUMNS; ++n)
            largest[n] = std::max(largest[n], m.a_exponent[row][k] + m.b_exponent[k][n]);
    for (int n = 0; n < COLUMNS; ++n) {
        scale[n] = power(fraction - largest[n]);
        sum[n] = static_cast<int>(m.c[row][n] * scale[n]);
    }
    for (int k = first; k < first + count; ++k)
        for (int n = 0; n < COLUMNS; ++n) sum[n] += static_cast<int>(m.a[row][k] * m.b[k][n] * scale[n]);
    for (int n = 0; n < COLUMNS; ++n) m.c[row][n] = cut_off(sum[n] * power(largest[n] - fraction));
}

// What infinities and NaNs make of an output; anything else is as it was computed.
void set_special(Matrices& m, float before, int row, int column, int terms) {
    double sum = before;
    bool finite = std::isfinite(sum);
    for (int k = 0; k < terms; ++k) {
        finite &= std::isfinite(m.a[row][k]) && std::isfinite(m.b[k][column]);
        sum += m.a[row][k] * m.b[k][column];
    }
    if (!finite) m.c[row][column] = std::isnan(sum) ? from_bits(0x7FFFFFFF) : static_cast<float>(sum);
}

void multiply_lanes(void* const* lanes, uint32_t) {
    const auto& first = *static_cast<const Fragments*>(lanes[0]);
    for (int lane = 1; lane < 32; ++lane) {
        const auto& other = *static_cast<const Fragments*>(lanes[lane]);
        if (other.format != first.format || other.terms != first.terms)
            fail("mma", "the lanes of a warp multiply different shapes or formats", {nullptr, 0});
    }
    const bool hopper = block.launch->architecture >= 90;
    const int fraction = hopper ? 25 : 24;
    const int step = std::min(first.terms, (first.format == Format::TF32 ? 4 : 8) * (hopper ? 2 : 1));
    Matrices m;
    gather(lanes, m);
    float before[ROWS][COLUMNS];
    memcpy(before, m.c, sizeof before);
    for (int row = 0; row < ROWS; ++row) {
        for (int k = 0; k < first.terms; k += step) add_products(m, row, k, step, fraction);
        if (m.finite) continue;
        for (int column = 0; column < COLUMNS; ++column) set_special(m, before[row][column], row, column, first.terms);
    }
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i)
            static_cast<const Fragments*>(lanes[lane])->d[i] = m.c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
}

// Lane 8j + r brings row r of matrix j; every lane takes elements from all rows (PTX ISA, ldmatrix).
struct MatrixRow {
    const uint32_t* row;  // 8 halves
    uint32_t* result;
    int matrices;
    bool transposed;
};

void exchange_rows(void* const* lanes, uint32_t) {
    const auto row_of = [&](int lane) { return static_cast<const MatrixRow*>(lanes[lane])->row; };
    for (int lane = 0; lane < 32; ++lane) {
        const auto& own = *static_cast<const MatrixRow*>(lanes[lane]);
        const int group = lane / 4, member = lane % 4;
        for (int j = 0; j < own.matrices; ++j) {
            const auto half = [&](int r, int c) { return row_of(8 * j + r)[c / 2] >> 16 * (c % 2) & 0xFFFF; };
            own.result[j] = own.transposed ? half(2 * member, group) | half(2 * member + 1, group) << 16
                                           : row_of(8 * j + group)[member];
        }
    }
}

}  // namespace

void multiply_matrices(Format format, int terms, const uint32_t* a, const uint32_t* b, float* d, Place place) {
    if (block.launch->architecture < 80) fail("mma", "the instruction exists from sm_80 on", place);
    count_flops(2 * ROWS * COLUMNS * terms / 32);
    Fragments own{format, terms, a, b, d};
    warp_operation(~0u, &own, multiply_lanes, place);
}

void exchange_matrix_rows(const uint32_t* row, uint32_t* result, int matrices, bool transposed, Place place) {
    MatrixRow own{row, result, matrices, transposed};
    warp_operation(~0u, &own, exchange_rows, place);
}

}  // namespace simulator
