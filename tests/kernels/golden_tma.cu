// Small programs that show what TMA does with a box: all of the shared memory after a load, over a pattern; an array
// after a store. One block; thread 0 asks for the copy.
//
// Shared memory has `words` words, of which `place` is the byte where the box starts, and then a barrier.
#include "ptx_barrier.cuh"
#include "ptx_tma.cuh"

constexpr int TMA_THREADS = 128;
constexpr unsigned UNTOUCHED = 0xa5a5a5a5u;

__device__ __forceinline__ void prepare(unsigned* shared, const unsigned* content, Barrier* barrier, int words) {
    for (int i = threadIdx.x; i < words; i += TMA_THREADS) shared[i] = content ? content[i] : UNTOUCHED;
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barrier_init_fence();
    }
    fence_async_shared();
    __syncthreads();
}

__device__ __forceinline__ void dump_loaded(unsigned* dump, const unsigned* shared, Barrier* barrier, int words) {
    barrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < words; i += TMA_THREADS) dump[i] = shared[i];
}

// `bytes` are the load's.
template <int RANK>
__device__ __forceinline__ void load_box(const TensorMap& map, unsigned* dump, int words, int place, int bytes,
                                         const int (&at)[RANK]) {
    SHARED_BOXES(unsigned, shared);
    Barrier* const barrier = reinterpret_cast<Barrier*>(shared + words);
    prepare(shared, nullptr, barrier, words);
    if (threadIdx.x == 0) {
        tma_prefetch(map);
        barrier_arrive_expect(barrier, bytes);
        tma_load(reinterpret_cast<char*>(shared) + place, map, barrier, at);
    }
    dump_loaded(dump, shared, barrier, words);
}

KERNEL(TMA_THREADS, 1) golden_tma_load_1(TENSOR_MAP map, unsigned* dump, int words, int place, int bytes, int a) {
    load_box<1>(map, dump, words, place, bytes, {a});
}
KERNEL(TMA_THREADS, 1)
golden_tma_load_2(TENSOR_MAP map, unsigned* dump, int words, int place, int bytes, int a, int b) {
    load_box<2>(map, dump, words, place, bytes, {a, b});
}
KERNEL(TMA_THREADS, 1)
golden_tma_load_3(TENSOR_MAP map, unsigned* dump, int words, int place, int bytes, int a, int b, int c) {
    load_box<3>(map, dump, words, place, bytes, {a, b, c});
}
KERNEL(TMA_THREADS, 1)
golden_tma_load_4(TENSOR_MAP map, unsigned* dump, int words, int place, int bytes, int a, int b, int c, int d) {
    load_box<4>(map, dump, words, place, bytes, {a, b, c, d});
}
KERNEL(TMA_THREADS, 1)
golden_tma_load_5(TENSOR_MAP map, unsigned* dump, int words, int place, int bytes, int a, int b, int c, int d, int e) {
    load_box<5>(map, dump, words, place, bytes, {a, b, c, d, e});
}

KERNEL(TMA_THREADS, 1)
golden_tma_im2col(TENSOR_MAP map, unsigned* dump, int words, int place, int bytes, int c, int w, int h, int n,
                  int offset_w, int offset_h) {
    SHARED_BOXES(unsigned, shared);
    Barrier* const barrier = reinterpret_cast<Barrier*>(shared + words);
    prepare(shared, nullptr, barrier, words);
    if (threadIdx.x == 0) {
        barrier_arrive_expect(barrier, bytes);
        tma_load_im2col(reinterpret_cast<char*>(shared) + place, map, barrier, {c, w, h, n}, offset_w, offset_h);
    }
    dump_loaded(dump, shared, barrier, words);
}

template <int RANK>
__device__ __forceinline__ void store_box(const TensorMap& map, const unsigned* content, int words, int place,
                                          const int (&at)[RANK]) {
    SHARED_BOXES(unsigned, shared);
    prepare(shared, content, reinterpret_cast<Barrier*>(shared + words), words);
    if (threadIdx.x > 0) return;
    tma_store(map, reinterpret_cast<char*>(shared) + place, at);
    tma_store_commit();
    tma_store_wait<0>();
}

KERNEL(TMA_THREADS, 1) golden_tma_store_1(TENSOR_MAP map, const unsigned* content, int words, int place, int a) {
    store_box<1>(map, content, words, place, {a});
}
KERNEL(TMA_THREADS, 1)
golden_tma_store_2(TENSOR_MAP map, const unsigned* content, int words, int place, int a, int b) {
    store_box<2>(map, content, words, place, {a, b});
}
KERNEL(TMA_THREADS, 1)
golden_tma_store_3(TENSOR_MAP map, const unsigned* content, int words, int place, int a, int b, int c) {
    store_box<3>(map, content, words, place, {a, b, c});
}
KERNEL(TMA_THREADS, 1)
golden_tma_store_4(TENSOR_MAP map, const unsigned* content, int words, int place, int a, int b, int c, int d) {
    store_box<4>(map, content, words, place, {a, b, c, d});
}
KERNEL(TMA_THREADS, 1)
golden_tma_store_5(TENSOR_MAP map, const unsigned* content, int words, int place, int a, int b, int c, int d, int e) {
    store_box<5>(map, content, words, place, {a, b, c, d, e});
}
