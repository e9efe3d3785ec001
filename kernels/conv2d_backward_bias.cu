// Gradient of the bias: gb[k] = Σ_{n,p,q} gy[n,k,p,q]; gy (N,K,P,Q) by strides, gb float32. A block (k, part) sums `part` pixels of one
// channel, each thread every 256th of them, then all threads in a fixed order. gb (parts,K) is overwritten; where there
// are several parts, gemm_add_splits adds them in their order.
#include "conv2d.cuh"
#include "ptx_convert.cuh"

struct BiasShape {
    int pixels, part;                 // pixels of all images; of one block
    unsigned by_image[3], by_row[3];  // divisors: pixels of an image, pixels of a row
};

template <class T>
__device__ __forceinline__ void sum_channel(const T* gy, float* gb, const ImageStrides& strides, const BiasShape& shape) {
    const int begin = blockIdx.y * shape.part, count = min(shape.part, shape.pixels - begin);
    const T* channel = gy + blockIdx.x * strides.channel;
    float sum = 0.0f;
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += 256) {
        int rest, q;
        const int n = divide(begin + i, shape.by_image, rest), p = divide(rest, shape.by_row, q);
        sum += to_float(channel[n * strides.image + p * strides.row + q * strides.column]);
    }
    sum = block_reduce<Sum, 256>(sum);
    if (threadIdx.x == 0) gb[blockIdx.y * static_cast<int64>(gridDim.x) + blockIdx.x] = sum;
}

KERNEL(256, 8) conv2d_backward_bias(const float* gy, float* gb, ImageStrides strides, BiasShape shape) {
    sum_channel(gy, gb, strides, shape);
}
KERNEL(256, 8) conv2d_backward_bias_bfloat16(const bfloat16* gy, float* gb, ImageStrides strides, BiasShape shape) {
    sum_channel(gy, gb, strides, shape);
}
KERNEL(256, 8) conv2d_backward_bias_float16(const float16* gy, float* gb, ImageStrides strides, BiasShape shape) {
    sum_channel(gy, gb, strides, shape);
}
