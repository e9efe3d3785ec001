// What the scheduler and the checks of accesses do with mbarriers (barrier.cpp).
#pragma once
#include <cstdint>
#include <string>

namespace simulator {

constexpr int BARRIERS_MAX = 256;  // mbarriers of a block

void start_barriers();            // at the start of a block
void switch_barriers(int from, int to);  // between blocks of a cluster
void end_barrier_thread();        // when a thread ends
std::string describe_wait(int number);  // of thread `number`, which waits at a barrier of this file
bool is_barrier(const char* address, size_t bytes);  // whether a byte belongs to an initialised mbarrier
int barrier_index(const void* barrier);               // its number in order of initialisation; −1: it is none
uint32_t barrier_phase(int index);                    // the phase under way

// A copy has brought so many bytes, which its barrier waited for.
void complete_bytes(void* barrier, int bytes);

// What the checks of accesses learn of the order of threads; modes that do not check it do nothing (unordered.hpp).
void order_initialisation(int barrier);  // by the current thread
void order_use(int barrier, const void* code);  // which fails unless its initialisation comes before
// What the current thread did before comes before what is done by those who wait for the phase under way of the barrier.
void order_arrival(int barrier);
void order_completion(int barrier);  // of the phase under way
void order_wait(int barrier, uint32_t phase);
// All of these threads, by their slots, did what they did before, and before what any of them does next.
void order_threads(const int* numbers, int count);
void order_warp(int warp, uint32_t mask);  // the same of lanes of a warp
void order_proxies();  // fence.proxy.async of the current thread

}  // namespace simulator
