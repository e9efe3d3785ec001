// Every operation of the extension, on plain pointers to C-contiguous arrays. bindings.cpp puts them before Python and
// checks shapes; each family's file, named beside it, holds the maths. T is float or double. Outputs are overwritten
// completely; pointers said to be optional may be null. A rule that only the operation can check throws
// std::invalid_argument.
#pragma once

#include <array>
#include <cstdint>

namespace gpucnn {

using std::int64_t;

// ---- gemm.cpp ----

// A matrix in memory; strides count elements and may be zero or negative.
template <class T>
struct Matrix {
    const T* data;
    int64_t row_stride, column_stride;

    const T* at(int64_t row, int64_t column) const { return data + row * row_stride + column * column_stride; }
};

// `count` matrices, batch_stride elements apart.
template <class T>
struct Batch {
    Matrix<T> first;
    int64_t batch_stride;

    Matrix<T> at(int64_t index) const {
        return {first.data + index * batch_stride, first.row_stride, first.column_stride};
    }
};

// c (batch, rows, columns) = a (batch, rows, depth) @ b (batch, depth, columns) + bias (columns,), which is optional
template <class T>
void gemm(const Batch<T>& a, const Batch<T>& b, T* c, const T* bias, int64_t batch, int64_t rows, int64_t depth,
          int64_t columns);

// The instruction set that the register tile runs on: avx512, avx2 or generic.
const char* instruction_set();

// ---- toeplitz.cpp ----

// Where the values of a sparse matrix stand: row i has the entries from starts[i] to starts[i + 1].
struct Csr {
    const int64_t *starts, *columns;
    int64_t rows;
};

// out (rows, width) = the sparse matrix (rows, inner) with `entries` values @ dense (inner, width)
template <class T>
void csr_matmul(const Csr& csr, const T* values, int64_t entries, const T* dense, T* out, int64_t inner, int64_t width);

// ---- max_pool2d.cpp, avg_pool2d.cpp ----

using Window = std::array<int64_t, 8>;  // kernel, stride, padding, dilation, each (h, w)

struct Planes {
    int64_t count, H, W, P, Q;  // count planes of H x W, pooled to P x Q
};

template <class T>
void max_pool2d_forward(const T* x, T* y, int64_t* indices, const Planes& planes, const Window& window);
template <class T>
void max_pool2d_backward(const T* gy, const int64_t* indices, T* gx, const Planes& planes);
template <class T>
void avg_pool2d_forward(const T* x, T* y, const Planes& planes, const Window& window, bool count_include_pad);
template <class T>
void avg_pool2d_backward(const T* gy, T* gx, const Planes& planes, const Window& window, bool count_include_pad);
template <class T>
void adaptive_avg_pool2d_forward(const T* x, T* y, const Planes& planes);
template <class T>
void adaptive_avg_pool2d_backward(const T* gy, T* gx, const Planes& planes);

// ---- batch_norm.cpp, local_response_norm.cpp ----

struct Extents {
    int64_t N, C, L;  // images, channels, pixels
};

template <class T>
void batch_norm_statistics(const T* x, const Extents& extents, T* mean, T* variance);
template <class T>
void batch_norm_apply(const T* x, const Extents& extents, const T* mean, const T* inverse_std, const T* weight, const T* bias,
                      T* y);

// Pointers of one backward call; weight, gweight and gbias are optional.
template <class T>
struct BatchNormBackward {
    const T *x, *gy, *mean, *inverse_std, *weight;
    T *gx, *gweight, *gbias;
    bool training;
};
template <class T>
void batch_norm_backward(const BatchNormBackward<T>& pointers, const Extents& extents);

template <class T>
void local_response_norm_forward(const T* x, T* y, T* scale, const Extents& extents, int64_t size, double alpha, double beta,
                                 double k);
template <class T>
void local_response_norm_backward(const T* x, const T* scale, const T* gy, T* gx, const Extents& extents, int64_t size,
                                  double alpha, double beta);

// ---- elementwise.cpp ----

template <class T>
void relu_forward(const T* x, T* y, int64_t count);
template <class T>
void relu_backward(const T* y, const T* gy, T* gx, int64_t count);

// ---- ceiling.cpp: the loop returns the floating-point operations that it did ----

template <class T>
double multiply_add_loop(int64_t rounds);
void copy_bytes(const char* from, char* to, int64_t count);

// ---- random.cpp ----

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);
void philox_uint32(std::uint32_t* out, int64_t count, std::uint64_t seed, std::uint64_t offset);
template <class T>
void dropout(const T* x, T* y, int64_t count, std::uint64_t seed, std::uint64_t offset, std::uint32_t threshold,
             double scale);

// ---- update.cpp ----

struct SgdOptions {
    double lr, momentum, dampening;
    bool nesterov;
    double weight_decay;
    bool first;  // the first step with a momentum buffer sets it
};
// momentum_buffer is optional
template <class T>
void sgd_update(T* p, const T* g, T* momentum_buffer, int64_t count, const SgdOptions& options);

struct AdamOptions {
    double lr, beta1, beta2, eps, weight_decay;
    bool decoupled;
    int64_t step;
};
template <class T>
void adam_update(T* p, const T* g, T* m, T* v, int64_t count, const AdamOptions& options);

// ---- batch.cpp ----

struct Crop {
    int64_t images, C, H, W, h, w;  // images (images, C, H, W), results (…, C, h, w)
};
void gather_batch(const std::uint8_t* images, const int64_t* indices, float* out, int64_t batch, const Crop& crop,
                  const int64_t* offsets, const std::uint8_t* flips, const float* scale, const float* shift,
                  std::uint8_t fill);

}  // namespace gpucnn
