// Batched matrix product: c (B, M, N) = a (B, M, K) @ b (B, K, N) + bias (N,); c is overwritten.
//
// a and b may have any strides (views, transposes, broadcasts); c is C-contiguous. See gemm.hpp for the method.
#include "gemm.hpp"

#include <pybind11/stl.h>

#include <optional>

#include "array.hpp"

namespace gpucnn {
namespace {

// A matrix in memory; strides count elements.
template <class T>
struct Matrix {
    const T* data;
    int64_t row_stride, column_stride;

    const T* at(int64_t row, int64_t column) const { return data + row * row_stride + column * column_stride; }
};

template <class T>
struct LeftOperand {
    Matrix<T> a;

    void pack(int64_t row, int64_t rows, int64_t k, int64_t depth, T* out) const {
        if (a.column_stride == 1) {
            for (int64_t i = 0; i < rows; ++i) std::memcpy(out + i * A_STRIDE, a.at(row + i, k), depth * sizeof(T));
        } else if (a.row_stride == 1) {
            best_tile<T>().transpose(depth, rows, a.at(row, k), a.column_stride, out, A_STRIDE);
        } else {
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < depth; ++j) out[i * A_STRIDE + j] = *a.at(row + i, k + j);
        }
    }
};

template <class T>
struct RightOperand {
    Matrix<T> b;

    void pack(int64_t k, int64_t depth, int64_t column, int64_t columns, T* out, int64_t stride) const {
        if (b.column_stride == 1) {
            for (int64_t i = 0; i < depth; ++i) std::memcpy(out + i * stride, b.at(k + i, column), columns * sizeof(T));
        } else if (b.row_stride == 1) {
            best_tile<T>().transpose(columns, depth, b.at(k, column), b.column_stride, out, stride);
        } else {
            for (int64_t i = 0; i < depth; ++i)
                for (int64_t j = 0; j < columns; ++j) out[i * stride + j] = *b.at(k + i, column + j);
        }
    }
};

template <class T>
struct Product {
    T* c;
    int64_t row_stride;

    Run<T> run(int64_t column, int64_t count) const { return {c + column, count, 1}; }
};

template <class T>
void gemm_block(const Matrix<T>& a, const Matrix<T>& b, T* c, const T* bias, const Blocks& blocks, int64_t depth, int64_t index) {
    const Range rows = blocks.row_range(index), columns = blocks.column_range(index);
    const Product<T> product{c, blocks.columns};
    if (bias)
        for (int64_t i = rows.begin; i < rows.end; ++i)
            std::copy(bias + columns.begin, bias + columns.end, c + i * blocks.columns + columns.begin);
    multiply_block<T>(rows, columns, depth, LeftOperand<T>{a}, RightOperand<T>{b}, product, nullptr, bias != nullptr);
}

// Matrix `index` of a batch (B, rows, columns).
template <class T>
Matrix<T> matrix(const py::array_t<T, 0>& batch, int64_t index) {
    const int64_t size = sizeof(T);
    return {batch.data() + index * (batch.strides(0) / size), batch.strides(1) / size, batch.strides(2) / size};
}

template <class T>
void expect_whole_strides(const py::array_t<T, 0>& array, const char* rule) {
    bool whole = reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) == 0;
    for (int axis = 0; axis < 3; ++axis) whole = whole && array.strides(axis) % int64_t{sizeof(T)} == 0;
    expect(whole, "gemm", rule);
}

template <class T>
void gemm(const py::array_t<T, 0>& a, const py::array_t<T, 0>& b, Array<T>& c, const std::optional<Array<T>>& bias) {
    expect(a.ndim() == 3 && b.ndim() == 3, "gemm", "a and b must be (B, M, K) and (B, K, N)");
    const int64_t batch = a.shape(0), rows = a.shape(1), depth = a.shape(2), columns = b.shape(2);
    expect_shape(b, {batch, depth, columns}, "gemm", "b");
    expect_shape(c, {batch, rows, columns}, "gemm", "c");
    if (bias) expect_shape(*bias, {columns}, "gemm", "bias");
    expect_whole_strides(a, "a's strides must be whole elements");
    expect_whole_strides(b, "b's strides must be whole elements");
    T* const out = c.mutable_data();
    const T* const bias_data = bias ? bias->data() : nullptr;
    if (batch * rows * columns == 0) return;

    const py::gil_scoped_release unlocked;
    const Blocks blocks = cut_blocks<T>(rows, columns, depth, batch);
    parallel_for(batch * blocks.count(), [&](int64_t task) {
        const int64_t index = task / blocks.count();
        gemm_block(matrix(a, index), matrix(b, index), out + index * rows * columns, bias_data, blocks, depth,
                   task % blocks.count());
    });
}

template <class T>
void register_gemm_of(py::module_& m) {
    m.def("gemm", &gemm<T>, py::arg("a").noconvert(), py::arg("b").noconvert(), py::arg("c").noconvert(),
          py::arg("bias").noconvert() = py::none());
}

}  // namespace

void register_gemm(py::module_& m) {
    m.attr("instruction_set") = best_tile<float>().name;
    register_gemm_of<float>(m);
    register_gemm_of<double>(m);
}

}  // namespace gpucnn
