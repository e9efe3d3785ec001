// Batched matrix product: c (B, M, N) = a (B, M, K) @ b (B, K, N) + bias (N,); c is overwritten.
//
// a and b may have any strides (views, transposes, broadcasts); c is C-contiguous. See gemm.hpp for the method;
// products with few rows read b in place.
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

// What one task multiplies: `rows` x `columns` of c, which is row-major with rows row_stride apart; with add, c's old values
// are added.
template <class T>
struct Task {
    Matrix<T> a, b;
    T* c;
    int64_t row_stride, depth;
    Range rows, columns;
    bool add;
};

template <class T>
void multiply_packed(const Task<T>& task) {
    multiply_block<T>(task.rows, task.columns, task.depth, LeftOperand<T>{task.a}, RightOperand<T>{task.b},
                      Product<T>{task.c, task.row_stride}, nullptr, task.add);
}

// With few rows of c, b is used too seldom to be worth a copy: two ways to read it where it lies, once, at memory's speed.
//
// b's columns lie contiguously: c's elements are dot products of a's rows and b's columns; here those of `rows` and at most
// DOT_TAPS columns from `column`.
template <class T>
void multiply_dots(const Task<T>& task, Range rows, int64_t column) {
    const int64_t columns = std::min<int64_t>(DOT_TAPS, task.columns.end - column);
    const int64_t whole = task.depth / MAX_LANES * MAX_LANES;
    int64_t offsets[DOT_TAPS];
    for (int64_t t = 0; t < DOT_TAPS; ++t) offsets[t] = std::min(t, columns - 1) * task.b.column_stride;
    T sums[MAX_DOT_ROWS * DOT_TAPS];
    best_tile<T>().dots[rows.size()](1, whole, {task.a.at(rows.begin, 0), 0, task.a.row_stride},
                                     {task.b.at(0, column), 0, 0}, offsets, sums);
    for (int64_t i = rows.begin; i < rows.end; ++i)
        for (int64_t t = 0; t < columns; ++t) {
            T sum = sums[(i - rows.begin) * DOT_TAPS + t];
            for (int64_t k = whole; k < task.depth; ++k) sum += *task.a.at(i, k) * *task.b.at(k, column + t);
            T& out = task.c[i * task.row_stride + column + t];
            out = task.add ? out + sum : sum;
        }
}

template <class T>
void multiply_dots(const Task<T>& task) {
    const int64_t row_tiles = ceil_div(task.rows.size(), best_tile<T>().dot_rows);
    for (int64_t column = task.columns.begin; column < task.columns.end; column += DOT_TAPS)
        for (int64_t i = 0; i < row_tiles; ++i) multiply_dots(task, part(task.rows.size(), row_tiles, i), column);
}

// b's rows lie contiguously: a few of them at a time are read from end to end, and added to c's rows, which stay in the cache.
// The last columns, too few for a tile, are those of the whole product, as tasks are cut at multiples of a tile.
template <class T>
void multiply_streams(Task<T> task) {
    constexpr int64_t STREAMS = 16;  // rows of b at a time: as many as hardware prefetching follows
    const Tile<T>& tile = best_tile<T>();
    const int64_t rows = task.rows.size(), end = task.columns.end - task.columns.size() % tile.columns;
    alignas(64) T a_tile[MAX_TILE_ROWS * A_STRIDE];
    int64_t offsets[STREAMS + PREFETCHED];
    for (int64_t k = 0; k < STREAMS + PREFETCHED; ++k) offsets[k] = k * task.b.row_stride;
    for (int64_t k = 0; k < task.depth; k += STREAMS) {
        const int64_t depth = std::min(STREAMS, task.depth - k);
        LeftOperand<T>{task.a}.pack(0, rows, k, depth, a_tile);
        for (int64_t j = task.columns.begin; j < end; j += tile.columns)
            tile.wide[rows](depth, a_tile, task.b.at(k, j), offsets, task.c + j, task.row_stride, nullptr, task.add || k > 0);
    }
    task.columns.begin = end;
    if (end < task.columns.end) multiply_packed(task);
}

template <class T>
void multiply(const Task<T>& task, int64_t all_rows) {
    const bool few_rows = all_rows <= best_tile<T>().rows && task.depth >= MAX_LANES;  // then one task has all rows
    if (few_rows && task.b.row_stride == 1 && task.a.column_stride == 1) return multiply_dots(task);
    if (few_rows && task.b.column_stride == 1) return multiply_streams(task);
    multiply_packed(task);
}

template <class T>
void gemm_block(const Matrix<T>& a, const Matrix<T>& b, T* c, const T* bias, const Blocks& blocks, int64_t depth,
                int64_t index) {
    const Range rows = blocks.row_range(index), columns = blocks.column_range(index);
    if (bias)
        for (int64_t i = rows.begin; i < rows.end; ++i)
            std::copy(bias + columns.begin, bias + columns.end, c + i * blocks.columns + columns.begin);
    multiply(Task<T>{a, b, c, blocks.columns, depth, rows, columns, bias != nullptr}, blocks.rows);
}

}  // namespace

template <class T>
void gemm(const Batch<T>& a, const Batch<T>& b, T* c, const T* bias, int64_t batch, int64_t rows, int64_t depth,
          int64_t columns) {
    if (batch * rows * columns == 0) return;
    const Blocks blocks = cut_blocks<T>(rows, columns, depth, batch);
    parallel_for(batch * blocks.count(), [&](int64_t i) {
        const int64_t index = i / blocks.count();
        gemm_block(a.at(index), b.at(index), c + index * rows * columns, bias, blocks, depth, i % blocks.count());
    });
}

const char* instruction_set() { return best_tile<float>().name; }

#define GPUCNN_INSTANTIATE(T) \
    template void gemm<T>(const Batch<T>&, const Batch<T>&, T*, const T*, int64_t, int64_t, int64_t, int64_t);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
