// Float32 matrices as three bfloat16 parts each, x = x0 + x1 + x2, for tile_float32_hopper.cuh: x0 is x rounded to nearest,
// x1 what is left of it rounded, x2 the rest, which is exact. `parts` (part, matrix, row, pitch) is overwritten; between a
// row's terms and its pitch, a multiple of 8, stand zeros. Infinities become NaN; of values below 2^-108 the parts that
// are no normal numbers may be lost.
//
//   split_terms_hopper   terms contiguous: a thread takes eight of a row
//   split_rows_hopper    rows contiguous: a block takes 32 rows and 64 terms through shared memory, so that it reads along
//                        rows and writes along terms; a column of padding keeps the banks apart
#include "ptx_convert.cuh"

constexpr int THREADS = 256;
constexpr int UNIT = 8;  // terms that a thread writes to a part at a time, 16 bytes
constexpr int TILE_ROWS = 32, TILE_TERMS = 64;
static_assert(TILE_ROWS * TILE_TERMS == THREADS * UNIT, "a unit of the tile each");

struct SplitShape {
    int rows, terms, pitch;
    int64 stride, batch_stride, part;  // between rows, or terms if the rows are contiguous; of a part, in elements
};

__device__ __forceinline__ void store_parts(const float (&values)[UNIT], bfloat16* parts, int64 part) {
    constexpr float LARGEST = 0x1.fep127f;  // a first part that is larger would be rounded to infinity
    float rest[UNIT];
#pragma unroll
    for (int i = 0; i < UNIT; ++i) rest[i] = values[i];
#pragma unroll
    for (int number = 0; number < 3; ++number) {
        float words[UNIT / 2];
#pragma unroll
        for (int i = 0; i < UNIT; i += 2) {
            const float first = number ? rest[i] : fminf(fmaxf(rest[i], -LARGEST), LARGEST);
            const float second = number ? rest[i + 1] : fminf(fmaxf(rest[i + 1], -LARGEST), LARGEST);
            const uint32_t pair = pack<bfloat16>(first, second);
            const float2 taken = unpack<bfloat16>(pair);
            rest[i] -= taken.x, rest[i + 1] -= taken.y;
            words[i / 2] = __uint_as_float(pair);
        }
        store_values<UNIT / 2>(reinterpret_cast<float*>(parts + number * part), words);
    }
}

KERNEL(THREADS, 4) split_terms_hopper(const float* x, bfloat16* parts, SplitShape shape, int units) {
    const unsigned row_units = shape.pitch / UNIT;
    const bool vectors = is_aligned16(x) && shape.stride % 4 == 0 && shape.batch_stride % 4 == 0;
    for (unsigned i = blockIdx.x * THREADS + threadIdx.x; i < units; i += gridDim.x * THREADS) {
        const unsigned line = i / row_units, term = i % row_units * UNIT;
        const unsigned row = line % shape.rows, batch = line / shape.rows;
        const float* from = x + batch * shape.batch_stride + row * shape.stride + term;
        float values[UNIT];
        if (vectors && term + UNIT <= shape.terms) {
            unpack(load4(from), values);
            unpack(load4(from + 4), values + 4);
        } else {
#pragma unroll
            for (int k = 0; k < UNIT; ++k) values[k] = term + k < shape.terms ? from[k] : 0.0f;
        }
        store_parts(values, parts + static_cast<int64>(UNIT) * i, shape.part);
    }
}

KERNEL(THREADS, 4) split_rows_hopper(const float* x, bfloat16* parts, SplitShape shape) {
    SHARED(float, tile, [TILE_TERMS][TILE_ROWS + 1]);
    const int row_tiles = ceil_div(shape.rows, TILE_ROWS), term_tiles = ceil_div(shape.pitch, TILE_TERMS);
    const int number = blockIdx.x, first_row = number % row_tiles * TILE_ROWS;
    const int first_term = number / row_tiles % term_tiles * TILE_TERMS;
    const int64 batch = number / row_tiles / term_tiles;
    const int lane = threadIdx.x % TILE_ROWS;
    const float* from = x + batch * shape.batch_stride + first_row + lane;
    for (int k = threadIdx.x / TILE_ROWS; k < TILE_TERMS; k += THREADS / TILE_ROWS) {
        const bool inside = first_row + lane < shape.rows && first_term + k < shape.terms;
        tile[k][lane] = inside ? from[(first_term + k) * shape.stride] : 0.0f;
    }
    __syncthreads();
    const int term = threadIdx.x % (TILE_TERMS / UNIT) * UNIT, row = threadIdx.x / (TILE_TERMS / UNIT);
    if (first_row + row >= shape.rows || first_term + term >= shape.pitch) return;
    float values[UNIT];
#pragma unroll
    for (int k = 0; k < UNIT; ++k) values[k] = tile[term + k][row];
    const int64 to = (batch * shape.rows + first_row + row) * shape.pitch + first_term + term;
    store_parts(values, parts + to, shape.part);
}
