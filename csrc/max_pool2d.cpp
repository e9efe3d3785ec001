// Max pooling over H and W of (N, C, H, W) arrays into (N, C, P, Q); a plane belongs to one worker.
//
//   max_pool2d_forward    y = max over the window, padding = -inf; the first of equal values wins, the last NaN wins;
//                         indices = h * W + w of the winner in its H x W plane (PyTorch's convention)
//   max_pool2d_backward   gx = sum of gy over the windows that chose this element
//
// Forward computes neighbouring windows of a row side by side in GCC's vector extensions and without branches, which random
// data would make the processor guess wrong half of the time. It reads planes as they are where every window lies inside
// them, else a copy with a border of -inf. Outputs are overwritten.
#include <algorithm>
#include <atomic>
#include <limits>
#include <type_traits>
#include <vector>

#include "pool2d.hpp"

namespace gpucnn {
namespace {

constexpr int64_t SLOTS = 64;  // pieces that the planes are cut into at most, each with its own bordered copy

template <class T>
struct Lanes {
    using Place = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    static constexpr int64_t COUNT = 32 / sizeof(T);
    typedef T Values __attribute__((vector_size(32)));
    typedef Place Places __attribute__((vector_size(32)));
    typedef T UnalignedValues __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
    typedef Place UnalignedPlaces __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
};

// Places are relative to the window's start in the unbordered plane: r * dilation_h * W + s * dilation_w.
template <class T>
struct MaxPool {
    int64_t W, P, Q, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int64_t pitch;  // elements from one row of what is read to the next
    const typename Lanes<T>::Place *first_row, *first_column;  // of the first place that is not border, for each p and q
};

// STRIDE 0: any
template <class T, int STRIDE>
[[gnu::always_inline]] inline void load_strided(const T* x, int64_t stride, typename Lanes<T>::Values& value) {
    constexpr int64_t COUNT = Lanes<T>::COUNT;
    using Unaligned = typename Lanes<T>::UnalignedValues;
    if constexpr (STRIDE == 1) {
        value = *reinterpret_cast<const Unaligned*>(x);
    } else if constexpr (STRIDE == 2) {
        typename Lanes<T>::Places even{};  // among x[0 .. COUNT) and x[COUNT - 1 .. 2 COUNT - 1): no element further is read
#pragma GCC unroll 8
        for (int64_t i = 0; i < COUNT; ++i) even[i] = 2 * i < COUNT ? 2 * i : 2 * i + 1;
        const typename Lanes<T>::Values low = *reinterpret_cast<const Unaligned*>(x);
        const typename Lanes<T>::Values high = *reinterpret_cast<const Unaligned*>(x + COUNT - 1);
        value = __builtin_shuffle(low, high, even);
    } else {
#pragma GCC unroll 8
        for (int64_t i = 0; i < COUNT; ++i) value[i] = x[i * stride];
    }
}

// The maxima of COUNT windows of one row, the first one starting at x[0], and their places; winner comes in as the first
// place of each window that is not border.
template <class T, int STRIDE>
[[gnu::always_inline]] inline void max_of_windows(const T* x, const MaxPool<T>& pool, typename Lanes<T>::Values& best,
                                                  typename Lanes<T>::Places& winner) {
    best = typename Lanes<T>::Values{} - std::numeric_limits<T>::infinity();
    for (int64_t r = 0; r < pool.kernel_h; ++r)
        for (int64_t s = 0; s < pool.kernel_w; ++s) {
            typename Lanes<T>::Values value;
            load_strided<T, STRIDE>(x + r * pool.dilation_h * pool.pitch + s * pool.dilation_w, pool.stride_w, value);
            const typename Lanes<T>::Places wins = (value > best) | (value != value);
            const auto place = typename Lanes<T>::Place(r * pool.dilation_h * pool.W + s * pool.dilation_w);
            best = wins ? value : best;
            winner = wins ? place - typename Lanes<T>::Places{} : winner;
        }
}

template <class T, int STRIDE, int KERNEL>
GPUCNN_CLONES void max_pool_plane(const T* x, const MaxPool<T>& plan, T* y, int64_t* indices) {
    MaxPool<T> pool = plan;  // a copy, which writing y and indices cannot change
    if constexpr (KERNEL > 0) {
        pool.kernel_h = pool.kernel_w = KERNEL;
        pool.dilation_h = pool.dilation_w = 1;
    }
    const int64_t count = std::min(Lanes<T>::COUNT, pool.Q);
    for (int64_t p = 0; p < pool.P; ++p, y += pool.Q, indices += pool.Q)
        for (int64_t done = 0; done < pool.Q; done += count) {
            const int64_t q = std::min(done, pool.Q - count);  // at the end of a row the last windows again, not fewer
            typename Lanes<T>::Values best;
            const auto* first = reinterpret_cast<const typename Lanes<T>::UnalignedPlaces*>(pool.first_column + q);
            typename Lanes<T>::Places winner = pool.first_row[p] + *first;
            max_of_windows<T, STRIDE>(x + p * pool.stride_h * pool.pitch + q * pool.stride_w, pool, best, winner);
            const int64_t start = (p * pool.stride_h - pool.pad_h) * pool.W + q * pool.stride_w - pool.pad_w;
            if (count == Lanes<T>::COUNT) {
                *reinterpret_cast<typename Lanes<T>::UnalignedValues*>(y + q) = best;
#pragma GCC unroll 8
                for (int64_t lane = 0; lane < Lanes<T>::COUNT; ++lane)
                    indices[q + lane] = start + lane * pool.stride_w + winner[lane];
            } else
                for (int64_t lane = 0; lane < count; ++lane) {
                    y[q + lane] = best[lane];
                    indices[q + lane] = start + lane * pool.stride_w + winner[lane];
                }
        }
}

template <class T>
auto max_pool_function(const Window& window) {
    const auto [kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w] = window;
    const int64_t kernel = kernel_h == kernel_w && dilation_h == 1 && dilation_w == 1 ? kernel_h : 0;
    if (stride_w == 1) return kernel == 3 ? &max_pool_plane<T, 1, 3> : &max_pool_plane<T, 1, 0>;
    if (stride_w == 2 && kernel == 2) return &max_pool_plane<T, 2, 2>;
    if (stride_w == 2) return kernel == 3 ? &max_pool_plane<T, 2, 3> : &max_pool_plane<T, 2, 0>;
    return &max_pool_plane<T, 0, 0>;
}

// One call: its geometry, and what the pointers in it point to.
template <class T>
struct Plan {
    MaxPool<T> pool;
    std::vector<typename Lanes<T>::Place> first_row, first_column;
    int64_t copy_h, copy_w;  // extents of a bordered copy; 0 where the planes are read as they are
};

template <class T>
Plan<T> make_plan(const Planes& planes, const Window& window, const char* operation) {
    const auto [count, H, W, P, Q] = planes;
    const auto [kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w] = window;
    const Spans rows = window_spans(window, 0, H, P, false, operation);
    const Spans columns = window_spans(window, 1, W, Q, false, operation);
    const int64_t computed = std::max(Q, Lanes<T>::COUNT);  // windows of a row
    const int64_t needed_h = (P - 1) * stride_h + (kernel_h - 1) * dilation_h + 1;
    const int64_t needed_w = (computed - 1) * stride_w + (kernel_w - 1) * dilation_w + 1;
    expect((H + needed_h) < (int64_t{1} << 31) / (1 + W), operation, "a plane must have fewer than 2^30 elements");
    const bool bordered = pad_h > 0 || pad_w > 0 || needed_h > H || needed_w > W;
    Plan<T> plan{{W, P, Q, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
                  bordered ? needed_w : W, nullptr, nullptr},
                 std::vector<typename Lanes<T>::Place>(P), std::vector<typename Lanes<T>::Place>(computed),
                 bordered ? needed_h : 0, bordered ? needed_w : 0};
    for (int64_t p = 0; p < P; ++p) plan.first_row[p] = (rows[p].begin - p * stride_h + pad_h) * W;
    for (int64_t q = 0; q < Q; ++q) plan.first_column[q] = columns[q].begin - q * stride_w + pad_w;
    plan.pool.first_row = plan.first_row.data();
    plan.pool.first_column = plan.first_column.data();
    return plan;
}

// Fills the inside of a copy whose border is set; rows and columns that no window reads are left out.
template <class T>
void copy_inside_border(const T* x, int64_t H, const Plan<T>& plan, T* copy) {
    const MaxPool<T>& pool = plan.pool;
    const int64_t rows = std::min(H, plan.copy_h - pool.pad_h), columns = std::min(pool.W, plan.copy_w - pool.pad_w);
    for (int64_t h = 0; h < rows; ++h)
        std::copy_n(x + h * pool.W, columns, copy + (h + pool.pad_h) * plan.copy_w + pool.pad_w);
}

// False, with gx zero, if an index lies outside the plane.
template <class T>
GPUCNN_CLONES bool max_pool_backward_plane(const T* gy, const int64_t* indices, int64_t outputs, T* gx, int64_t inputs) {
    bool inside = true;
    for (int64_t i = 0; i < inputs; ++i) gx[i] = 0;
    for (int64_t i = 0; i < outputs; ++i) inside &= indices[i] >= 0 && indices[i] < inputs;
    for (int64_t i = 0; inside && i < outputs; ++i) gx[indices[i]] += gy[i];
    return inside;
}

}  // namespace

template <class T>
void max_pool2d_forward(const T* x, T* y, int64_t* indices, const Planes& planes, const Window& window) {
    const Plan<T> plan = make_plan<T>(planes, window, "max_pool2d_forward");
    const auto pool_plane = max_pool_function<T>(window);
    const int64_t inputs = planes.H * planes.W, outputs = planes.P * planes.Q, copied = plan.copy_h * plan.copy_w;
    const int64_t grain = std::max(plane_grain(planes), (planes.count + SLOTS - 1) / SLOTS);
    std::vector<T> copies(copied * ((planes.count + grain - 1) / grain), -std::numeric_limits<T>::infinity());
    parallel_for_ranges(planes.count, grain, [&](int64_t begin, int64_t end) {
        T* const copy = copies.data() + begin / grain * copied;
        for (int64_t i = begin; i < end; ++i) {
            if (copied) copy_inside_border(x + i * inputs, planes.H, plan, copy);
            pool_plane(copied ? copy : x + i * inputs, plan.pool, y + i * outputs, indices + i * outputs);
        }
    });
}

template <class T>
void max_pool2d_backward(const T* gy, const int64_t* indices, T* gx, const Planes& planes) {
    const int64_t outputs = planes.P * planes.Q, inputs = planes.H * planes.W;
    std::atomic<bool> inside{true};
    parallel_for_ranges(planes.count, plane_grain(planes), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            if (!max_pool_backward_plane(gy + i * outputs, indices + i * outputs, outputs, gx + i * inputs, inputs))
                inside = false;
    });
    expect(inside, "max_pool2d_backward", "an index lies outside its H x W plane");
}

#define GPUCNN_INSTANTIATE(T) \
    template void max_pool2d_forward<T>(const T*, T*, int64_t*, const Planes&, const Window&); \
    template void max_pool2d_backward<T>(const T*, const int64_t*, T*, const Planes&);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
