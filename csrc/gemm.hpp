// Blocked matrix product on the register tile of tile.hpp, for operands that need not exist as matrices.
//
//     c (rows, columns)  =  or +=   a (rows, depth) @ b (depth, columns)   (+ bias per row)
//
// The three operands are objects with one method each, so that a convolution packs its im2col matrix straight from the image:
//     a.pack(row, rows, k, depth, out)                out[i * A_STRIDE + j] = a[row + i][k + j]
//     b.pack(k, depth, column, columns, out, stride)  out[i * stride + j]   = b[k + i][column + j]
//     c.run(column, count)                            where row 0 of a run of at most `count` columns of c lies: see Run
// Loops, from outside: at most MAX_DEPTH terms of the sum; b's block of that depth is packed (it stays in the second-level
// cache); a's tiles, packed one by one (first-level cache); b's block in tiles. One thread does all this; callers cut c into
// blocks for the threads. The order of each element's sum depends on `depth` alone, not on the blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "parallel.hpp"
#include "tile.hpp"

namespace gpucnn {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

// Part `index` of [0, count) cut into `parts` parts whose sizes differ by at most `unit` and, but for the last, are multiples
// of it.
inline Range part(int64_t count, int64_t parts, int64_t index, int64_t unit = 1) {
    const int64_t units = ceil_div(count, unit), small = units / parts, larger = units % parts;
    const int64_t begin = index * small + std::min(index, larger);
    const int64_t end = begin + small + (index < larger);
    return {std::min(count, begin * unit), std::min(count, end * unit)};
}

// Memory of one thread that only grows, aligned for every vector. Slots keep uses apart that live at the same time.
enum class Slot { BLOCK, SUMS, WEIGHTS, PARTIALS, COUNT };

template <class T>
T* scratch(Slot slot, int64_t count) {
    struct Free {
        void operator()(T* memory) const { ::operator delete(memory, std::align_val_t{64}); }
    };
    struct Buffer {
        std::unique_ptr<T, Free> memory;
        int64_t count = 0;
    };
    thread_local Buffer buffers[static_cast<int>(Slot::COUNT)];
    Buffer& buffer = buffers[static_cast<int>(slot)];
    if (buffer.count < count) {
        buffer.count = 0;
        buffer.memory.reset();  // first: never both the old and the new
        buffer.memory.reset(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})));
        buffer.count = count;
    }
    return buffer.memory.get();
}

// Memory of one call; its values are undefined.
template <class T>
std::unique_ptr<T[]> uninitialized(int64_t count) {
    return std::unique_ptr<T[]>(new T[count]);
}

// `columns` neighbouring columns of c: element (row, j) lies at start[row * row_stride + j * step].
template <class T>
struct Run {
    T* start;
    int64_t columns;
    int64_t step;
};

// The row stride of a packed block of b: whole cache lines, an odd number of them, so that rows spread over all cache sets.
template <class T>
int64_t block_stride(int64_t columns) {
    constexpr int64_t LINE = 64 / sizeof(T);
    return (ceil_div(round_up(columns, MAX_TILE_COLUMNS), LINE) | 1) * LINE;
}

// out[i] = the sum over chunks, in order, of partials[chunk][i].
template <class T>
void add_partials(const T* partials, int64_t chunks, int64_t size, T* out) {
    parallel_for_ranges(size, GRAIN, [&](int64_t begin, int64_t end) {
        std::copy(partials + begin, partials + end, out + begin);
        for (int64_t chunk = 1; chunk < chunks; ++chunk)
            for (int64_t i = begin; i < end; ++i) out[i] += partials[chunk * size + i];
    });
}

// Columns of b that one thread should take at a time: with the depth of one block they fill half a megabyte, which leaves
// half of a typical second-level cache to the other operands.
constexpr int64_t BLOCK_BYTES = 512 * 1024;

template <class T>
int64_t block_columns(int64_t depth) {
    constexpr int64_t MOST = 2048;
    const int64_t block_depth = std::max<int64_t>(1, std::min(depth, MAX_DEPTH));
    return std::min(MOST, BLOCK_BYTES / (block_depth * int64_t{sizeof(T)}) / MAX_TILE_COLUMNS * MAX_TILE_COLUMNS);
}

// Writes a finished tile of `rows` x `columns` to c, run by run.
template <class T, class C>
void store_tile(const T* tile, int64_t rows, int64_t row, int64_t column, int64_t columns, const C& c, bool add) {
    for (int64_t done = 0; done < columns;) {
        const Run<T> run = c.run(column + done, columns - done);
        for (int64_t i = 0; i < rows; ++i) {
            T* out = run.start + (row + i) * c.row_stride;
            const T* in = tile + i * MAX_TILE_COLUMNS + done;
            if (add)
                for (int64_t j = 0; j < run.columns; ++j) out[j * run.step] += in[j];
            else
                for (int64_t j = 0; j < run.columns; ++j) out[j * run.step] = in[j];
        }
        done += run.columns;
    }
}

// One packed tile of a against the whole packed block of b.
template <class T, class C>
void multiply_row_tile(const T* a, const T* b, const int64_t* offsets, int64_t depth, Range rows, Range columns, const C& c,
                       const T* bias, bool add) {
    const Tile<T>& tile = best_tile<T>();
    alignas(64) T edge[MAX_TILE_ROWS * MAX_TILE_COLUMNS];
    for (int64_t j = columns.begin; j < columns.end;) {
        const int64_t left = columns.end - j;
        const bool narrow = left <= tile.columns / 2;
        const int64_t width = narrow ? tile.columns / 2 : tile.columns, filled = std::min(width, left);
        const auto multiply = narrow ? tile.narrow[rows.size()] : tile.wide[rows.size()];
        const Run<T> run = c.run(j, filled);
        const T* b_tile = b + (j - columns.begin);
        if (run.columns == width && run.step == 1) {
            multiply(depth, a, b_tile, offsets, run.start + rows.begin * c.row_stride, c.row_stride, bias, add);
        } else {
            multiply(depth, a, b_tile, offsets, edge, MAX_TILE_COLUMNS, bias, false);
            store_tile(edge, rows.size(), rows.begin, j, filled, c, add);
        }
        j += filled;
    }
}

// The block `rows` x `columns` of c. bias (by absolute row) may be null; with add, c's old values are added.
template <class T, class A, class B, class C>
void multiply_block(Range rows, Range columns, int64_t depth, const A& a, const B& b, const C& c, const T* bias = nullptr,
                    bool add = false) {
    const Tile<T>& tile = best_tile<T>();
    const int64_t stride = block_stride<T>(columns.size());
    T* const block = scratch<T>(Slot::BLOCK, std::min(depth, MAX_DEPTH) * stride);
    alignas(64) T a_tile[MAX_TILE_ROWS * A_STRIDE];
    int64_t offsets[MAX_DEPTH + PREFETCHED];
    for (int64_t k = 0; k < MAX_DEPTH + PREFETCHED; ++k) offsets[k] = k * stride;
    const int64_t cuts = std::max<int64_t>(1, ceil_div(depth, MAX_DEPTH));
    const int64_t row_tiles = ceil_div(rows.size(), tile.rows);
    for (int64_t cut = 0; cut < cuts; ++cut) {
        const Range k = part(depth, cuts, cut);
        b.pack(k.begin, k.size(), columns.begin, columns.size(), block, stride);
        for (int64_t i = 0; i < k.size(); ++i)
            std::fill(block + i * stride + columns.size(), block + (i + 1) * stride, T{0});
        for (int64_t i = 0; i < row_tiles; ++i) {
            Range tile_rows = part(rows.size(), row_tiles, i);
            tile_rows.begin += rows.begin, tile_rows.end += rows.begin;
            a.pack(tile_rows.begin, tile_rows.size(), k.begin, k.size(), a_tile);
            const T* tile_bias = bias && cut == 0 ? bias + tile_rows.begin : nullptr;
            multiply_row_tile(a_tile, block, offsets, k.size(), tile_rows, columns, c, tile_bias, add || cut > 0);
        }
    }
}

// How a matrix c is cut into blocks for the threads: columns first, by block_columns; rows too where that gives too few.
struct Blocks {
    int64_t rows, columns, row_parts, column_parts;
    int64_t count() const { return row_parts * column_parts; }
    Range row_range(int64_t index) const { return part(rows, row_parts, index % row_parts); }
    Range column_range(int64_t index) const {
        return part(columns, column_parts, index / row_parts, MAX_TILE_COLUMNS);
    }
};

template <class T>
Blocks cut_blocks(int64_t rows, int64_t columns, int64_t depth, int64_t matrices) {
    constexpr int64_t FEWEST_COLUMNS = 2 * MAX_TILE_COLUMNS, FEWEST_ROWS = 2 * MAX_TILE_ROWS;
    const int64_t wanted = num_threads() == 1 ? 1 : ceil_div(4 * num_threads(), std::max<int64_t>(1, matrices));
    const int64_t most_column_parts = std::max<int64_t>(1, columns / FEWEST_COLUMNS);
    const int64_t by_cache = ceil_div(columns, block_columns<T>(depth));
    Blocks blocks{rows, columns, 1, std::max(by_cache, std::min(wanted, most_column_parts))};
    if (blocks.column_parts < wanted)
        blocks.row_parts = std::clamp<int64_t>(rows / FEWEST_ROWS, 1, ceil_div(wanted, blocks.column_parts));
    return blocks;
}

}  // namespace gpucnn
