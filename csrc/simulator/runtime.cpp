// The scheduler: runs the blocks of a launch one after the other, and the threads of a block as fibers.
#include <memory>  // before __noinline__ is a macro

#include "runtime.hpp"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>

#include "barrier.hpp"
#include "tma.hpp"

namespace simulator {

uint3 thread_index, block_index;
dim3 block_size, grid_size;
int lane;
Block block;

namespace {

uint64_t next_random() {  // xorshift64
    uint64_t& x = block.random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return x;
}

std::unique_ptr<Block> parked[CLUSTER_MAX];  // blocks of the cluster that do not run now

void enter(int number) {
    block.current = &block.threads[number];
    thread_index.x = number;
    lane = number & 31;
}

State& my_state() { return block.states[block.current->number]; }

[[noreturn]] void leave_to_scheduler(Context& from) {
    block.current = nullptr;
    switch_to(from, block.scheduler);
    __builtin_unreachable();
}

std::string address_text(const void* code) {
    char text[32];
    snprintf(text, sizeof text, "@%p", code);
    return text;
}

std::string name_of_wait(int number) {
    const State state = block.states[number];
    const Thread& thread = block.threads[number];
    if (state == State::AT_BARRIER) return "at a barrier, line " + std::to_string(block.barrier.line);
    if (state == State::IN_WARP_OPERATION) return "in a warp operation, line " + std::to_string(thread.place.line);
    return describe_wait(number) + ", " + address_text(thread.code);
}

// Of the threads that wait, the first of each kind.
[[noreturn]] void fail_deadlock() {
    std::vector<std::string> waits;
    std::string message = "no thread can go on:";
    for (int rank = 0; rank < cluster_size(); ++rank)
        in_block(rank, [&] {
            for (int i = 0; i < block.thread_count; ++i) {
                if (block.states[i] == State::DONE) continue;
                const std::string of_block = cluster_size() > 1 ? " of block " + std::to_string(rank) : "", wait = name_of_wait(i);
                if (std::count(waits.begin(), waits.end(), of_block + wait) || waits.size() >= 4) continue;
                waits.push_back(of_block + wait);
                message += " " + thread_name(i) + of_block + " waits " + wait + ";";
            }
        });
    fail("deadlock", message.c_str(), {nullptr, 0});
}

// The next thread of a block that can run, after `from` in the order of the launch; -1 if there is none.
int next_ready(const Block& own, int from) {
    const int count = own.thread_count;
    const int step = block.launch->order == REVERSE ? count - 1 : 1;
    int candidate = block.launch->order == RANDOM ? static_cast<int>(next_random() % count) : from;
    for (int i = 0; i < count; ++i) {
        candidate += step;
        if (candidate >= count) candidate -= count;  // a remainder would cost as much as the switch itself
        if (own.states[candidate] == State::READY) return candidate;
    }
    return -1;
}

struct Next {
    int rank, number;
};

// Of the same block, or if the order is random or none of them can run, of another of the cluster.
Next find_next(int from) {
    const int size = cluster_size();
    const int first = size > 1 && block.launch->order == RANDOM ? static_cast<int>(next_random() % size) : block.rank;
    for (int i = 0; i < size; ++i) {
        const int rank = (first + i) % size;
        const int number = next_ready(block_of(rank), from);
        if (number >= 0) return {rank, number};
    }
    return {0, -1};
}

int alive_in_cluster() {
    int alive = 0;
    for (int rank = 0; rank < cluster_size(); ++rank) alive += block_of(rank).alive;
    return alive;
}

__attribute__((noinline)) void search_another() {
    const int me = block.current->number, rank = block.rank;
    if (has_box_copies() && block.launch->order == RANDOM && next_random() % 8 == 0) complete_box_copy(next_random());
    Next next = find_next(me);
    while (next.number < 0 && has_box_copies() && complete_box_copy(next_random())) next = find_next(me);
    if (next.number < 0) {
        if (alive_in_cluster()) fail_deadlock();
        leave_to_scheduler(block.contexts[me]);
    }
    if (next.rank == rank && next.number == me) return;
    enter_block(next.rank);
    enter(next.number);
    switch_to(block_of(rank).contexts[me], block.contexts[next.number]);
}

inline void run_another() {
    const int me = block.current->number, next = me + 1;
    if (block.launch->order != FORWARD || next >= block.thread_count || block.states[next] != State::READY)
        return search_another();
    enter(next);
    switch_to(block.contexts[me], block.contexts[next]);
}

void thread_body() {
    block.launch->kernel(block.launch->arguments);
    Thread& me = *block.current;
    copy_async_wait(0);
    end_warpgroup_thread();
    my_state() = State::DONE;
    if (--block.alive == 0) finish_box_copies();
    end_barrier_thread();
    Warp& warp = block.warps[me.warp];
    warp.alive &= ~(1u << me.lane);
    for (int i = 0; i < warp.count; ++i)
        if (warp.gatherings[i].mask >> me.lane & 1) fail("warp operation", "a lane of its mask has ended", me.place);
    if (block.at_barrier) fail("barrier", "a thread ended while others wait at a barrier", block.barrier);
    run_another();
    __builtin_unreachable();
}

void prepare_threads() {
    const int count = block.thread_count = block.launch->threads;
    if (static_cast<int>(block.threads.size()) < count) block.threads.resize(count);
    block.warps.resize((count + 31) / 32);
    for (Warp& warp : block.warps) warp.alive = warp.epoch = warp.count = 0;
    block.alive = count;
    block.at_barrier = 0;
    for (int i = 0; i < count; ++i) {
        Thread& thread = block.threads[i];
        char*& stack = block.launch->stacks[block.rank * count + i];
        if (!stack) stack = allocate_stack();
        thread.stack = stack;
        thread.number = i;
        thread.slot = block.rank * count + i;
        thread.lane = i % 32;
        thread.warp = i / 32;
        block.states[i] = State::READY;
        thread.place = {nullptr, 0};
        thread.copy_groups = 0;
        thread.copies.clear();
        block.warps[thread.warp].alive |= 1u << thread.lane;
        prepare(block.contexts[i], thread.stack, i, thread_body);
    }
}

// Sets up the block that is entered, at (x,y,z) of the grid.
void prepare_block(unsigned x, unsigned y, unsigned z) {
    block.index = {x, y, z};
    if (!block.shared) {
        void* const memory = mmap(nullptr, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        block.shared = static_cast<char*>(memory);
        block.arena_used = ARENA_BYTES;
    }
    memset(block.shared, 0xFF, block.arena_used);
    block.arena_used = block.shared_bytes = 0;
    block.sites.clear();
    prepare_threads();
    start_barriers();
    start_warpgroups();
}

// The blocks of a cluster from (x,y,z) on, together; without clusters, one block.
void run_cluster(unsigned x, unsigned y, unsigned z) {
    const uint32_t number = block.number + 1, epoch = block.epoch + 1;
    for (int rank = cluster_size() - 1; rank >= 0; --rank) {
        enter_block(rank);
        block.number = number;
        block.epoch = epoch;
        prepare_block(x + rank, y, z);
    }
    block_index = block.index;
    start_box_copies();
    start_block_checks();
    const Next first = find_next(block.thread_count - 1);
    enter_block(first.rank);
    enter(first.number);
    switch_to(block.scheduler, block.contexts[block.current->number]);
    finish_block_checks();
}

void run_blocks() {
    const uint64_t size = cluster_size(), gx = grid_size.x / size, gy = grid_size.y, total = gx * gy * grid_size.z;
    // A step coprime to the number of blocks visits each once, in an order that looks random.
    uint64_t step = 1;
    if (block.launch->order == RANDOM) {
        step = next_random() % total | 1;
        while (std::__gcd(step, total) != 1) step += 2;
    }
    uint64_t position = block.launch->order == RANDOM ? next_random() % total : 0;
    for (uint64_t i = 0; i < total && block.error.empty(); ++i) {
        const uint64_t b = block.launch->order == REVERSE ? total - 1 - i : position;
        run_cluster(b % gx * size, b / gx % gy, b / (gx * gy));
        position = (position + step) % total;
    }
}

void check_guards() {
    for (int i = 0; i < block.launch->buffer_count; ++i) {
        const Buffer& buffer = block.launch->buffers[i];
        if (!buffer.guarded) continue;
        const char* const sides[2] = {buffer.begin - GUARD_BYTES, buffer.begin + buffer.bytes};
        for (int side = 0; side < 2; ++side) {
            const auto damaged = std::find_if(sides[side], sides[side] + GUARD_BYTES, [](char c) { return c != '\xFF'; });
            if (damaged == sides[side] + GUARD_BYTES) continue;
            const long distance = side ? damaged - sides[1] : buffer.begin - damaged;
            block.error = "out of bounds\nargument " + std::to_string(i) + ": something wrote " + std::to_string(distance) +
                          " bytes " + (side ? "after its end" : "before its begin");
            return;
        }
    }
}

// A wild address or a division by zero ends the launch with an error instead of the process.
constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction previous_actions[3];

void restore_signals() {
    for (int i = 0; i < 3; ++i) sigaction(SIGNALS[i], &previous_actions[i], nullptr);
}

void on_signal(int number, siginfo_t* info, void*) {
    if (!block.current) return restore_signals();  // not a kernel's: it happens again, and is handled as it was before
    sigset_t caught;
    sigemptyset(&caught);
    sigaddset(&caught, number);
    sigprocmask(SIG_UNBLOCK, &caught, nullptr);
    if (number == SIGFPE) fail("division", "an integer was divided by zero; mode \"asan\" tells the line", {nullptr, 0});
    char text[96];
    snprintf(text, sizeof text, "address %p is not mapped; mode \"asan\" tells the line", info->si_addr);
    fail("bad address", text, {nullptr, 0});
}

struct SignalGuard {
    SignalGuard() {
        constexpr size_t bytes = 1 << 16;  // a stack for the handler: the fiber's own may be what overflowed
        static void* const stack = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        const stack_t alternative{stack, 0, bytes};
        sigaltstack(&alternative, &previous_stack);
        struct sigaction action {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (int i = 0; i < 3; ++i) sigaction(SIGNALS[i], &action, &previous_actions[i]);
    }
    ~SignalGuard() {
        restore_signals();
        sigaltstack(&previous_stack, nullptr);
    }
    stack_t previous_stack{};
};

inline void complete(const AsyncCopy& copy) {
    if (copy.source_bytes == 4 && copy.bytes == 4) {
        memcpy(copy.destination, copy.source, 4);  // a constant size: one instruction instead of a call
    } else if (copy.source_bytes == 16) {
        memcpy(copy.destination, copy.source, 16);
    } else {
        memcpy(copy.destination, copy.source, copy.source_bytes);
        memset(copy.destination + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    }
    copy_completed(copy);
}

}  // namespace

void yield_thread() { run_another(); }

Block& block_of(int rank) { return rank == block.rank ? block : *parked[rank]; }

void enter_block(int rank) {
    const int before = block.rank;
    if (rank == before) return;
    if (!parked[rank]) parked[rank] = std::make_unique<Block>();
    parked[before] = std::move(parked[rank]);
    Block& other = *parked[before];
    std::swap(block, other);
    // What belongs to the launch stays.
    block.launch = other.launch;
    block.current = other.current;
    block.scheduler = other.scheduler;
    block.random = other.random;
    block.error.swap(other.error);
    block.rank = rank;
    block_index = block.index;
    switch_barriers(before, rank);
    switch_warpgroups(before, rank);
}

void require_block(int rank, const void* code) {
    const std::string name = "block " + std::to_string(rank) + " of the cluster";
    if (rank < 0 || rank >= cluster_size())
        fail_at("cluster", name + " does not exist: it has " + std::to_string(cluster_size()), code);
    if (!block_of(rank).alive) fail_at("cluster", name + " has ended, and its shared memory with it", code);
}

std::string thread_name(int number) { return "thread " + std::to_string(number); }

// The error's text: kind, message, place, each on a line; Python adds the kernel and resolves code addresses.
void fail(const char* kind, const char* message, Place place) {
    block.error = std::string(kind) + "\n" + message;
    if (block.current) {
        block.error += " (block " + std::to_string(block_index.x) + "," + std::to_string(block_index.y) + "," +
                       std::to_string(block_index.z) + ", " + thread_name(block.current->number) + ")";
    }
    if (place.file) block.error += "\n" + std::string(place.file) + ":" + std::to_string(place.line);
    static Context abandoned;
    leave_to_scheduler(abandoned);
}

void fail_at(const char* kind, const std::string& message, const void* code) {
    const std::string text = address_text(code);
    fail(kind, message.c_str(), {code ? text.c_str() : nullptr, 0});
}

void* shared_memory(const void* key, size_t bytes, size_t alignment) {
    for (const Block::Site& site : block.sites)
        if (site.key == key) return site.memory;
    const size_t offset = (block.arena_used + alignment - 1) / alignment * alignment;
    const size_t size = key ? bytes : block.launch->shared_bytes;
    block.arena_used = offset + size + SHARED_GAP;
    block.shared_bytes = (block.shared_bytes + alignment - 1) / alignment * alignment + size;
    if (block.shared_bytes > block.launch->shared_limit || block.arena_used > ARENA_BYTES) {
        const std::string message = "the block needs " + std::to_string(block.shared_bytes) + " bytes; the limit is " +
                                    std::to_string(block.launch->shared_limit);
        fail("shared memory", message.c_str(), {nullptr, 0});
    }
    block.sites.push_back({key, block.shared + offset, size});
    return block.shared + offset;
}

namespace {

// The same barrier has one name at one address; only others are compared letter by letter.
__attribute__((noinline)) void compare_barriers(Place place) {
    if (block.barrier.line == place.line && strcmp(block.barrier.file, place.file) == 0) {
        block.barrier = place;
        return block_barrier(place);
    }
    const std::string message = "threads of one block wait at different barriers: lines " +
                                std::to_string(block.barrier.line) + " and " + std::to_string(place.line);
    fail("divergent barrier", message.c_str(), place);
}

__attribute__((noinline)) void open_barrier() {
    block.at_barrier = 0;
    ++block.epoch;
    for (int i = 0; i < block.thread_count; ++i)
        block.states[i] = block.states[i] == State::AT_BARRIER ? State::READY : block.states[i];
    barrier_checks();
}

}  // namespace

// Short, and without a frame of its own: it is what a kernel with many barriers spends its time in.
void block_barrier(Place place) {
    if (block.at_barrier && (block.barrier.line != place.line || block.barrier.file != place.file))
        return compare_barriers(place);
    block.barrier = place;
    if (++block.at_barrier == block.alive) return open_barrier();
    my_state() = State::AT_BARRIER;
    run_another();
}

namespace {

// The lanes that wait with this mask, now with the calling one among them.
Gathering& gather(Warp& warp, uint32_t mask, Operation operation, int lane, Place place) {
    int i = 0;
    while (i < warp.count && warp.gatherings[i].mask != mask) ++i;
    Gathering& found = warp.gatherings[i];
    if (i == warp.count) {
        found = {0, mask, operation};
        ++warp.count;  // never above 32: each has a lane that waits in it
    } else if (found.operation != operation) {
        fail("divergent warp operation", "lanes of one mask are in different operations", place);
    }
    found.arrived |= 1u << lane;
    return found;
}

}  // namespace

void warp_operation(uint32_t mask, void* argument, Operation operation, Place place) {
    Thread& me = *block.current;
    Warp& warp = block.warps[me.warp];
    if (!(mask >> me.lane & 1)) fail("warp operation", "the calling lane is not in its own mask", place);
    if (mask & ~warp.alive) fail("warp operation", "a lane of its mask has ended, or is outside the block", place);
    Gathering& gathering = gather(warp, mask, operation, me.lane, place);
    me.argument = argument;
    me.place = place;
    if (gathering.arrived != mask) {
        my_state() = State::IN_WARP_OPERATION;
        return run_another();
    }
    gathering = warp.gatherings[--warp.count];
    Thread* const first = &block.threads[me.warp * 32];
    void* arguments[32];
    for (int i = 0; i < 32; ++i) arguments[i] = mask >> i & 1 ? first[i].argument : nullptr;
    operation(arguments, mask);
    if (mask == warp.alive) ++warp.epoch;
    order_warp(me.warp, mask);
    State* const states = block.states + me.warp * 32;
    for (int i = 0; i < 32; ++i)
        if ((mask >> i & 1) && states[i] == State::IN_WARP_OPERATION) states[i] = State::READY;
}

void vote_lanes(void* const* arguments, uint32_t) {
    uint32_t ballot = 0;
    for (int i = 0; i < 32; ++i) ballot |= arguments[i] && static_cast<Vote*>(arguments[i])->predicate ? 1u << i : 0;
    for (int i = 0; i < 32; ++i)
        if (arguments[i]) static_cast<Vote*>(arguments[i])->ballot = ballot;
}

void no_lanes(void* const*, uint32_t) {}

void copy_async(void* destination, const void* source, int bytes, int source_bytes, Place place) {
    Thread& me = *block.current;
    if ((bytes != 4 && bytes != 8 && bytes != 16) || source_bytes < 0 || source_bytes > bytes)
        fail("cp.async", "it copies 4, 8 or 16 bytes", place);
    const bool inside = destination >= block.shared && destination < block.shared + ARENA_BYTES;
    if (!inside) fail("cp.async", "the destination is not in shared memory", place);
    if (reinterpret_cast<uintptr_t>(destination) % bytes || (source_bytes && reinterpret_cast<uintptr_t>(source) % bytes))
        fail("cp.async", "both addresses must be multiples of the size", place);
    // Filled in place: a struct written by parts and copied at once would stall the CPU's store buffer.
    AsyncCopy& copy = me.copies.emplace_back();
    copy.destination = static_cast<char*>(destination);
    copy.source = static_cast<const char*>(source);
    copy.bytes = bytes;
    copy.source_bytes = source_bytes;
    copy.group = me.copy_groups;
    copy.code = __builtin_return_address(0);
    copy_issued(copy);
    if (block.launch->late_copies) return;
    complete(copy);
    me.copies.pop_back();
}

void copy_async_commit() { ++block.current->copy_groups; }

void copy_async_wait(int groups_in_flight) {
    Thread& me = *block.current;
    if (groups_in_flight == 0 && (me.copies.empty() || me.copies.back().group < me.copy_groups)) {  // for all of them
        for (const AsyncCopy& copy : me.copies) complete(copy);
        return me.copies.clear();
    }
    const auto waits = [&](const AsyncCopy& copy) { return copy.group < me.copy_groups - groups_in_flight; };
    const auto rest = std::stable_partition(me.copies.begin(), me.copies.end(), waits);
    for (auto copy = me.copies.begin(); copy != rest; ++copy) complete(*copy);
    me.copies.erase(me.copies.begin(), rest);
}

// 0, or 1 with the error's text in launch->error.
extern "C" __attribute__((visibility("default"))) int gpucnn_simulate(const Launch* launch) {
    enter_block(0);
    block.launch = launch;
    block.error.clear();
    block.number = block.epoch = 0;
    block.random = launch->seed * 6364136223846793005u + 1442695040888963407u;
    thread_index = {0, 0, 0};
    block_size = {launch->threads, 1, 1};
    grid_size = {launch->grid[0], launch->grid[1], launch->grid[2]};
    if (launch->threads > THREADS_MAX) {
        block.error = "launch\na block has " + std::to_string(launch->threads) + " threads; the limit is 1024";
    } else if (launch->cluster > CLUSTER_MAX || (launch->cluster > 1 && launch->threads % 32)) {
        block.error = "launch\na cluster has at most 8 blocks, of whole warps";
    } else {
        const SignalGuard guard;
        start_launch_checks();
        run_blocks();
    }
    if (block.error.empty()) check_guards();
    snprintf(launch->error, launch->error_bytes, "%s", block.error.c_str());
    return !block.error.empty();
}

}  // namespace simulator
