// Unsigned numbers through shared memory by TMA, each with its place among its block's added: 32 rows of WIDTH bytes,
// with a swizzle of WIDTH, as two boxes in and two out. There is a fault if `fault` is not 0.
#include "ptx_barrier.cuh"
#include "ptx_tma.cuh"

constexpr int BOX_THREADS = 64;
constexpr int BOX_ROWS = 32;

enum Fault {
    NONE,
    EXPECTS_ONE_OF_TWO,   // loads' bytes
    EXPECTS_TOO_MUCH,
    READS_EARLY,          // before the barrier's phase
    NO_FENCE,             // between writes and the store that reads them
    NO_BLOCK_BARRIER,     // between other threads' writes and the store
    NO_COMMIT,
    NO_WAIT,              // before the block ends
    WRITES_EARLY,         // over a box that a store may still read
    WRONG_SWIZZLE,
    WRONG_PLACE,          // of a box: the pattern of its swizzle starts elsewhere
    NO_WAIT_FOR_LOADS,    // the block ends before they arrive
};

template <int WIDTH>
__device__ __forceinline__ void add_places(const TensorMap& x, const TensorMap& y, int fault) {
    constexpr int HALF = WIDTH * BOX_ROWS / 2;  // bytes: a box has 16 rows
    SHARED_BOXES(char, boxes);
    char* const in = boxes + (fault == WRONG_PLACE ? 128 : 0);
    char* const out = boxes + 4 * HALF;
    Barrier* const barrier = reinterpret_cast<Barrier*>(boxes + 8 * HALF);
    const int row = blockIdx.x * BOX_ROWS;
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const int boxes_expected = fault == EXPECTS_ONE_OF_TWO ? 1 : fault == EXPECTS_TOO_MUCH ? 3 : 2;
        barrier_arrive_expect(barrier, boxes_expected * HALF);
        tma_load(in, x, barrier, {0, row});
        tma_load(in + HALF, x, barrier, {0, row + BOX_ROWS / 2});
    }
    if (fault == NO_WAIT_FOR_LOADS) return;
    if (fault != READS_EARLY) barrier_wait(barrier, 0);
    for (int i = threadIdx.x * 4; i < 2 * HALF; i += BOX_THREADS * 4) {
        const unsigned from = fault == WRONG_SWIZZLE ? i : swizzle<WIDTH>(i);
        *reinterpret_cast<unsigned*>(out + swizzle<WIDTH>(i)) = *reinterpret_cast<unsigned*>(in + from) + i / 4;
    }
    if (fault != NO_FENCE) fence_async_shared();
    if (fault != NO_BLOCK_BARRIER) __syncthreads();
    if (threadIdx.x > 0) return;
    tma_store(y, out, {0, row});
    tma_store(y, out + HALF, {0, row + BOX_ROWS / 2});
    if (fault == NO_COMMIT) return;
    tma_store_commit();
    if (fault == WRITES_EARLY) *reinterpret_cast<unsigned*>(out) = 0;
    if (fault != NO_WAIT) tma_store_wait_read<0>();
}

#define ADD_PLACES(width)                                                                                       \
    KERNEL(BOX_THREADS, 1) planted_tma_##width(TENSOR_MAP x, TENSOR_MAP y, int fault) {                  \
        add_places<width>(x, y, fault);                                                                         \
    }
ADD_PLACES(16)
ADD_PLACES(32)
ADD_PLACES(64)
ADD_PLACES(128)
