// The fast Fourier transform of many lines at a time, the innermost loops running over them.
//
// The forward transform leaves its frequencies in an order of its own, and the one back takes them so: nobody needs another
// for products of spectra, and both work in place. Lines are real: two of them are transformed as one complex line.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "parallel.hpp"

namespace gpucnn {

using std::int64_t;

constexpr int64_t LANES = 16;          // tiles transformed at a time; the innermost loops run over them
constexpr int64_t NUMBER = 2 * LANES;  // a complex number of each of them: real parts, then imaginary parts

// exp(-2 pi i j / length) = cosines[j] - i sines[j], j < length / 2; frequency v ends at place reversed[v], its bits reversed.
template <class T>
struct Fft {
    int64_t length;  // a power of two
    std::vector<T> cosines, sines;
    std::vector<int64_t> reversed;
};

template <class T>
Fft<T> make_fft(int64_t length) {
    Fft<T> fft{length, {}, {}, {0}};
    for (int64_t j = 0; j < length / 2; ++j) {
        const double angle = 2 * std::acos(-1.0) * j / length;
        fft.cosines.push_back(T(std::cos(angle))), fft.sines.push_back(T(std::sin(angle)));
    }
    for (int64_t v = 1; v < length; ++v) fft.reversed.push_back(fft.reversed[v / 2] / 2 + (v % 2) * length / 2);
    return fft;
}

// In place, `stride` apart: natural order becomes reversed order (decimation in frequency, radix 2).
template <class T>
GPUCNN_CLONES void transform(const Fft<T>& fft, T* data, int64_t stride) {
    for (int64_t half = fft.length / 2; half > 0; half /= 2)
        for (int64_t j = 0; j < half; ++j) {
            const T c = fft.cosines[j * (fft.length / 2 / half)], s = fft.sines[j * (fft.length / 2 / half)];
            for (int64_t first = j; first < fft.length; first += 2 * half) {
                T* __restrict a = data + first * stride;
                T* __restrict b = data + (first + half) * stride;
                for (int64_t lane = 0; lane < LANES; ++lane) {
                    const T re = a[lane] - b[lane], im = a[LANES + lane] - b[LANES + lane];
                    a[lane] += b[lane], a[LANES + lane] += b[LANES + lane];
                    b[lane] = re * c + im * s, b[LANES + lane] = im * c - re * s;
                }
            }
        }
}

// Its inverse times length: reversed order becomes natural order.
template <class T>
GPUCNN_CLONES void transform_back(const Fft<T>& fft, T* data, int64_t stride) {
    for (int64_t half = 1; half < fft.length; half *= 2)
        for (int64_t j = 0; j < half; ++j) {
            const T c = fft.cosines[j * (fft.length / 2 / half)], s = fft.sines[j * (fft.length / 2 / half)];
            for (int64_t first = j; first < fft.length; first += 2 * half) {
                T* __restrict a = data + first * stride;
                T* __restrict b = data + (first + half) * stride;
                for (int64_t lane = 0; lane < LANES; ++lane) {
                    const T re = b[lane] * c - b[LANES + lane] * s, im = b[LANES + lane] * c + b[lane] * s;
                    b[lane] = a[lane] - re, b[LANES + lane] = a[LANES + lane] - im;
                    a[lane] += re, a[LANES + lane] += im;
                }
            }
        }
}

// The transforms of two real rows from that of row a + i row b: of the frequencies up to half the width, the others are
// conjugates.
template <class T>
GPUCNN_CLONES void separate(const Fft<T>& fft, const T* sum, T* __restrict a, T* __restrict b) {
    for (int64_t v = 0; v <= fft.length / 2; ++v) {
        const T* p = sum + fft.reversed[v] * NUMBER;
        const T* q = sum + fft.reversed[(fft.length - v) % fft.length] * NUMBER;
        for (int64_t lane = 0; lane < LANES; ++lane) {
            a[v * NUMBER + lane] = (p[lane] + q[lane]) / 2;
            a[v * NUMBER + LANES + lane] = (p[LANES + lane] - q[LANES + lane]) / 2;
        }
        for (int64_t lane = 0; lane < LANES; ++lane) {
            b[v * NUMBER + lane] = (p[LANES + lane] + q[LANES + lane]) / 2;
            b[v * NUMBER + LANES + lane] = (q[lane] - p[lane]) / 2;
        }
    }
}

// The inverse of `separate`.
template <class T>
GPUCNN_CLONES void join(const Fft<T>& fft, const T* __restrict a, const T* __restrict b, T* sum) {
    for (int64_t v = 0; v <= fft.length / 2; ++v, a += NUMBER, b += NUMBER) {
        T* q = sum + fft.reversed[(fft.length - v) % fft.length] * NUMBER;
        T* p = sum + fft.reversed[v] * NUMBER;
        for (int64_t lane = 0; lane < LANES; ++lane) {
            q[lane] = a[lane] + b[LANES + lane], q[LANES + lane] = b[lane] - a[LANES + lane];
        }
        for (int64_t lane = 0; lane < LANES; ++lane) {
            p[lane] = a[lane] - b[LANES + lane], p[LANES + lane] = b[lane] + a[LANES + lane];
        }
    }
}

}  // namespace gpucnn
