// The im2col matrix of a batch of images, never stored: its rows are made when a block of it is packed.
//
//     column matrix (channels * taps, N * rows * columns):  element (c, t; n, i, j) =
//         source[n][c][i * step_h + taps[t].row][j * step_w + taps[t].column], zero outside the image
//
// The convolution itself is one instance; its gradient by the input is another (or stride_h * stride_w others).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "gemm.hpp"

namespace gpucnn {

struct Tap {
    int64_t row, column;  // offset in the source image
};

// out[j] = in[j * STEP]; with the step known, compilers read whole vectors and pick from them.
template <class T, int64_t STEP>
GPUCNN_CLONES void pick(const T* __restrict in, int64_t count, T* __restrict out) {
    for (int64_t j = 0; j < count; ++j) out[j] = in[j * STEP];
}

template <class T>
struct ColumnMatrix {
    const T* source;  // (images, ..., source_rows, source_columns): planes of one image follow each other
    int64_t image_stride, source_rows, source_columns;
    int64_t rows, columns;  // of the grid of output pixels
    int64_t step_h, step_w;
    const Tap* taps;
    int64_t tap_count;

    struct Pixel {
        int64_t image, row, column;
    };
    Pixel pixel(int64_t index) const {
        const int64_t pixels = rows * columns, in_image = index % pixels;
        return {index / pixels, in_image / columns, in_image % columns};
    }

    // Matrix rows [row, row + count), columns [pixel, pixel + pixels), to out with the given stride.
    void copy(int64_t row, int64_t count, int64_t first_pixel, int64_t pixels, T* out, int64_t stride) const {
        if (count == 0) return;  // a phase of the stride that no tap meets
        const Pixel start = pixel(first_pixel);
        int64_t channel = row / tap_count, tap = row % tap_count;
        for (int64_t i = 0; i < count; ++i) {
            const T* plane = source + channel * source_rows * source_columns;
            copy_row(plane, taps[tap], start, pixels, out + i * stride);
            if (++tap == tap_count) tap = 0, ++channel;
        }
    }

private:
    void copy_row(const T* plane, Tap tap, Pixel at, int64_t left, T* out) const {
        const bool whole_rows = step_h == 1 && step_w == 1 && columns == source_columns;
        const Range inside = columns_inside(tap);
        while (left > 0) {
            const T* image = plane + at.image * image_stride;
            int64_t count;
            if (whole_rows) {  // the shifted image is one run; only its border differs
                const int64_t position = at.row * columns + at.column;
                count = std::min(left, rows * columns - position);
                copy_shifted(image, tap, position, count, out);
                at = {at.image + 1, 0, 0};
            } else {
                count = std::min(left, columns - at.column);
                copy_pixels(image, tap, inside, at, count, out);
                at = at.row + 1 < rows ? Pixel{at.image, at.row + 1, 0} : Pixel{at.image + 1, 0, 0};
            }
            out += count;
            left -= count;
        }
    }

    // Columns of the grid whose source column exists.
    Range columns_inside(Tap tap) const {
        const int64_t begin = tap.column < 0 ? ceil_div(-tap.column, step_w) : 0;
        const int64_t end = source_columns > tap.column ? ceil_div(source_columns - tap.column, step_w) : 0;
        return {std::min(begin, columns), std::min(end, columns)};
    }

    // `count` pixels of one row of the grid.
    void copy_pixels(const T* image, Tap tap, Range inside, Pixel at, int64_t count, T* out) const {
        const int64_t source_row = at.row * step_h + tap.row;
        if (source_row < 0 || source_row >= source_rows) return zero(out, count);
        const int64_t from = std::clamp(inside.begin, at.column, at.column + count);
        const int64_t to = std::clamp(inside.end, from, at.column + count);
        zero(out, from - at.column);
        copy_strided(image + source_row * source_columns + from * step_w + tap.column, to - from, out + (from - at.column));
        zero(out + (to - at.column), at.column + count - to);
    }

    void copy_strided(const T* in, int64_t count, T* out) const {
        switch (step_w) {
            case 1: return void(std::memcpy(out, in, count * sizeof(T)));
            case 2: return pick<T, 2>(in, count, out);
            case 3: return pick<T, 3>(in, count, out);
            case 4: return pick<T, 4>(in, count, out);
            default:
                for (int64_t j = 0; j < count; ++j) out[j] = in[j * step_w];
        }
    }

    // `count` pixels from `position` of a grid as wide as the source, where the tap shifts the image by a constant.
    void copy_shifted(const T* image, Tap tap, int64_t position, int64_t count, T* out) const {
        const int64_t shift = tap.row * columns + tap.column, end = position + count;
        // pixels whose source row exists, less those beyond the image's first and last element
        const int64_t first = std::max({int64_t{0}, -tap.row * columns, -shift});
        const int64_t last = std::min(rows, source_rows - tap.row) * columns;
        const int64_t from = std::clamp(first, position, end);
        const int64_t to = std::clamp(std::min(last, source_rows * columns - shift), from, end);
        zero(out, from - position);
        std::memcpy(out + (from - position), image + from + shift, (to - from) * sizeof(T));
        zero(out + (to - position), end - to);
        zero_border(tap.column, position, count, out);
    }

    // Where the shift wrapped round to the neighbouring row there is padding: the first -shift or last shift columns.
    void zero_border(int64_t shift, int64_t position, int64_t count, T* out) const {
        if (shift == 0) return;
        const int64_t width = std::min(columns, shift < 0 ? -shift : shift);
        const int64_t border = shift < 0 ? 0 : columns - width;
        for (int64_t begin = position / columns * columns + border; begin < position + count; begin += columns) {
            const int64_t from = std::max(begin, position), to = std::min(begin + width, position + count);
            for (int64_t j = from; j < to; ++j) out[j - position] = T{0};
        }
    }

    static void zero(T* out, int64_t count) {
        if (count > 0) std::memset(out, 0, count * sizeof(T));
    }
};

}  // namespace gpucnn
