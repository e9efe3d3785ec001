// Dropout: y_i = x_i * scale where word i of the stream is at least `threshold`, else 0; x and y (count). The gradient is
// the same kernel on (gy, gx). y is overwritten, and may be x.
//
// The stream is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011): word i is
// word i % 4 of the block whose counter is offset + i / 4 (64 bits, which may wrap around) under the key seed. The CPU draws
// the same words, so a mask depends on (seed, offset, i) alone and is not stored. A thread draws a block for four elements.
// Where `stream` is not null it has another seed, and a number to add to offset: a recorded launch goes on in the stream.
#include "elementwise.cuh"

constexpr int ROUNDS = 10;

__device__ __forceinline__ uint4 philox(uint64_t counter, uint64_t seed) {
    uint4 words = make_uint4(static_cast<unsigned>(counter), static_cast<unsigned>(counter >> 32), 0, 0);
    unsigned key0 = static_cast<unsigned>(seed), key1 = static_cast<unsigned>(seed >> 32);
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * words.x;
        const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * words.z;
        words = make_uint4(static_cast<unsigned>(product1 >> 32) ^ words.y ^ key0, static_cast<unsigned>(product1),
                           static_cast<unsigned>(product0 >> 32) ^ words.w ^ key1, static_cast<unsigned>(product0));
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return words;
}

template <class T>
__device__ __forceinline__ void drop(const T* x, T* y, int64 count, uint64_t seed, uint64_t offset,
                                     const uint64_t* stream, unsigned threshold, float scale) {
    if (stream) {
        seed = stream[0];
        offset += stream[1];
    }
    const bool aligned = is_aligned16(x) && is_aligned16(y);
    for (int64 block = global_thread(); 4 * block < count; block += global_threads()) {
        const uint4 words = philox(offset + static_cast<uint64_t>(block), seed);
        const bool kept[4] = {words.x >= threshold, words.y >= threshold, words.z >= threshold, words.w >= threshold};
        float values[4];
        const int64 first = 4 * block;
        if (aligned && first + 4 <= count) {
            load_neighbours(x + first, values);
        } else {
#pragma unroll
            for (int k = 0; k < 4; ++k) values[k] = first + k < count ? to_float(x[first + k]) : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) values[k] = kept[k] ? values[k] * scale : 0.0f;
        if (aligned && first + 4 <= count) {
            store_neighbours(y + first, values);
        } else {
#pragma unroll
            for (int k = 0; k < 4; ++k)
                if (first + k < count) y[first + k] = round_to<T>(values[k]);
        }
    }
}

#define DROPOUT(NAME, T) \
    KERNEL(256, 8) NAME(const T* x, T* y, int64 count, uint64_t seed, uint64_t offset, const uint64_t* stream, \
                        unsigned threshold, float scale) { \
        drop(x, y, count, seed, offset, stream, threshold, scale); \
    }
DROPOUT(dropout, float)
DROPOUT(dropout_bfloat16, bfloat16)
DROPOUT(dropout_float16, float16)
