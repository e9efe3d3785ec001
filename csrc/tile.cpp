// The register tile in GCC's vector extensions, once per instruction set; see tile.hpp for the maths.
#include "tile.hpp"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "parallel.hpp"

namespace gpucnn {
namespace {

template <class T, int BYTES>
struct Vectors {
    typedef T Vector __attribute__((vector_size(BYTES)));
    typedef T Unaligned __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
    static constexpr int64_t LANES = BYTES / sizeof(T);
};

template <class T, int BYTES, int VECTORS, int ROWS>
[[gnu::always_inline]] inline void multiply(int64_t depth, const T* a, const T* b, const int64_t* offsets, T* c,
                                            int64_t c_stride, const T* bias, bool add) {
    using Vector = typename Vectors<T, BYTES>::Vector;
    using Unaligned = typename Vectors<T, BYTES>::Unaligned;
    constexpr int64_t LANES = Vectors<T, BYTES>::LANES;
    Vector sum[ROWS][VECTORS] = {};
    for (int64_t k = 0; k < depth; ++k) {
        Vector row[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            row[v] = *reinterpret_cast<const Unaligned*>(b + offsets[k] + v * LANES);
            __builtin_prefetch(b + offsets[k + PREFETCHED] + v * LANES);
        }
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) {
            const T factor = a[i * A_STRIDE + k];
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) sum[i][v] += factor * row[v];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            Unaligned& out = *reinterpret_cast<Unaligned*>(c + i * c_stride + v * LANES);
            if (bias) sum[i][v] += bias[i];
            out = add ? out + sum[i][v] : sum[i][v];
        }
    }
}

template <class T, int BYTES, int ROWS>
[[gnu::always_inline]] inline void dots(int64_t images, int64_t length, Images<T> g, Images<T> x, const int64_t* offsets,
                                        T* out) {
    using Vector = typename Vectors<T, BYTES>::Vector;
    using Unaligned = typename Vectors<T, BYTES>::Unaligned;
    constexpr int64_t LANES = Vectors<T, BYTES>::LANES;
    Vector sum[ROWS][DOT_TAPS] = {};
    for (int64_t image = 0; image < images; ++image, g.data += g.image_stride, x.data += x.image_stride)
        for (int64_t j = 0; j < length; j += LANES) {
            Vector shifted[DOT_TAPS];
#pragma GCC unroll 4
            for (int t = 0; t < DOT_TAPS; ++t)
                shifted[t] = *reinterpret_cast<const Unaligned*>(x.data + offsets[t] + j);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; ++i) {
                const Vector row = *reinterpret_cast<const Unaligned*>(g.data + i * g.row_stride + j);
#pragma GCC unroll 4
                for (int t = 0; t < DOT_TAPS; ++t) sum[i][t] += row * shifted[t];
            }
        }
    for (int i = 0; i < ROWS; ++i)
        for (int t = 0; t < DOT_TAPS; ++t) {
            T total = 0;
            for (int lane = 0; lane < LANES; ++lane) total += sum[i][t][lane];
            out[i * DOT_TAPS + t] = total;
        }
}

// Transposes a square of LANES x LANES in registers: step by step, pairs of rows exchange the halves of ever larger squares.
template <class T, int BYTES>
[[gnu::always_inline]] inline void transpose_square(const T* in, int64_t in_stride, T* out, int64_t out_stride) {
    using Vector = typename Vectors<T, BYTES>::Vector;
    using Unaligned = typename Vectors<T, BYTES>::Unaligned;
    using Index = typename Vectors<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>, BYTES>::Vector;
    constexpr int LANES = Vectors<T, BYTES>::LANES;
    Vector row[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) row[i] = *reinterpret_cast<const Unaligned*>(in + i * in_stride);
#pragma GCC unroll 4
    for (int half = 1; half < LANES; half *= 2) {
        Index low{}, high{};
#pragma GCC unroll 16
        for (int lane = 0; lane < LANES; ++lane) {
            low[lane] = lane & half ? LANES + lane - half : lane;
            high[lane] = lane & half ? LANES + lane : lane + half;
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) {
            if (i & half) continue;
            const Vector first = row[i], second = row[i + half];
            row[i] = __builtin_shuffle(first, second, low);
            row[i + half] = __builtin_shuffle(first, second, high);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) *reinterpret_cast<Unaligned*>(out + i * out_stride) = row[i];
}

// In squares, the last of which overlap those before where the size is no multiple; too small a matrix in smaller squares.
template <class T, int BYTES>
[[gnu::always_inline]] inline void transpose(int64_t rows, int64_t columns, const T* in, int64_t in_stride, T* out,
                                             int64_t out_stride) {
    constexpr int64_t LANES = Vectors<T, BYTES>::LANES;
    if (rows >= LANES && columns >= LANES) {
        for (int64_t row = 0; row < rows; row += LANES)
            for (int64_t column = 0; column < columns; column += LANES) {
                const int64_t i = std::min(row, rows - LANES), j = std::min(column, columns - LANES);
                transpose_square<T, BYTES>(in + i * in_stride + j, in_stride, out + j * out_stride + i, out_stride);
            }
    } else if constexpr (BYTES > 16) {
        transpose<T, BYTES / 2>(rows, columns, in, in_stride, out, out_stride);
    } else {
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < columns; ++j) out[j * out_stride + i] = in[i * in_stride + j];
    }
}

// One struct per instruction set: a function with a target attribute can be inlined into only by code of a lesser set.
#define GPUCNN_TILE(Name, TARGET, BYTES, ROWS, DOT_ROWS)                                                                    \
    template <class T>                                                                                                      \
    struct Name {                                                                                                           \
        template <int VECTORS, int N>                                                                                       \
        TARGET static void multiply_rows(int64_t depth, const T* a, const T* b, const int64_t* offsets, T* c,               \
                                         int64_t c_stride, const T* bias, bool add) {                                       \
            multiply<T, BYTES, VECTORS, N>(depth, a, b, offsets, c, c_stride, bias, add);                                   \
        }                                                                                                                   \
        template <int N>                                                                                                    \
        TARGET static void dot_rows(int64_t images, int64_t length, Images<T> g, Images<T> x, const int64_t* offsets,       \
                                    T* out) {                                                                               \
            dots<T, BYTES, N>(images, length, g, x, offsets, out);                                                          \
        }                                                                                                                   \
        TARGET static void transpose_block(int64_t rows, int64_t columns, const T* in, int64_t in_stride, T* out,           \
                                           int64_t out_stride) {                                                            \
            transpose<T, BYTES>(rows, columns, in, in_stride, out, out_stride);                                             \
        }                                                                                                                   \
        template <int... N, int... M>                                                                                       \
        static Tile<T> make(std::integer_sequence<int, N...>, std::integer_sequence<int, M...>) {                           \
            return {#Name,                                                                                                  \
                    ROWS,                                                                                                   \
                    2 * BYTES / int64_t{sizeof(T)},                                                                         \
                    {nullptr, &multiply_rows<2, N + 1>...},                                                                 \
                    {nullptr, &multiply_rows<1, N + 1>...},                                                                 \
                    DOT_ROWS,                                                                                               \
                    {nullptr, &dot_rows<M + 1>...},                                                                         \
                    &transpose_block};                                                                                      \
        }                                                                                                                   \
        static Tile<T> make() {                                                                                             \
            return make(std::make_integer_sequence<int, ROWS>(), std::make_integer_sequence<int, DOT_ROWS>());              \
        }                                                                                                                   \
    };

GPUCNN_TILE(generic, , 16, 6, 2)
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define GPUCNN_X86_TILES
GPUCNN_TILE(avx2, __attribute__((target("arch=x86-64-v3"))), 32, 6, 2)
GPUCNN_TILE(avx512, __attribute__((target("arch=x86-64-v4"))), 64, 14, 6)
#endif

template <class T>
Tile<T> choose_tile() {
#ifdef GPUCNN_X86_TILES
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4")) return avx512<T>::make();
    if (__builtin_cpu_supports("x86-64-v3")) return avx2<T>::make();
#endif
    return generic<T>::make();
}

}  // namespace

template <class T>
const Tile<T>& best_tile() {
    static const Tile<T> tile = choose_tile<T>();
    return tile;
}

template const Tile<float>& best_tile<float>();
template const Tile<double>& best_tile<double>();

}  // namespace gpucnn
