// Winograd's convolution F(4×4, 3×3): 16 outputs of a 3×3 filter from 36 products instead of 144, after linear
// transforms (Lavin and Gray, CVPR 2016). Its points are 0, ±a, ±b and ∞ with a = 5/8, b = 3/2, p = a², q = b²: the
// transforms of images and outputs then have short binary fractions, and rounding errors are half of those with ±1, ±2.
//
//     forward           y = Aᵀ [Σ_c (G w Gᵀ) · (Bᵀ d B)] A      d 6×6 pixels of x, w 3×3, y 4×4
//     backward_weight  gw = Fᵀ [Σ_t (H g Hᵀ) · (Bᵀ d B)] F      g 4×4 gradients of y: F(3×3, 4×4) with the same points
//
// where · is element by element, of 36 elements ξ. Each transform is one of an axis, applied to columns and then to
// rows.
#pragma once
#include "conv2d.cuh"

constexpr int TILE = 4, ELEMENTS = 36;  // outputs along an axis; elements of a transformed tile

constexpr double A = 5. / 8, B = 3. / 2, P = A * A, Q = B * B;
constexpr double AT_A = 1 / (2 * P * (P - Q)), AT_B = 1 / (2 * Q * (Q - P));  // 1 / Π of the differences of points

__device__ __forceinline__ float times(double factor, float value) { return static_cast<float>(factor) * value; }
__device__ __forceinline__ float plus(double factor, float value, float sum) {
    return multiply_add(static_cast<float>(factor), value, sum);
}

// Bᵀ: 6 pixels to 6 elements.
struct ImageAxis {
    static constexpr int IN = 6, OUT = 6;
    static __device__ __forceinline__ void apply(const float (&d)[6], float (&v)[6]) {
        const float even_a = plus(-Q, d[2], d[4]), odd_a = plus(-Q, d[1], d[3]);
        const float even_b = plus(-P, d[2], d[4]), odd_b = plus(-P, d[1], d[3]);
        v[0] = plus(P * Q, d[0], plus(-P - Q, d[2], d[4]));
        v[1] = plus(A, odd_a, even_a), v[2] = plus(-A, odd_a, even_a);
        v[3] = plus(B, odd_b, even_b), v[4] = plus(-B, odd_b, even_b);
        v[5] = plus(P * Q, d[1], plus(-P - Q, d[3], d[5]));
    }
};

// G: 3 weights to 6 elements.
struct FilterAxis {
    static constexpr int IN = 3, OUT = 6;
    static __device__ __forceinline__ void apply(const float (&w)[3], float (&u)[6]) {
        const float even_a = plus(AT_A * P, w[2], times(AT_A, w[0])), even_b = plus(AT_B * Q, w[2], times(AT_B, w[0]));
        u[0] = times(1 / (P * Q), w[0]);
        u[1] = plus(AT_A * A, w[1], even_a), u[2] = plus(-AT_A * A, w[1], even_a);
        u[3] = plus(AT_B * B, w[1], even_b), u[4] = plus(-AT_B * B, w[1], even_b);
        u[5] = w[2];
    }
};

// H: 4 gradients to 6 elements.
struct GradientAxis {
    static constexpr int IN = 4, OUT = 6;
    static __device__ __forceinline__ void apply(const float (&g)[4], float (&e)[6]) {
        const float even_a = plus(AT_A * P, g[2], times(AT_A, g[0])), odd_a = plus(P, g[3], g[1]);
        const float even_b = plus(AT_B * Q, g[2], times(AT_B, g[0])), odd_b = plus(Q, g[3], g[1]);
        e[0] = times(1 / (P * Q), g[0]);
        e[1] = plus(AT_A * A, odd_a, even_a), e[2] = plus(-AT_A * A, odd_a, even_a);
        e[3] = plus(AT_B * B, odd_b, even_b), e[4] = plus(-AT_B * B, odd_b, even_b);
        e[5] = g[3];
    }
};

// Aᵀ: 6 elements to 4 outputs.
struct OutputAxis {
    static constexpr int IN = 6, OUT = 4;
    static __device__ __forceinline__ void apply(const float (&m)[6], float (&y)[4]) {
        const float even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
        y[0] = m[0] + even_a + even_b;
        y[1] = plus(B, odd_b, times(A, odd_a));
        y[2] = plus(Q, even_b, times(P, even_a));
        y[3] = plus(B * Q, odd_b, plus(A * P, odd_a, m[5]));
    }
};

// Fᵀ: 6 elements to 3 gradients of weights.
struct WeightAxis {
    static constexpr int IN = 6, OUT = 3;
    static __device__ __forceinline__ void apply(const float (&m)[6], float (&w)[3]) {
        const float even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
        w[0] = m[0] + even_a + even_b;
        w[1] = plus(B, odd_b, times(A, odd_a));
        w[2] = plus(Q, even_b, plus(P, even_a, m[5]));
    }
};

// out = axis · in · axisᵀ. A row of the result at a time goes to write(row, values), so that few registers are taken.
template <class Axis, class Write>
__device__ __forceinline__ void transform(const float (&in)[Axis::IN][Axis::IN], const Write& write) {
    float middle[Axis::OUT][Axis::IN];
#pragma unroll
    for (int j = 0; j < Axis::IN; ++j) {
        float column[Axis::IN], result[Axis::OUT];
#pragma unroll
        for (int i = 0; i < Axis::IN; ++i) column[i] = in[i][j];
        Axis::apply(column, result);
#pragma unroll
        for (int i = 0; i < Axis::OUT; ++i) middle[i][j] = result[i];
    }
#pragma unroll
    for (int i = 0; i < Axis::OUT; ++i) {
        float result[Axis::OUT];
        Axis::apply(middle[i], result);
        write(i, result);
    }
}
