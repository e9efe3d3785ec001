// What conv2d_planes_hopper.cuh does beside products: which tile is where, how its sums leave piece by piece, and rows
// of images that the copy engine can read.
#pragma once
#include "tile_hopper.cuh"

constexpr int PIECE_PIXELS = 64;  // of 64 filters, on the way out

struct PlaneWalk {
    int filters, height, width;      // of c: its channels, and rows and columns of an image
    int rows, columns, slabs;        // of a filter; slabs of 64 channels
    int first_h, first_w;            // where in the images the window of pixel (0, 0) begins
    int dilation_h, dilation_w;
    int log_width;                   // of a rectangle: 4, 5 or 6
    int tiles_m, tiles_h, tiles_w;   // of c: of filters, and of an image's rows and columns
    int relu;
};

// The first filter, image, row and column of a tile. Tiles of the same pixels are neighbours, for the L2 cache.
struct PlanePlace {
    int filter, image, row, column;
};
template <class Tile>
__device__ __forceinline__ PlanePlace plane_place(const PlaneWalk& walk, int number) {
    const int pixels = number / walk.tiles_m, rows = pixels / walk.tiles_w, image = rows / walk.tiles_h;
    return {(number - pixels * walk.tiles_m) * Tile::TILE_M, image,
            (rows - image * walk.tiles_h) * (Tile::TILE_N >> walk.log_width),
            (pixels - rows * walk.tiles_w) << walk.log_width};
}

// A piece of c, 64 filters × 64 pixels, is a box [row][filter][column] in shared memory: the byte of an element.
__device__ __forceinline__ int piece_offset(int log_width, int filter, int pixel) {
    const int width = 1 << log_width, column = pixel & (width - 1);
    const int offset = 2 * (((pixel >> log_width) * GROUP_TILE_ROWS + filter) * width + column);
    return offset ^ (offset >> 7 & (width / 8 - 1)) << 4;
}

// Neighbouring pixels of a filter, in a piece and in an array of c's shape, if it has them.
template <class Type, int PIXELS>
struct PieceUnit {
    Type *shared, *global;
    bool inside;

    __device__ __forceinline__ PieceUnit(const PlaneWalk& walk, const PlanePlace& at, unsigned char* piece, Type* array,
                                         int number) {
        const int place = number * PIXELS, lines = place >> walk.log_width;  // neighbours in the piece, for its banks
        const int column = place & ((1 << walk.log_width) - 1);
        const int line = lines % GROUP_TILE_ROWS, row = lines / GROUP_TILE_ROWS;
        const int filter = at.filter + line, h = at.row + row, w = at.column + column;
        inside = filter < walk.filters && h < walk.height && w < walk.width;
        shared = reinterpret_cast<Type*>(piece + piece_offset(walk.log_width, line, (row << walk.log_width) + column));
        global = array + ((static_cast<int64>(at.image) * walk.filters + filter) * walk.height + h) * walk.width + w;
    }
};

__device__ __forceinline__ float4 load_word(const float4* from) { return load4(reinterpret_cast<const float*>(from)); }
__device__ __forceinline__ void store_word(float4* to, float4 word) { store4(reinterpret_cast<float*>(to), word); }
template <class Word>
__device__ __forceinline__ Word load_word(const Word* from) { return *from; }
template <class Word>
__device__ __forceinline__ void store_word(Word* to, Word word) { *to = word; }

// Copies a piece to an array, or from it, with zeros for what it has not, by all threads of a warpgroup, in words of
// pixels that rows of the array are multiples of.
template <bool TO_ARRAY, class Word, class Type>
__device__ __forceinline__ void copy_words(const PlaneWalk& walk, const PlanePlace& at, unsigned char* piece,
                                           Type* array) {
    constexpr int PIXELS = sizeof(Word) / sizeof(Type), AT_A_TIME = 4;
    using Unit = PieceUnit<Type, PIXELS>;
#pragma unroll 1
    for (int first = threadIdx.x % WARPGROUP; first < GROUP_TILE_ROWS * PIECE_PIXELS / PIXELS;
         first += AT_A_TIME * WARPGROUP) {
        Word words[AT_A_TIME] = {};  // on their way together
#pragma unroll
        for (int i = 0; i < AT_A_TIME; ++i) {
            const Unit unit(walk, at, piece, array, first + i * WARPGROUP);
            if (unit.inside) words[i] = load_word(reinterpret_cast<Word*>(TO_ARRAY ? unit.shared : unit.global));
        }
#pragma unroll
        for (int i = 0; i < AT_A_TIME; ++i) {
            const Unit unit(walk, at, piece, array, first + i * WARPGROUP);
            if (unit.inside || !TO_ARRAY)
                store_word(reinterpret_cast<Word*>(TO_ARRAY ? unit.global : unit.shared), words[i]);
        }
    }
}
template <bool TO_ARRAY, class Type>
__device__ __forceinline__ void copy_piece(const PlaneWalk& walk, const PlanePlace& at, unsigned char* piece,
                                           Type* array) {
    if (walk.width % 8 == 0 && is_aligned16(array)) copy_words<TO_ARRAY, float4>(walk, at, piece, array);
    else if (walk.width % 2 == 0 && is_aligned<1>(array)) copy_words<TO_ARRAY, uint32_t>(walk, at, piece, array);
    else copy_words<TO_ARRAY, Type>(walk, at, piece, array);
}

// Sums of 64 pixels from 8·first on, + bias + what stands in the piece if `add`, to the piece. This thread has pixels
// 2t and 2t + 1 of every eight, of a filter with bias[0] and of the one eight on.
template <class Tile>
__device__ __forceinline__ void write_piece(const PlaneWalk& walk, const typename Tile::Sums& sums, int first,
                                            const float (&bias)[2], bool add, unsigned char* piece) {
    const int lane = threadIdx.x % WARP_SIZE, line = threadIdx.x % WARPGROUP / WARP_SIZE * 16 + lane % 16;
#pragma unroll
    for (int block = 0; block < PIECE_PIXELS / 8; block += 2) {
        unsigned char* place = piece + piece_offset(walk.log_width, line, 8 * (block + lane / 16));
        uint32_t registers[4] = {};
        if (add) load_matrices<4, false>(registers, place);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int pair = 4 * (first + block + i / 2) + 2 * (i % 2);
            const float2 more = unpack<typename Tile::Type>(registers[i]);
            registers[i] = pack<typename Tile::Type>(finish(sums[pair] + bias[i % 2] + more.x, walk.relu),
                                                     finish(sums[pair + 1] + bias[i % 2] + more.y, walk.relu));
        }
        store_matrices<4, false>(place, registers);
    }
}

// rows[r,i] = x[r,i] for i < width, then zeros up to `pitch`; `count` words of rows.
template <class Word>
__device__ __forceinline__ void align_words(const Word* x, Word* rows, int width, int pitch, int count) {
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) {
        const unsigned row = i / pitch, column = i - row * pitch;
        rows[i] = column < width ? x[static_cast<int64>(row) * width + column] : Word{};
    }
}
// The same of values of 16 bits, two at a time where rows are multiples of two; rows begin at multiples of 16 bytes.
template <class Type>
__device__ __forceinline__ void align_rows(const Type* x, Type* rows, int width, int pitch, int count) {
    if (width % 2 == 0 && is_aligned<1>(x)) {
        align_words(reinterpret_cast<const uint32_t*>(x), reinterpret_cast<uint32_t*>(rows), width / 2, pitch / 2,
                    count / 2);
    } else {
        align_words(x, rows, width, pitch, count);
    }
}
