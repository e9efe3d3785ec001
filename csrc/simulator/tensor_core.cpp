// What mma.sync and wgmma compute, bit by bit, as measurements of tensor cores describe it (Li et al., MMA-Sim, arXiv 2511.10909):
//
// Products are exact. Of c and all products that are not 0, e is the largest exponent, a product's being the sum of its
// factors' (so its significand is below 4). Every term is cut off after FRACTION bits below 2^e, the sum of what is left
// is exact, and its result in float32 is cut off too: never rounded up. Ampere and Ada have 24 bits and add one half of
// the terms after the other; Hopper has 25 and adds all at once. Subnormals count; every NaN is 0x7FFFFFFF.
#include "tensor_core.hpp"

#include <algorithm>
#include <cmath>

namespace simulator {
namespace {

constexpr int ROWS = 16, COLUMNS = 8;  // of mma.sync
constexpr int NO_EXPONENT = -2000;     // of 0: below that of every product
// With exponents and sums of exponents between these, a float32 holds every product exactly, and every scaled one.
constexpr int EXPONENT_MIN = -100, EXPONENT_MAX = 100;

// Code for wide vectors where the CPU has them; the results are the same.
#define VECTORIZED __attribute__((target_clones("avx2", "default")))

uint32_t half_to_float(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                            : exponent     ? ldexpf(1024 + fraction, exponent - 25)
                                           : ldexpf(fraction, -24);
    return bits_as<uint32_t>(magnitude) | uint32_t{bits} >> 15 << 31;
}

// What products need to know of an operand's numbers.
struct Operand {
    int exponent[PRODUCT_TERMS * PRODUCT_COLUMNS];  // as stored; of the format's subnormals, its smallest normal number's
    int least, largest;                             // of the exponents of numbers that are not 0
    bool finite;
};

VECTORIZED void prepare(const uint32_t* bits, int count, int smallest, Operand& operand) {
    uint32_t special = 0;
    int least = 1000, largest = NO_EXPONENT;
    for (int i = 0; i < count; ++i) {
        const int field = bits[i] >> 23 & 255;
        special |= field == 255;
        const int stored = field - 127 > smallest ? field - 127 : smallest;
        const int own = bits[i] << 1 ? stored : NO_EXPONENT, not_zero = bits[i] << 1 ? stored : 1000;
        operand.exponent[i] = own;
        least = not_zero < least ? not_zero : least;
        largest = own > largest ? own : largest;
    }
    operand.least = least;
    operand.largest = largest;
    operand.finite = !special;
}

// Whether all numbers are 0 or between 2^EXPONENT_MIN and 2^(EXPONENT_MAX + 1).
VECTORIZED bool is_moderate(const float* values, int count) {
    int outside = 0;
    for (int i = 0; i < count; ++i) {
        const uint32_t bits = bits_as<uint32_t>(values[i]);
        const int exponent = static_cast<int>(bits >> 23 & 255) - 127;
        outside |= (bits << 1 != 0) & ((exponent < EXPONENT_MIN) | (exponent > EXPONENT_MAX));
    }
    return !outside;
}

// 2^exponent for exponents of normal doubles.
inline double power(int exponent) { return bits_as<double>(static_cast<int64_t>(exponent + 1023) << 52); }

// The float32 between 0 and the value that is nearest to it.
inline float cut_off(double value) {
    const float rounded = static_cast<float>(value);
    return std::fabs(value) < 0x1p128 && std::fabs(rounded) > std::fabs(value) ? nextafterf(rounded, 0) : rounded;
}

namespace narrow {
#include "tensor_core_rows.hpp"
}
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2")
namespace wide {
#include "tensor_core_rows.hpp"
}
#pragma GCC pop_options
#endif

void add_moderate_product(const MatrixProduct& p, const Operand& left, const Operand& right, int fraction, int step) {
#if defined(__x86_64__)
    static const bool has_wide = __builtin_cpu_supports("avx2");
    if (has_wide) return wide::add_moderate_product(p, left, right, fraction, step);
#endif
    narrow::add_moderate_product(p, left, right, fraction, step);
}

// c += a · b in eight columns over `count` terms of a row of a, of any finite numbers.
VECTORIZED void add_products(const float* a, const int* a_exponent, const float* b, const int* b_exponent, float* c,
                             int columns, int count, int fraction) {
    int largest[COLUMNS];
    double scale[COLUMNS], sum[COLUMNS];
    for (int n = 0; n < COLUMNS; ++n) {
        const int field = bits_as<uint32_t>(c[n]) >> 23 & 255;
        largest[n] = c[n] != 0 ? (field > 1 ? field : 1) - 127 : -300;
    }
    for (int k = 0; k < count; ++k)
        for (int n = 0; n < COLUMNS; ++n) {
            const int sum_of_exponents = a_exponent[k] + b_exponent[k * columns + n];
            largest[n] = sum_of_exponents > largest[n] ? sum_of_exponents : largest[n];
        }
    for (int n = 0; n < COLUMNS; ++n) {
        scale[n] = power(fraction - largest[n]);
        sum[n] = static_cast<int>(c[n] * scale[n]);
    }
    for (int k = 0; k < count; ++k)
        for (int n = 0; n < COLUMNS; ++n)
            sum[n] += static_cast<int>(double{a[k]} * b[k * columns + n] * scale[n]);
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
void set_special(const float* a, const float* b, float before, float& c, int columns, int terms) {
    double sum = before;
    bool finite = std::isfinite(sum);
    for (int k = 0; k < terms; ++k) {
        finite &= std::isfinite(a[k]) && std::isfinite(b[k * columns]);
        sum += double{a[k]} * b[k * columns];
    }
    if (!finite) c = std::isnan(sum) ? bits_as<float>(0x7FFFFFFF) : static_cast<float>(sum);
}

void add_any_product(const MatrixProduct& p, const Operand& left, const Operand& right, int fraction, int step) {
    const float *const a = reinterpret_cast<const float*>(p.a), *const b = reinterpret_cast<const float*>(p.b);
    const bool finite = left.finite && right.finite &&
                        std::all_of(p.c, p.c + p.rows * p.columns, [](float value) { return std::isfinite(value); });
    for (int row = 0; row < p.rows; ++row) {
        float* const c = p.c + row * p.columns;
        float before[PRODUCT_COLUMNS];
        std::copy(c, c + p.columns, before);
        for (int n = 0; n < p.columns; n += COLUMNS)
            for (int k = 0; k < p.terms; k += step) {
                const int at = row * p.terms + k, from = k * p.columns + n;
                add_products(a + at, left.exponent + at, b + from, right.exponent + from, c + n, p.columns, step, fraction);
            }
        for (int n = 0; n < p.columns && !finite; ++n) set_special(a + row * p.terms, b + n, before[n], c[n], p.columns, p.terms);
    }
}

struct Fragments {
    Format format;
    int terms;
    const uint32_t *a, *b;
    float* d;
};

// Of a warp's mma.sync.
struct Matrices {
    uint32_t a[ROWS * PRODUCT_TERMS];     // (row, term)
    uint32_t b[PRODUCT_TERMS * COLUMNS];  // (term, column)
    float c[ROWS][COLUMNS];
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
                m.a[(group + 8 * (i % 2)) * terms + member + 4 * (i / 2)] = own.a[i] & 0xFFFFE000u;
            for (int i = 0; i < 2; ++i) m.b[(member + 4 * i) * COLUMNS + group] = own.b[i] & 0xFFFFE000u;
        } else {
            for (int i = 0; i < 4; ++i) {
                uint32_t* const pair = &m.a[(group + 8 * (i % 2)) * terms + 2 * member + 8 * (i / 2)];
                pair[0] = widen(own.a[i] & 0xFFFF), pair[1] = widen(own.a[i] >> 16);
            }
            for (int i = 0; i < 2; ++i) {
                uint32_t* const pair = &m.b[(2 * member + 8 * i) * COLUMNS + group];
                pair[0] = widen(own.b[i] & 0xFFFF), pair[COLUMNS] = widen(own.b[i] >> 16);
            }
        }
        for (int i = 0; i < 4; ++i) m.c[group + 8 * (i / 2)][2 * member + i % 2] = own.d[i];
    }
}

void multiply_lanes(void* const* lanes, uint32_t) {
    const auto& first = *static_cast<const Fragments*>(lanes[0]);
    for (int lane = 1; lane < 32; ++lane) {
        const auto& other = *static_cast<const Fragments*>(lanes[lane]);
        if (other.format != first.format || other.terms != first.terms)
            fail("mma", "the lanes of a warp multiply different shapes or formats", {nullptr, 0});
    }
    Matrices m;
    gather(lanes, m);
    add_matrix_product({first.format, ROWS, COLUMNS, first.terms, m.a, m.b, m.c[0]});
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

// stmatrix, the inverse: every lane has a pair of each matrix and lane 8j + r gets row r of matrix j.
void gather_rows(void* const* lanes, uint32_t) {
    for (int lane = 0; lane < 32; ++lane) {
        const auto& own = *static_cast<const MatrixRow*>(lanes[lane]);
        const int j = lane / 8, r = lane % 8;
        if (j >= own.matrices) continue;
        const auto pair_of = [&](int from) { return static_cast<const MatrixRow*>(lanes[from])->row[j]; };
        for (int t = 0; t < 4; ++t) {
            const auto half = [&](int column) { return pair_of(4 * column + r / 2) >> 16 * (r % 2) & 0xFFFF; };
            own.result[t] = own.transposed ? half(2 * t) | half(2 * t + 1) << 16 : pair_of(4 * r + t);
        }
    }
}

}  // namespace

const uint32_t* half_table() {
    static const std::vector<uint32_t> table = [] {
        std::vector<uint32_t> values(1 << 16);
        for (uint32_t i = 0; i < values.size(); ++i) values[i] = half_to_float(i);
        return values;
    }();
    return table.data();
}

void add_matrix_product(const MatrixProduct& p) {
    static Operand left, right;
    const bool hopper = block.launch->architecture >= 90;
    const int fraction = hopper ? 25 : 24, smallest = p.format == Format::F16 ? -14 : -126;
    const int step = std::min(p.terms, (p.format == Format::TF32 ? 4 : 8) * (hopper ? 2 : 1));
    prepare(p.a, p.rows * p.terms, smallest, left);
    prepare(p.b, p.terms * p.columns, smallest, right);
    const bool moderate = left.finite && right.finite && left.least + right.least >= EXPONENT_MIN &&
                          left.largest + right.largest <= EXPONENT_MAX && is_moderate(p.c, p.rows * p.columns);
    (moderate ? add_moderate_product : add_any_product)(p, left, right, fraction, step);
}

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

void gather_matrix_rows(const uint32_t* values, uint32_t* row, int matrices, bool transposed, Place place) {
    if (block.launch->architecture < 90) fail("stmatrix", "the instruction exists from sm_90 on", place);
    MatrixRow own{values, row, matrices, transposed};
    warp_operation(~0u, &own, gather_rows, place);
}

}  // namespace simulator
