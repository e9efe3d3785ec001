// The arithmetic of tensor cores, which mma.sync and wgmma share.
#pragma once
#include "runtime.hpp"

namespace simulator {

// c (rows,columns) += a (rows,terms) · b (terms,columns), row after row, of numbers that are given by the bits of the
// float32 they equal; columns in eights.
struct MatrixProduct {
    Format format;
    int rows, columns, terms;
    const uint32_t *a, *b;
    float* c;
};
constexpr int PRODUCT_ROWS = 16, PRODUCT_COLUMNS = 256, PRODUCT_TERMS = 16;  // at most

void add_matrix_product(const MatrixProduct& product);

// The float32 of every float16, by its bits.
const uint32_t* half_table();

template <class To, class From>
To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}

}  // namespace simulator
