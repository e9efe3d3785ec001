// The life of an mbarrier by a script, one thread's, and what waits for both parities find after each of its lines.
#include "ptx_barrier.cuh"
#include "ptx_tma.cuh"

enum BarrierLine { RENEW, ARRIVE, EXPECT, LOAD, WAIT };
constexpr int BOX_WORDS = 32, BOXES = 2;

// script (lines,2): what happens, and a number. RENEW: a new barrier of so many arrivals; EXPECT: an arrival that announces
// bytes; LOAD: a copy of the map's box to a place, which brings 128; WAIT: for a parity. seen (lines): 1 if the phases of
// parity 0 have ended, and 2 if those of parity 1 have; 4 from a LOAD to the next WAIT, where either may be.
KERNEL(32, 1) golden_barrier(TENSOR_MAP map, const int* script, unsigned* seen, int lines) {
    SHARED_BOXES(unsigned, shared);
    Barrier* const barrier = reinterpret_cast<Barrier*>(shared + BOXES * BOX_WORDS);
    if (threadIdx.x > 0) return;
    bool copying = false;
    for (int i = 0; i < lines; ++i) {
        const int line = script[2 * i], number = script[2 * i + 1];
        if (line == RENEW) {
            if (i > 0) barrier_invalidate(barrier);
            barrier_init(barrier, number);
            barrier_init_fence();
        }
        if (line == ARRIVE) barrier_arrive(barrier);
        if (line == EXPECT) barrier_arrive_expect(barrier, number);
        if (line == LOAD) {
            const int at[1] = {0};
            tma_load<1>(shared + number * BOX_WORDS, map, barrier, at);
        }
        if (line == WAIT) barrier_wait(barrier, number);
        copying = line == LOAD || (copying && line != WAIT);
        seen[i] = copying ? 4 : (barrier_try_wait(barrier, 0) ? 1 : 0) | (barrier_try_wait(barrier, 1) ? 2 : 0);
    }
}
