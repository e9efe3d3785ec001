// The way back from max pooling; a plane is an H×W image of one channel, all arrays are contiguous.
//
//   forward    y (planes, size) = x (planes, values) where indices (planes, values) say, 0 elsewhere; of several values
//              for one place the last
//   backward   gx (planes, values) = gy (planes, size) at the indices
//
// Outputs are overwritten. Forward gives a plane to a block, which takes the values in order, as many at a time as it
// has threads: among these a value is written only if no later one names the same place, and a barrier separates it
// from the next ones. So every place is written by one thread at a time, in the order of the values.
#include "division.cuh"

struct UnpoolPlanes {
    int size;
    unsigned by_values[3];
};

constexpr int UNPOOL_THREADS = 64;  // few: each compares its place with all later ones

KERNEL(UNPOOL_THREADS, 16)
max_unpool2d_forward(const float* x, const int64* indices, float* y, int values, int size) {
    SHARED(int, places, [UNPOOL_THREADS]);
    x += static_cast<int64>(blockIdx.x) * values;
    indices += static_cast<int64>(blockIdx.x) * values;
    y += static_cast<int64>(blockIdx.x) * size;
    for (int i = threadIdx.x; i < size; i += UNPOOL_THREADS) y[i] = 0.0f;
    for (int first = 0; first < values; first += UNPOOL_THREADS) {
        const int i = first + threadIdx.x;
        const int place = i < values ? static_cast<int>(indices[i]) : -1;
        __syncthreads();  // the zeros, or the values before these, are written, and their places compared
        places[threadIdx.x] = place;
        __syncthreads();
        bool is_last = place >= 0;
        for (int later = threadIdx.x + 1; later < UNPOOL_THREADS; ++later) is_last &= places[later] != place;
        if (is_last) y[place] = x[i];
    }
}

KERNEL(256, 4)
max_unpool2d_backward(const float* gy, const int64* indices, float* gx, int64 count, UnpoolPlanes planes) {
    const int64 index = global_thread();
    if (index >= count) return;
    gx[index] = gy[static_cast<int64>(divide(index, planes.by_values)) * planes.size + indices[index]];
}
