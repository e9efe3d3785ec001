// Batched matrix product: c (B, M, N) = a (B, M, K) @ b (B, K, N) + bias (N,); c is overwritten.
//
// a and b may have any strides (views, transposes, broadcasts); c is C-contiguous. See gemm.hpp for the method.
#include "gemm.hpp"

#include "operations.hpp"

namespace gpucnn {
namespace {

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

}  // namespace

template <class T>
void gemm(const Batch<T>& a, const Batch<T>& b, T* c, const T* bias, int64_t batch, int64_t rows, int64_t depth,
          int64_t columns) {
    if (batch * rows * columns == 0) return;
    const Blocks blocks = cut_blocks<T>(rows, columns, depth, batch);
    parallel_for(batch * blocks.count(), [&](int64_t task) {
        const int64_t index = task / blocks.count();
        gemm_block(a.at(index), b.at(index), c + index * rows * columns, bias, blocks, depth, task % blocks.count());
    });
}

const char* instruction_set() { return best_tile<float>().name; }

#define GPUCNN_INSTANTIATE(T) \
    template void gemm<T>(const Batch<T>&, const Batch<T>&, T*, const T*, int64_t, int64_t, int64_t, int64_t);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
