// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3;
// SC 2011), and dropout made from them.
//
// Element i of a call takes word i % 4 of the block whose counter is the 128-bit number offset + i / 4 (its upper 64 bits
// are 0; words little-endian) under the key seed. So a mask depends on (seed, offset, i) alone: the same on every device
// and at every thread count, and drawn again, rather than stored, for the backward pass.
//
//   dropout   y_i = x_i * scale where word_i >= threshold, else 0; for gradients the same call on (gy, gx)
#include <algorithm>
#include <array>

#include "operations.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

using std::uint32_t;
using std::uint64_t;

constexpr int BLOCKS = 64;         // counter blocks drawn at a time
constexpr int WORDS = 4 * BLOCKS;  // random words they give

using Block = std::array<uint32_t, 4>;

inline Block philox4x32_10(Block counter, uint32_t key0, uint32_t key1) {
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t(0xD2511F53) * counter[0], product1 = uint64_t(0xCD9E8D57) * counter[2];
        counter = {uint32_t(product1 >> 32) ^ counter[1] ^ key0, uint32_t(product1),
                   uint32_t(product0 >> 32) ^ counter[3] ^ key1, uint32_t(product0)};
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return counter;
}

// words[4 * i + k] = word k of block first + i
inline void philox_words(uint32_t* __restrict words, uint64_t seed, uint64_t first) {
    for (int i = 0; i < BLOCKS; ++i) {
        const Block counter{uint32_t(first + i), uint32_t((first + i) >> 32), 0, 0};
        const Block block = philox4x32_10(counter, uint32_t(seed), uint32_t(seed >> 32));
        for (int k = 0; k < 4; ++k) words[4 * i + k] = block[k];
    }
}

GPUCNN_CLONES void philox_range(uint32_t* out, uint64_t seed, uint64_t first, int64_t count) {
    uint32_t words[WORDS];
    for (int64_t i = 0; i < count; i += WORDS, first += BLOCKS) {
        philox_words(words, seed, first);
        std::copy_n(words, std::min<int64_t>(WORDS, count - i), out + i);
    }
}

template <class T>
GPUCNN_CLONES void dropout_range(const T* __restrict x, T* __restrict y, uint64_t seed, uint64_t first,
                                 uint32_t threshold, T scale, int64_t count) {
    uint32_t words[WORDS];
    for (int64_t i = 0; i < count; i += WORDS, first += BLOCKS) {
        philox_words(words, seed, first);
        const int64_t here = std::min<int64_t>(WORDS, count - i);
        for (int64_t j = 0; j < here; ++j) y[i + j] = words[j] >= threshold ? x[i + j] * scale : T(0);
    }
}

static_assert(GRAIN % WORDS == 0, "a range starts at the first word of a block");

}  // namespace

void philox_uint32(uint32_t* out, int64_t count, uint64_t seed, uint64_t offset) {
    parallel_for_ranges(count, GRAIN, [=](int64_t begin, int64_t end) {
        philox_range(out + begin, seed, offset + begin / 4, end - begin);
    });
}

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    return philox4x32_10(counter, key[0], key[1]);
}

template <class T>
void dropout(const T* x, T* y, int64_t count, uint64_t seed, uint64_t offset, uint32_t threshold, double scale) {
    parallel_for_ranges(count, GRAIN, [=](int64_t begin, int64_t end) {
        dropout_range(x + begin, y + begin, seed, offset + begin / 4, threshold, T(scale), end - begin);
    });
}

#define GPUCNN_INSTANTIATE(T) \
    template void dropout<T>(const T*, T*, int64_t, uint64_t, uint64_t, uint32_t, double);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
