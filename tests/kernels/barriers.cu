// Rings of stages in shared memory between a producer warp and consumer warps, ordered by mbarriers alone; sound, and with
// one fault each, which the simulator must find.
//
// y[step][i] = x[step][i] + x[step][31 − i] for 32 values a step, by consumer warp step % CONSUMERS.
#include "ptx_barrier.cuh"

constexpr int RING_THREADS = 96;
constexpr int CONSUMERS = 2;

enum Fault { NONE, SKIPPED_EMPTY, SKIPPED_FULL, WRONG_PARITY, EARLY_RELEASE, LANE_RELEASES_WARP };

template <int STAGES, Fault FAULT>
struct RingTest {
    float (&tiles)[STAGES][32];
    Barrier* full;
    Barrier* empty;

    __device__ __forceinline__ void produce(const float* x, int steps) const {
        const int lane = threadIdx.x % 32;
        for (int step = 0; step < steps; ++step) {
            const int stage = step % STAGES, parity = step / STAGES & 1;
            if (FAULT != SKIPPED_EMPTY) barrier_wait(empty + stage, FAULT == WRONG_PARITY ? parity : parity ^ 1);
            tiles[stage][lane] = x[step * 32 + lane];
            __syncwarp();
            if (lane == 0) barrier_arrive(full + stage);
        }
    }
    __device__ __forceinline__ void consume(float* y, int steps) const {
        const int lane = threadIdx.x % 32;
        for (int step = threadIdx.x / 32 - 1; step < steps; step += CONSUMERS) {
            const int stage = step % STAGES;
            if (FAULT != SKIPPED_FULL) barrier_wait(full + stage, step / STAGES & 1);
            if (FAULT == EARLY_RELEASE && lane == 0) barrier_arrive(empty + stage);
            const float sum = tiles[stage][lane] + tiles[stage][31 - lane];
            if (FAULT != LANE_RELEASES_WARP) __syncwarp();
            if (FAULT != EARLY_RELEASE && lane == 31) barrier_arrive(empty + stage);
            y[step * 32 + lane] = sum;
            if (FAULT == LANE_RELEASES_WARP) __syncwarp();
        }
    }
};

template <int STAGES, Fault FAULT>
__device__ __forceinline__ void ring(const float* x, float* y, int steps) {
    SHARED(float, tiles, [STAGES][32]);
    SHARED(Barrier, barriers, [2 * STAGES]);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * STAGES; ++i) barrier_init(&barriers[i], 1);
        barrier_init_fence();
    }
    __syncthreads();
    const RingTest<STAGES, FAULT> test{tiles, barriers, barriers + STAGES};
    if (threadIdx.x < 32) {
        test.produce(x, steps);
    } else {
        test.consume(y, steps);
    }
}

#define RING(name, stages, fault) \
    KERNEL(RING_THREADS, 1) ring_##name(const float* x, float* y, int steps) { ring<stages, fault>(x, y, steps); }
RING(2, 2, NONE)
RING(3, 3, NONE)
RING(4, 4, NONE)
RING(skipped_empty, 2, SKIPPED_EMPTY)
RING(skipped_full, 2, SKIPPED_FULL)
RING(wrong_parity, 2, WRONG_PARITY)
RING(early_release, 2, EARLY_RELEASE)
RING(lane_releases_warp, 2, LANE_RELEASES_WARP)

// Two warps exchange values at a named barrier, while a third never comes to it.
KERNEL(96, 1) named_exchange(const float* x, float* y, int count) {
    SHARED(float, tile, [64]);
    if (threadIdx.x >= 64) return;
    tile[threadIdx.x] = x[threadIdx.x];
    named_barrier_wait(1, count);
    y[threadIdx.x] = tile[63 - threadIdx.x];
}
KERNEL(64, 1) named_exchange_missing(const float* x, float* y, int count) {
    SHARED(float, tile, [64]);
    tile[threadIdx.x] = x[threadIdx.x];
    if (count > 64) named_barrier_wait(1, 64);
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

// 384 threads have 168 registers each; the first warpgroup gives some, the others take them.
KERNEL(384, 1) registers_change(float* y, int n) {
    if (threadIdx.x < 128) {
        give_registers<40>();
    } else {
        take_registers<232>();
        y[threadIdx.x - 128] = 1.0f;
    }
}
KERNEL(384, 1) registers_too_many(float* y, int n) {
    if (threadIdx.x < 128) {
        give_registers<48>();
    } else {
        take_registers<232>();
        y[threadIdx.x - 128] = 1.0f;
    }
}
KERNEL(384, 1) registers_given_up(float* y, int n) {
    give_registers<240>();
    y[threadIdx.x] = 1.0f;
}

// Single faults of one thread.
KERNEL(32, 1) script_five_phases(float* y, int n) {
    SHARED(Barrier, barriers, [2]);
    Barrier* const barrier = barriers;
    if (threadIdx.x > 0) return;
    barrier_init(barrier, 2);
    barrier_wait(barrier, 1);
    for (int i = 0; i < n; ++i) {
        barrier_arrive(barrier);
        barrier_arrive_expect(barrier, 0);
        barrier_wait(barrier, i & 1);
    }
    y[0] = 1.0f;
}
KERNEL(32, 1) script_uninitialised(float* y, int n) {
    SHARED(Barrier, barriers, [2]);
    Barrier* const barrier = barriers;
    if (threadIdx.x > 0) return;
    barrier_arrive(barrier);
    y[0] = 1.0f;
}
KERNEL(32, 1) script_twice(float* y, int n) {
    SHARED(Barrier, barriers, [2]);
    Barrier* const barrier = barriers;
    if (threadIdx.x > 0) return;
    barrier_init(barrier, 1);
    barrier_init(barrier, 1);
    y[0] = 1.0f;
}
KERNEL(32, 1) script_no_arrivals(float* y, int n) {
    SHARED(Barrier, barriers, [2]);
    Barrier* const barrier = barriers;
    if (threadIdx.x > 0) return;
    barrier_init(barrier, 0);
    y[0] = 1.0f;
}
KERNEL(32, 1) script_misplaced(float* y, int n) {
    SHARED(Barrier, barriers, [2]);
    Barrier* const barrier = barriers;
    if (threadIdx.x > 0) return;
    barrier_init(reinterpret_cast<Barrier*>(reinterpret_cast<char*>(barrier) + 4), 1);
    y[0] = 1.0f;
}
KERNEL(32, 1) script_too_many_bytes(float* y, int n) {
    SHARED(Barrier, barriers, [2]);
    Barrier* const barrier = barriers;
    if (threadIdx.x > 0) return;
    barrier_init(barrier, 2);
    barrier_arrive_expect(barrier, 1 << 20);
    y[0] = 1.0f;
}
KERNEL(32, 1) script_unseen_phase(float* y, int n) {
    SHARED(Barrier, barriers, [2]);
    Barrier* const barrier = barriers;
    if (threadIdx.x > 0) return;
    barrier_init(barrier, 1);
    barrier_arrive(barrier);
    barrier_arrive(barrier);
    y[0] = 1.0f;
}
KERNEL(32, 1) script_never_completed(float* y, int n) {
    SHARED(Barrier, barriers, [2]);
    Barrier* const barrier = barriers;
    if (threadIdx.x > 0) return;
    barrier_init(barrier, 2);
    barrier_arrive(barrier);
    barrier_wait(barrier, 0);
    y[0] = 1.0f;
}
KERNEL(32, 1) script_bytes_never_come(float* y, int n) {
    SHARED(Barrier, barriers, [2]);
    Barrier* const barrier = barriers;
    if (threadIdx.x > 0) return;
    barrier_init(barrier, 1);
    barrier_arrive_expect(barrier, 128);
    barrier_wait(barrier, 0);
    y[0] = 1.0f;
}
KERNEL(32, 1) script_plain_access(float* y, int n) {
    SHARED(Barrier, barriers, [2]);
    Barrier* const barrier = barriers;
    if (threadIdx.x > 0) return;
    barrier_init(barrier, 1);
    barrier->state = n;
    y[0] = 1.0f;
}

// Each block of a pair writes a value, announces it to the other by a remote arrival, waits for the other's, and passes its
// own sum to y; `rounds` times.
enum ClusterFault { SOUND, NO_CLUSTER_WAIT, ENDS_EARLY, NO_INIT_FENCE };
template <ClusterFault FAULT>
__device__ __forceinline__ void ping(float* y, int rounds) {
    SHARED(Barrier, barriers, [2]);
    SHARED(float, sum, [64]);
    const int other = cluster_rank() ^ 1;
    if (threadIdx.x == 0) {
        barrier_init(&barriers[0], 1);
        if (FAULT != NO_INIT_FENCE) barrier_init_fence();
    }
    if (FAULT == NO_CLUSTER_WAIT)
        __syncthreads();
    else
        cluster_wait();
    sum[threadIdx.x] = 0.0f;
    for (int i = 0; i < rounds; ++i) {
        if (FAULT != ENDS_EARLY && (FAULT != NO_CLUSTER_WAIT || i > 0)) cluster_wait();  // all have waited for the round before
        if (threadIdx.x == 0 && (FAULT != ENDS_EARLY || cluster_rank() == 0)) barrier_arrive_cluster(&barriers[0], other);
        if (FAULT != ENDS_EARLY) barrier_wait(&barriers[0], i & 1);
        sum[threadIdx.x] += static_cast<float>(i + cluster_rank());
    }
    y[blockIdx.x * 64 + threadIdx.x] = sum[threadIdx.x];
    if (FAULT != ENDS_EARLY) cluster_wait();
}
CLUSTER_KERNEL(64, 1, 2) cluster_ping(float* y, int n) { ping<SOUND>(y, n); }
CLUSTER_KERNEL(64, 1, 2) cluster_no_wait(float* y, int n) { ping<NO_CLUSTER_WAIT>(y, n); }
CLUSTER_KERNEL(64, 1, 2) cluster_ends_early(float* y, int n) { ping<ENDS_EARLY>(y, n); }
CLUSTER_KERNEL(64, 1, 2) cluster_no_fence(float* y, int n) { ping<NO_INIT_FENCE>(y, n); }

KERNEL(32, 1) script_invalidated(float* y, int n) {
    SHARED(Barrier, barriers, [2]);
    if (threadIdx.x > 0) return;
    for (int i = 0; i < n; ++i) {
        barrier_init(barriers, 1);
        barrier_arrive(barriers);
        barrier_wait(barriers, 0);
        barrier_invalidate(barriers);
    }
    y[0] = 1.0f;
    if (n == 1) barrier_arrive(barriers);
}
KERNEL(64, 1) script_used_before_init(float* y, int n) {
    SHARED(Barrier, barriers, [1]);
    if (threadIdx.x == 0) barrier_init(barriers, 64);
    if (n > 0) __syncthreads();
    barrier_arrive(barriers);
    barrier_wait(barriers, 0);
    y[threadIdx.x] = 1.0f;
}
KERNEL(32, 1) script_unfinished(float* y, int n) {
    SHARED(Barrier, barriers, [1]);
    if (threadIdx.x > 0) return;
    barrier_init(barriers, 2);
    barrier_arrive_expect(barriers, 64);
    y[0] = 1.0f;
}

// y (steps,2): whether the wait for parity 0, and for parity 1, would pass, after each step of a script: n arrivals a
// step, then a wait for the phase if it has ended.
KERNEL(32, 1) golden_mbarrier(int* y, int arrivals, int steps) {
    SHARED(Barrier, barriers, [1]);
    if (threadIdx.x > 0) return;
    barrier_init(barriers, arrivals);
    for (int i = 0; i < steps; ++i) {
        y[2 * i] = barrier_try_wait(barriers, 0);
        y[2 * i + 1] = barrier_try_wait(barriers, 1);
        barrier_arrive(barriers);
    }
}
