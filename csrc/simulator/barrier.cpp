// mbarrier, named barriers and setmaxnreg: PTX ISA 9.7.13.15, "mbarrier", 9.7.13.1, "bar", and 9.7.19.5, "setmaxnreg".
//
// What PTX leaves undefined fails: a barrier that was not initialised or is initialised twice, more arrivals than pending,
// bytes out of range, and an arrival in a phase while nobody has seen that the one before completed.
#include "barrier.hpp"

#include <algorithm>
#include <vector>

#include "runtime.hpp"

namespace simulator {

bool uses_barriers = false;

namespace {

constexpr int COUNT_MAX = (1 << 20) - 1;  // of arrivals, and of bytes that are owed or came early
constexpr int NAMED = 16;
constexpr int FILE_REGISTERS = 65536, REGISTERS_MAX = 255, REGISTERS_STEP = 8;

struct Mbarrier {
    const char* address;
    int arrivals, pending, bytes;  // bytes: owed, or negative: came before they were expected
    uint32_t phase;                // how many have completed
    bool seen;                     // whether somebody has waited for the one before; true at the start
    int initialiser;               // the thread that initialised it
    bool fenced;                   // and has made a fence since, for copies and other blocks
};

struct NamedBarrier {
    int threads = 0;
    std::vector<int> waiting;
    Place place{};
};

std::vector<Mbarrier> barriers;
NamedBarrier named[NAMED];
std::vector<int> warp_registers;  // of each thread of a warp
int free_registers;

Mbarrier& find(const void* address, const char* operation, Place place) {
    const int index = barrier_index(address);
    if (index < 0) {
        const std::string message = std::string(operation) + " on a barrier that nothing has initialised";
        fail("mbarrier", message.c_str(), place);
    }
    if (block.current) order_use(index);
    return barriers[index];
}

std::string name_of(const Mbarrier& barrier) {
    return "the barrier at shared byte " + std::to_string(barrier.address - block.shared);
}

void wake(State state, const Mbarrier* barrier) {
    for (int i = 0; i < block.thread_count; ++i) {
        const Thread& thread = block.threads[i];
        if (block.states[i] != state || (barrier && thread.argument != barrier->address)) continue;
        block.states[i] = State::READY;
    }
}

void complete_if_done(Mbarrier& barrier) {
    if (barrier.pending || barrier.bytes) return;
    order_completion(&barrier - barriers.data());
    ++barrier.phase;
    barrier.pending = barrier.arrivals;
    barrier.seen = false;
    wake(State::AT_MBARRIER, &barrier);
}

void add_bytes(Mbarrier& barrier, int bytes, Place place) {
    barrier.bytes += bytes;
    if (barrier.bytes > COUNT_MAX || barrier.bytes < -COUNT_MAX) {
        const std::string message = name_of(barrier) + " owes " + std::to_string(barrier.bytes) + " bytes; at most 2^20 - 1 fit";
        fail("mbarrier", message.c_str(), place);
    }
}

int first_registers() {
    const int share = FILE_REGISTERS / ((block.thread_count + 127) & ~127);
    return std::min(REGISTERS_MAX, share / REGISTERS_STEP * REGISTERS_STEP);
}

}  // namespace

void start_barriers() {
    barriers.clear();
    for (NamedBarrier& each : named) each = {};
    warp_registers.clear();
}

void end_barrier_thread() {
    for (const Mbarrier& each : barriers) {
        if (block.alive || !each.address || !each.bytes) continue;
        const std::string message = "the block ends, and " + name_of(each) + " waits for " + std::to_string(each.bytes) + " bytes";
        fail("mbarrier", message.c_str(), {nullptr, 0});
    }
    for (const NamedBarrier& each : named)
        if (!each.waiting.empty() && static_cast<int>(each.waiting.size()) + block.alive < each.threads)
            fail("named barrier", "too few threads are left for it", each.place);
}

std::string describe_wait(int number) {
    const Thread& thread = block.threads[number];
    if (block.states[number] == State::FOR_REGISTERS) return "for registers that others give back";
    if (block.states[number] == State::AT_NAMED_BARRIER) return "at a named barrier";
    const int index = barrier_index(thread.argument);
    if (index < 0) return "at an mbarrier";
    const Mbarrier& barrier = barriers[index];
    return "at " + name_of(barrier) + ", whose phase " + std::to_string(barrier.phase) + " lacks " +
           std::to_string(barrier.pending) + " arrivals and " + std::to_string(barrier.bytes) + " bytes";
}

int barrier_index(const void* barrier) {
    for (size_t i = 0; i < barriers.size(); ++i)
        if (barrier && barriers[i].address == barrier) return static_cast<int>(i);
    return -1;
}

uint32_t barrier_phase(int index) { return barriers[index].phase; }

bool is_barrier(const char* address, size_t bytes) {
    for (const Mbarrier& each : barriers)
        if (each.address && address < each.address + sizeof(uint64_t) && each.address < address + bytes) return true;
    return false;
}

void barrier_init(void* address, int arrivals, Place place) {
    const char* const own = static_cast<const char*>(address);
    if (own < block.shared || own >= block.shared + ARENA_BYTES || (own - block.shared) % sizeof(uint64_t))
        fail("mbarrier", "a barrier must be in shared memory, at a multiple of 8", place);
    if (barrier_index(own) >= 0) fail("mbarrier", "the barrier was initialised before", place);
    if (arrivals < 1 || arrivals > COUNT_MAX) fail("mbarrier", "a phase needs from 1 to 2^20 - 1 arrivals", place);
    if (barriers.size() == BARRIERS_MAX) fail("mbarrier", "the simulator has room for 256 barriers a block", place);
    barriers.push_back({own, arrivals, arrivals, 0, 0, true, block.current->number, false});
    order_initialisation(barriers.size() - 1);
}

void barrier_init_fence() {
    for (Mbarrier& each : barriers) each.fenced |= each.initialiser == block.current->number;
}

void barrier_invalidate(void* address, Place place) { find(address, "an end", place).address = nullptr; }

void barrier_arrive(void* address, int bytes, Place place) {
    Mbarrier& barrier = find(address, "an arrival", place);
    if (!barrier.seen) {
        const std::string message = "phase " + std::to_string(barrier.phase - 1) + " of " + name_of(barrier) +
                                    " has completed, nothing has waited for it, and something arrives in the next";
        fail("mbarrier", message.c_str(), place);
    }
    if (bytes < 0 || bytes > COUNT_MAX) fail("mbarrier", "a phase expects from 0 to 2^20 - 1 bytes", place);
    add_bytes(barrier, bytes, place);
    order_arrival(&barrier - barriers.data());
    --barrier.pending;
    complete_if_done(barrier);
}

void complete_bytes(void* address, int bytes) {
    Mbarrier& barrier = find(address, "a copy's bytes arrive", {nullptr, 0});
    if (!barrier.fenced) {
        const std::string message = "a copy counts bytes at " + name_of(barrier) +
                                    ": a missing barrier_init_fence by the thread that initialised it";
        fail("mbarrier", message.c_str(), {nullptr, 0});
    }
    add_bytes(barrier, -bytes, {nullptr, 0});
    if (barrier.pending == 0 && barrier.bytes < 0)
        fail("mbarrier", "a copy brings more bytes than its phase expects", {nullptr, 0});
    complete_if_done(barrier);
}

namespace {

bool has_completed(const Mbarrier& barrier, int parity) { return (barrier.phase & 1) != static_cast<uint32_t>(parity); }

void see(Mbarrier& barrier) {
    barrier.seen = true;
    order_wait(&barrier - barriers.data(), barrier.phase);
}

}  // namespace

bool barrier_test(void* address, int parity, Place place) {
    Mbarrier& barrier = find(address, "a wait", place);
    if (parity != 0 && parity != 1) fail("mbarrier", "a parity is 0 or 1", place);
    if (has_completed(barrier, parity)) {
        see(barrier);
        return true;
    }
    yield_thread();  // or a loop of tests would not end
    return false;
}

void barrier_wait(void* address, int parity, Place place) {
    Mbarrier* barrier = &find(address, "a wait", place);
    if (parity != 0 && parity != 1) fail("mbarrier", "a parity is 0 or 1", place);
    if (has_completed(*barrier, parity)) return see(*barrier);
    Thread& me = *block.current;
    const uint32_t awaited = barrier->phase;
    me.argument = address;
    me.place = place;
    block.states[me.number] = State::AT_MBARRIER;
    yield_thread();
    barrier = &find(address, "a wait", place);
    if (barrier->phase > awaited + 1) {
        const std::string message = "a wait for phase " + std::to_string(awaited) + " of " + name_of(*barrier) + ", which is in phase " +
                                    std::to_string(barrier->phase) + ": only the phase before may be asked for";
        fail("mbarrier", message.c_str(), place);
    }
    see(*barrier);
}

void named_barrier_wait(int number, int threads, Place place) {
    if (number < 1 || number >= NAMED) fail("named barrier", "its number must be from 1 to 15", place);
    if (threads < 32 || threads % 32 || threads > block.thread_count)
        fail("named barrier", "it is for whole warps, and no more threads than the block has", place);
    NamedBarrier& barrier = named[number];
    if (!barrier.waiting.empty() && barrier.threads != threads)
        fail("named barrier", "those who wait at it count other numbers of threads", place);
    Thread& me = *block.current;
    barrier.threads = threads;
    barrier.place = place;
    barrier.waiting.push_back(me.number);
    if (static_cast<int>(barrier.waiting.size()) < threads) {
        me.place = place;
        block.states[me.number] = State::AT_NAMED_BARRIER;
        return yield_thread();
    }
    order_threads(barrier.waiting.data(), threads);
    for (const int each : barrier.waiting) block.states[each] = State::READY;
    barrier.waiting.clear();
}

void fence_async() {
    barrier_init_fence();  // it does for that, too
    order_proxies();
}

int cluster_rank() { return 0; }
void cluster_wait(Place place) { block_barrier(place); }
void barrier_arrive_cluster(void* barrier, int, Place place) { barrier_arrive(barrier, 0, place); }

namespace {

struct Registers {
    int count;
    bool takes;
    Place place;
    bool refused;
};

// Of a whole warp: the registers that it gives or takes of those that are free.
void change_registers(void* const* lanes, uint32_t) {
    Registers& wanted = *static_cast<Registers*>(lanes[0]);
    if (warp_registers.empty()) {
        warp_registers.assign(block.warps.size(), first_registers());
        free_registers = 0;
    }
    int& own = warp_registers[block.current->warp];
    if (wanted.takes ? wanted.count < own : wanted.count > own) {
        const std::string message = "the warp has " + std::to_string(own) + " registers a thread and cannot " +
                                    (wanted.takes ? "take more to have " : "give some to have ") +
                                    std::to_string(wanted.count);
        fail("setmaxnreg", message.c_str(), wanted.place);
    }
    const int more = wanted.count - own;
    for (int i = 0; i < 32; ++i) static_cast<Registers*>(lanes[i])->refused = more > free_registers;
    if (more > free_registers) return;
    free_registers -= more;
    own = wanted.count;
    if (more < 0) wake(State::FOR_REGISTERS, nullptr);
}

}  // namespace

void set_registers(int count, bool takes, Place place) {
    for (;;) {
        Registers own{count, takes, place, false};
        warp_operation(~0u, &own, change_registers, place);
        if (!own.refused) return;
        const Thread& me = *block.current;
        while (count - warp_registers[me.warp] > free_registers) {  // they may have become free since
            block.states[me.number] = State::FOR_REGISTERS;
            block.current->place = place;
            yield_thread();
        }
    }
}

}  // namespace simulator
