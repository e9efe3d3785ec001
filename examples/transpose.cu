// Transposed copies of a matrix, x (rows,columns) to y (columns,rows): three ways, each better for memory than the last.
#include "common.cuh"

constexpr int TILE = 32;
constexpr int THREADS = 256;
constexpr int ROWS = THREADS / TILE;  // of a tile that the block handles at a time

// Each warp reads 32 neighbours, but writes 32 floats that lie a row apart: 32 sectors a request instead of 4.
KERNEL(THREADS, 4) transpose_naive(const float* x, float* y, int rows, int columns) {
    const int column = blockIdx.x * TILE + threadIdx.x % TILE;
    for (int i = threadIdx.x / TILE; i < TILE; i += ROWS) {
        const int row = blockIdx.y * TILE + i;
        if (row < rows && column < columns) y[int64(column) * rows + row] = x[int64(row) * columns + column];
    }
}

// A tile goes through shared memory, where it is turned. PITCH is the distance of its rows in floats: at 32, a column lies
// in one bank, and reading it takes 32 passes; at 33, its floats lie in 32 banks.
template <int PITCH>
__device__ __forceinline__ void transpose_tile(const float* x, float* y, int rows, int columns) {
    SHARED(float, tile, [TILE][PITCH]);
    const int lane = threadIdx.x % TILE;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    for (int i = threadIdx.x / TILE; i < TILE; i += ROWS) {
        const int row = first_row + i, column = first_column + lane;
        if (row < rows && column < columns) tile[i][lane] = x[int64(row) * columns + column];
    }
    __syncthreads();
    for (int i = threadIdx.x / TILE; i < TILE; i += ROWS) {
        const int row = first_row + lane, column = first_column + i;
        if (row < rows && column < columns) y[int64(column) * rows + row] = tile[lane][i];
    }
}

KERNEL(THREADS, 4) transpose_tiled(const float* x, float* y, int rows, int columns) {
    transpose_tile<32>(x, y, rows, columns);
}

KERNEL(THREADS, 4) transpose_padded(const float* x, float* y, int rows, int columns) {
    transpose_tile<33>(x, y, rows, columns);
}
