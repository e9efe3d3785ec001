// The simulator's state, shared by the scheduler and by the checks of each build.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "fiber.hpp"
#include "simulator.hpp"

namespace simulator {

enum class State : uint8_t { READY, AT_BARRIER, IN_WARP_OPERATION, AT_MBARRIER, AT_NAMED_BARRIER, AT_CLUSTER_BARRIER, FOR_REGISTERS, DONE };

struct AsyncCopy {
    char* destination;
    const char* source;
    int bytes, source_bytes, group;
    const void* code;
};

struct Thread {
    char* stack = nullptr;
    int number, lane, warp;    // number: position in the block
    int slot;                  // position in the cluster, of all threads of all its blocks
    Place place;               // where it waits in a warp operation
    const void* code;          // where it waits at a barrier of barrier.cpp
    void* argument;            // of the warp operation it waits in, or its mbarrier
    int copy_groups;           // committed cp.async groups
    std::vector<AsyncCopy> copies;
};

// Lanes that wait in an operation for the others of its mask. Parts of a warp may be in different ones.
struct Gathering {
    uint32_t arrived, mask;
    Operation operation;
};

struct Warp {
    uint32_t alive = 0;
    uint32_t epoch = 0;  // counts operations of the whole warp, which order its lanes' accesses
    int count = 0;       // of gatherings; their masks differ
    Gathering gatherings[32];
};

// Device memory that a launch was given.
struct Buffer {
    char* begin;
    size_t bytes;
    int writable, guarded;  // guarded: GUARD_BYTES of 0xFF before and after it
};
constexpr size_t GUARD_BYTES = 256;

enum Order { FORWARD, REVERSE, RANDOM };

struct Launch {
    void (*kernel)(void* const*);
    void* const* arguments;
    unsigned grid[3], threads, shared_bytes, shared_limit;
    const Buffer* buffers;
    int buffer_count;
    int order;
    uint64_t seed;
    int late_copies;  // asynchronous copies complete as late as is legal, instead of at once
    int architecture;  // 90 for sm_90
    int cluster;       // blocks along x that run together
    char** stacks;     // STACKS_MAX, allocated when they are first used; all libraries of a process share them
    char* error;
    size_t error_bytes;
};

constexpr size_t SHARED_BYTES_MAX = 232448;          // 227 KiB, sm_90's limit for a block
constexpr size_t ARENA_BYTES = SHARED_BYTES_MAX + (64 << 10);  // and what builds leave free between arrays

constexpr int THREADS_MAX = 1024, CLUSTER_MAX = 8, STACKS_MAX = THREADS_MAX * CLUSTER_MAX;

struct Block {
    // Of each thread. What a barrier touches lies together, apart from the rest: it must stay in the CPU's first cache.
    State states[THREADS_MAX];
    Context contexts[THREADS_MAX];
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    int thread_count = 0, alive = 0, at_barrier = 0;
    Place barrier{};
    Thread* current = nullptr;
    Context scheduler;
    uint32_t epoch = 0;   // counts the barriers of all blocks of a launch
    uint32_t number = 0;  // position of the block in the order of execution, from 1
    char* shared = nullptr;
    size_t arena_used = 0, shared_bytes = 0;  // with and without the gaps between arrays
    struct Site {
        const void* key;
        char* memory;
        size_t bytes;
    };
    std::vector<Site> sites;
    const Launch* launch = nullptr;
    std::string error;
    uint64_t random = 0;
    int rank = 0;  // position in its cluster
    uint3 index{};
};
extern Block block;  // the one that runs now; the others of its cluster are kept apart

// A block of the cluster, and a thread's slot there.
Block& block_of(int rank);
inline int cluster_size() { return block.launch->cluster; }
// Makes another block of the cluster the one that runs, but for `current`, the thread that acts.
void enter_block(int rank);
template <class Action>
void in_block(int rank, Action action) {
    const int before = block.rank;
    enter_block(rank);
    action();
    enter_block(before);
}
// The address in another block of the cluster where `address` is in the one that runs.
inline char* cluster_address(const void* address, int rank) {
    return block_of(rank).shared + (static_cast<const char*>(address) - block.shared);
}
// Fails unless a block of that rank is in the cluster and has threads that have not ended.
void require_block(int rank, const void* code);

void yield_thread();  // runs others; returns when the state of the current thread, which is set before, is READY again
[[noreturn]] void fail_at(const char* kind, const std::string& message, const void* code);
std::string thread_name(int number);

// What each build adds: checks of accesses (access_*.cpp).
extern const size_t SHARED_GAP;  // bytes left free after each array of shared memory
void start_launch_checks();
void start_block_checks();
void barrier_checks();
void finish_block_checks();
void copy_issued(const AsyncCopy& copy);
void copy_completed(const AsyncCopy& copy);
// Shared memory that the hardware writes by itself, from the issue of a copy until the phase of its barrier completes.
void unit_write_issued(const char* address, size_t bytes, const void* barrier, const void* code);
void unit_write_completed(const char* address, size_t bytes, const void* barrier);  // before its bytes are counted
// Shared memory that it reads by itself, from the issue of an operation until the wait for it.
void unit_read_issued(const char* address, size_t bytes, const void* code);
void unit_read_finished(const char* address, size_t bytes, const void* code = nullptr);

// wgmma.cpp, at a block's start, and when a thread ends: then none of its warp's wgmma may be under way.
void start_warpgroups();
void switch_warpgroups(int from, int to);  // between blocks of a cluster
void end_warpgroup_thread();

}  // namespace simulator
