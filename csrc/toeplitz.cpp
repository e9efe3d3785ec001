// Sparse matrix times dense matrix: the convolution whose (Toeplitz) matrix is written out.
#include <algorithm>

#include "expect.hpp"
#include "operations.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

constexpr int64_t WIDTH = 32;    // columns of the result that are summed at a time
constexpr int64_t CHAIN = 256;   // terms added one after the other; longer sums are sums of such chains, so more accurate
constexpr int64_t ROW_GRAIN = 16;

// sums[j] = the sum over this row's entries of value * dense[column][j], j < width <= WIDTH
template <class T>
GPUCNN_CLONES void multiply_row(const T* values, const int64_t* columns, int64_t entries, const T* dense, int64_t stride,
                                int64_t width, T* __restrict sums) {
    std::fill(sums, sums + width, T{0});
    for (int64_t begin = 0; begin < entries; begin += CHAIN) {
        T chain[WIDTH] = {};
        for (int64_t e = begin; e < std::min(entries, begin + CHAIN); ++e) {
            const T* __restrict row = dense + columns[e] * stride;
            for (int64_t j = 0; j < width; ++j) chain[j] += values[e] * row[j];
        }
        for (int64_t j = 0; j < width; ++j) sums[j] += chain[j];
    }
}

void expect_csr(const Csr& csr, int64_t entries, int64_t inner) {
    const bool complete = csr.starts[0] == 0 && csr.starts[csr.rows] == entries;
    expect(complete && std::is_sorted(csr.starts, csr.starts + csr.rows + 1), "csr_matmul",
           "starts must rise from 0 to the number of values");
    const bool inside = std::all_of(csr.columns, csr.columns + entries, [=](int64_t c) { return c >= 0 && c < inner; });
    expect(inside, "csr_matmul", "columns must be rows of dense");
}

}  // namespace

template <class T>
void csr_matmul(const Csr& csr, const T* values, int64_t entries, const T* dense, T* out, int64_t inner, int64_t width) {
    expect_csr(csr, entries, inner);
    parallel_for_ranges(csr.rows, ROW_GRAIN, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            for (int64_t j = 0; j < width; j += WIDTH)
                multiply_row(values + csr.starts[row], csr.columns + csr.starts[row], csr.starts[row + 1] - csr.starts[row],
                             dense + j, width, std::min(WIDTH, width - j), out + row * width + j);
    });
}

#define GPUCNN_INSTANTIATE(T) \
    template void csr_matmul<T>(const Csr&, const T*, int64_t, const T*, T*, int64_t, int64_t);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
