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

// Code for wide vectors where the CPU has them; the results are the same.
#define VECTORIZED __attribute__((target_clones("avx2", "default")))

template <class To, class From>
To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}

uint32_t half_to_float(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                            : exponent     ? ldexpf(1024 + fraction, exponent - 25)
                                           : ldexpf(fraction, -24);
    return bits_as<uint32_t>(magnitude) | uint32_t{bits} >> 15 << 31;
}

const uint32_t* half_table() {
    static const std::vector<uint32_t> table = [] {
        std::vector<uint32_t> values(1 << 16);
        for (uint32_t i = 0; i < values.size(); ++i) values[i] = half_to_float(i);
        return values;
    }();
    return table.data();
}

// An operand's numbers, their float32 bits first, then what products need of them.
template <int COUNT>
struct Operand {
    uint32_t bits[COUNT];
    double value[COUNT];
    int exponent[COUNT];  // as stored; of the format's subnormals, that of its smallest normal number
};

struct Matrices {
    Operand<ROWS * TERMS_MAX> a;     // (row, term)
    Operand<TERMS_MAX * COLUMNS> b;  // (term, column)
    float c[ROWS][COLUMNS];
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
    const int terms = first.terms;
    const uint32_t* const halves = first.format == Format::F16 ? half_table() : nullptr;
    const auto widen = [&](uint32_t half) { return halves ? halves[half] : half << 16; };
    for (int lane = 0; lane < 32; ++lane) {
        const auto& own = *static_cast<const Fragments*>(lanes[lane]);
        const int group = lane / 4, member = lane % 4;
        if (first.format == Format::TF32) {
            for (int i = 0; i < 4; ++i)  // the lowest 13 bits are not looked at
                m.a.bits[(group + 8 * (i % 2)) * terms + member + 4 * (i / 2)] = own.a[i] & 0xFFFFE000u;
            for (int i = 0; i < 2; ++i) m.b.bits[(member + 4 * i) * COLUMNS + group] = own.b[i] & 0xFFFFE000u;
        } else {
            for (int i = 0; i < 4; ++i) {
                uint32_t* const pair = &m.a.bits[(group + 8 * (i % 2)) * terms + 2 * member + 8 * (i / 2)];
                pair[0] = widen(own.a[i] & 0xFFFF), pair[1] = widen(own.a[i] >> 16);
            }
            for (int i = 0; i < 2; ++i) {
                uint32_t* const pair = &m.b.bits[(2 * member + 8 * i) * COLUMNS + group];
                pair[0] = widen(own.b[i] & 0xFFFF), pair[COLUMNS] = widen(own.b[i] >> 16);
            }
        }
        for (int i = 0; i < 4; ++i) m.c[group + 8 * (i / 2)][2 * member + i % 2] = own.d[i];
    }
}

// Fills in values and exponents; whether all numbers are finite.
VECTORIZED bool prepare_operand(const uint32_t* bits, double* value, int* exponent, int count, int smallest) {
    uint32_t special = 0;
    for (int i = 0; i < count; ++i) {
        const int field = bits[i] >> 23 & 255;
        special |= field == 255;
        const int stored = field - 127 > smallest ? field - 127 : smallest;
        exponent[i] = bits[i] << 1 ? stored : NO_EXPONENT;
    }
    for (int i = 0; i < count; ++i) value[i] = bits_as<float>(bits[i]);
    return !special;
}

// 2^exponent for exponents of normal doubles.
inline double power(int exponent) { return bits_as<double>(static_cast<int64_t>(exponent + 1023) << 52); }

// The float32 between 0 and the value that is nearest to it.
inline float cut_off(double value) {
    const float rounded = static_cast<float>(value);
    return std::fabs(value) < 0x1p128 && std::fabs(rounded) > std::fabs(value) ? nextafterf(rounded, 0) : rounded;
}

// c += a · b over `count` terms of a row of a, of finite numbers.
VECTORIZED void add_products(const double* a, const int* a_exponent, const double* b, const int* b_exponent, float* c,
                             int count, int fraction) {
    int largest[COLUMNS];
    double scale[COLUMNS], sum[COLUMNS];
    for (int n = 0; n < COLUMNS; ++n) {
        const int field = bits_as<uint32_t>(c[n]) >> 23 & 255;
        largest[n] = c[n] != 0 ? (field > 1 ? field : 1) - 127 : -300;
    }
    for (int k = 0; k < count; ++k)
        for (int n = 0; n < COLUMNS; ++n) {
            const int sum_of_exponents = a_exponent[k] + b_exponent[k * COLUMNS + n];
            largest[n] = sum_of_exponents > largest[n] ? sum_of_exponents : largest[n];
        }
    for (int n = 0; n < COLUMNS; ++n) {
        scale[n] = power(fraction - largest[n]);
        sum[n] = static_cast<int>(c[n] * scale[n]);
    }
    for (int k = 0; k < count; ++k)
        for (int n = 0; n < COLUMNS; ++n) sum[n] += static_cast<int>(a[k] * b[k * COLUMNS + n] * scale[n]);
    uint64_t unusual = 0;
    double result[COLUMNS];
    for (int n = 0; n < COLUMNS; ++n) {
        result[n] = sum[n] * power(largest[n] - fraction);
        const double magnitude = std::fabs(result[n]);
        unusual |= !(magnitude < 0x1p128) | (magnitude < 0x1p-126 & magnitude != 0);
    }
    if (unusual) {
        for (int n = 0; n < COLUMNS; ++n) c[n] = cut_off(result[n]);
    } else {  // without the bits that float32 has not, the conversion is exact
        for (int n = 0; n < COLUMNS; ++n) c[n] = static_cast<float>(bits_as<double>(bits_as<uint64_t>(result[n]) >> 29 << 29));
    }
}

// What infinities and NaNs make of an output; anything else is as it was computed.
void set_special(const double* a, const double* b, float before, float& c, int terms) {
    double sum = before;
    bool finite = std::isfinite(sum);
    for (int k = 0; k < terms; ++k) {
        finite &= std::isfinite(a[k]) && std::isfinite(b[k * COLUMNS]);
        sum += a[k] * b[k * COLUMNS];
    }
    if (!finite) c = std::isnan(sum) ? bits_as<float>(0x7FFFFFFF) : static_cast<float>(sum);
}

void multiply_lanes(void* const* lanes, uint32_t) {
    const auto& first = *static_cast<const Fragments*>(lanes[0]);
    const int terms = first.terms;
    for (int lane = 1; lane < 32; ++lane) {
        const auto& other = *static_cast<const Fragments*>(lanes[lane]);
        if (other.format != first.format || other.terms != terms)
            fail("mma", "the lanes of a warp multiply different shapes or formats", {nullptr, 0});
    }
    const bool hopper = block.launch->architecture >= 90;
    const int fraction = hopper ? 25 : 24, smallest = first.format == Format::F16 ? -14 : -126;
    const int step = std::min(terms, (first.format == Format::TF32 ? 4 : 8) * (hopper ? 2 : 1));
    Matrices m;
    gather(lanes, m);
    bool finite = prepare_operand(m.a.bits, m.a.value, m.a.exponent, ROWS * terms, smallest);
    finite &= prepare_operand(m.b.bits, m.b.value, m.b.exponent, terms * COLUMNS, smallest);
    for (const auto& row : m.c)
        for (const float value : row) finite &= std::isfinite(value);
    float before[ROWS][COLUMNS];
    memcpy(before, m.c, sizeof before);
    for (int row = 0; row < ROWS; ++row) {
        const int at = row * terms;
        for (int k = 0; k < terms; k += step)
            add_products(m.a.value + at + k, m.a.exponent + at + k, m.b.value + k * COLUMNS, m.b.exponent + k * COLUMNS,
                         m.c[row], step, fraction);
        if (finite) continue;
        for (int n = 0; n < COLUMNS; ++n) set_special(m.a.value + at, m.b.value + n, before[row][n], m.c[row][n], terms);
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
