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
    const void* code = nullptr;
};

std::vector<Mbarrier> barriers;
NamedBarrier named[NAMED];
std::vector<int> warp_registers;  // of each thread of a warp
int free_registers;
int cluster_waiting;  // threads at the cluster's barrier

struct Parked {
    std::vector<Mbarrier> barriers;
    NamedBarrier named[NAMED];
    std::vector<int> warp_registers;
    int free_registers;
};
Parked parked[CLUSTER_MAX];  // of the blocks of the cluster that do not run now

const void* code;  // where the kernel called what runs now

[[noreturn]] void refuse(const char* kind, const std::string& message) { fail_at(kind, message, code); }

Mbarrier& find(const void* address, const char* operation) {
    const int index = barrier_index(address);
    if (index < 0) {
        const std::string message = std::string(operation) + " on a barrier that nothing has initialised";
        refuse("mbarrier", message);
    }
    return barriers[index];
}

Mbarrier& find_for_thread(const void* address, const char* operation) {
    Mbarrier& barrier = find(address, operation);
    order_use(&barrier - barriers.data(), code);
    return barrier;
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

void add_bytes(Mbarrier& barrier, int bytes) {
    barrier.bytes += bytes;
    if (barrier.bytes > COUNT_MAX || barrier.bytes < -COUNT_MAX) {
        const std::string message = name_of(barrier) + " owes " + std::to_string(barrier.bytes) + " bytes; at most 2^20 - 1 fit";
        refuse("mbarrier", message);
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
    cluster_waiting = 0;
}

namespace {

void exchange(Parked& other) {
    barriers.swap(other.barriers);
    std::swap(named, other.named);
    warp_registers.swap(other.warp_registers);
    std::swap(free_registers, other.free_registers);
}

void open_cluster_barrier() {
    std::vector<int> slots;
    for (int rank = 0; rank < cluster_size(); ++rank) {
        Block& own = block_of(rank);
        for (int i = 0; i < own.thread_count; ++i) {
            if (own.states[i] != State::DONE) slots.push_back(own.threads[i].slot);
            if (own.states[i] == State::AT_CLUSTER_BARRIER) own.states[i] = State::READY;
        }
    }
    order_threads(slots.data(), slots.size());
    cluster_waiting = 0;
}

int alive_in_cluster() {
    int alive = 0;
    for (int rank = 0; rank < cluster_size(); ++rank) alive += block_of(rank).alive;
    return alive;
}

}  // namespace

void switch_barriers(int from, int to) {
    exchange(parked[from]);
    exchange(parked[to]);
}

void end_barrier_thread() {
    if (cluster_waiting && cluster_waiting == alive_in_cluster()) open_cluster_barrier();  // threads that ended do not count
    for (const Mbarrier& each : barriers) {
        if (block.alive || !each.address || !each.bytes) continue;
        const std::string message = "the block ends, and " + name_of(each) + " waits for " + std::to_string(each.bytes) + " bytes";
        refuse("mbarrier", message);
    }
    for (const NamedBarrier& each : named)
        if (!each.waiting.empty() && static_cast<int>(each.waiting.size()) + block.alive < each.threads)
            fail_at("named barrier", "too few threads are left for it", each.code);
}

std::string describe_wait(int number) {
    const Thread& thread = block.threads[number];
    if (block.states[number] == State::FOR_REGISTERS) return "for registers that others give back";
    if (block.states[number] == State::AT_NAMED_BARRIER) return "at a named barrier";
    if (block.states[number] == State::AT_CLUSTER_BARRIER) return "for the other blocks of the cluster";
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

void barrier_init(void* address, int arrivals, Place) {
    code = __builtin_return_address(0);
    const char* const own = static_cast<const char*>(address);
    if (own < block.shared || own >= block.shared + ARENA_BYTES || (own - block.shared) % sizeof(uint64_t))
        refuse("mbarrier", "a barrier must be in shared memory, at a multiple of 8");
    if (barrier_index(own) >= 0) refuse("mbarrier", "the barrier was initialised before");
    if (arrivals < 1 || arrivals > COUNT_MAX) refuse("mbarrier", "a phase needs from 1 to 2^20 - 1 arrivals");
    if (barriers.size() == BARRIERS_MAX) refuse("mbarrier", "the simulator has room for 256 barriers a block");
    barriers.push_back({own, arrivals, arrivals, 0, 0, true, block.current->slot, false});
    order_initialisation(barriers.size() - 1);
}

void barrier_init_fence() {
    for (Mbarrier& each : barriers) each.fenced |= each.initialiser == block.current->slot;
}

void barrier_invalidate(void* address, Place) {
    code = __builtin_return_address(0);
    find_for_thread(address, "an end").address = nullptr;
}

namespace {

void arrive(void* address, int bytes) {
    Mbarrier& barrier = find_for_thread(address, "an arrival");
    if (!barrier.seen) {
        const std::string message = "phase " + std::to_string(barrier.phase - 1) + " of " + name_of(barrier) +
                                    " has completed, nothing has waited for it, and something arrives in the next";
        refuse("mbarrier", message);
    }
    if (bytes < 0 || bytes > COUNT_MAX) refuse("mbarrier", "a phase expects from 0 to 2^20 - 1 bytes");
    add_bytes(barrier, bytes);
    order_arrival(&barrier - barriers.data());
    --barrier.pending;
    complete_if_done(barrier);
}

}  // namespace

void barrier_arrive(void* address, int bytes, Place) {
    code = __builtin_return_address(0);
    arrive(address, bytes);
}

void complete_bytes(void* address, int bytes) {
    code = nullptr;
    Mbarrier& barrier = find(address, "a copy's bytes arrive");
    if (!barrier.fenced) {
        const std::string message = "a copy counts bytes at " + name_of(barrier) +
                                    ": a missing barrier_init_fence by the thread that initialised it";
        refuse("mbarrier", message);
    }
    add_bytes(barrier, -bytes);
    if (barrier.pending == 0 && barrier.bytes < 0)
        refuse("mbarrier", "a copy brings more bytes than its phase expects");
    complete_if_done(barrier);
}

namespace {

bool has_completed(const Mbarrier& barrier, int parity) { return (barrier.phase & 1) != static_cast<uint32_t>(parity); }

void see(Mbarrier& barrier) {
    barrier.seen = true;
    order_wait(&barrier - barriers.data(), barrier.phase);
}

}  // namespace

bool barrier_test(void* address, int parity, Place) {
    code = __builtin_return_address(0);
    Mbarrier& barrier = find_for_thread(address, "a wait");
    if (parity != 0 && parity != 1) refuse("mbarrier", "a parity is 0 or 1");
    if (has_completed(barrier, parity)) {
        see(barrier);
        return true;
    }
    yield_thread();  // or a loop of tests would not end
    return false;
}

void barrier_wait(void* address, int parity, Place) {
    code = __builtin_return_address(0);
    Mbarrier* barrier = &find_for_thread(address, "a wait");
    if (parity != 0 && parity != 1) refuse("mbarrier", "a parity is 0 or 1");
    if (has_completed(*barrier, parity)) return see(*barrier);
    Thread& me = *block.current;
    const uint32_t awaited = barrier->phase;
    me.argument = address;
    me.code = code;
    block.states[me.number] = State::AT_MBARRIER;
    yield_thread();
    code = me.code;
    barrier = &find_for_thread(address, "a wait");
    if (barrier->phase > awaited + 1) {
        const std::string message = "a wait for phase " + std::to_string(awaited) + " of " + name_of(*barrier) + ", which is in phase " +
                                    std::to_string(barrier->phase) + ": only the phase before may be asked for";
        refuse("mbarrier", message);
    }
    see(*barrier);
}

void named_barrier_wait(int number, int threads, Place) {
    code = __builtin_return_address(0);
    if (number < 1 || number >= NAMED) refuse("named barrier", "its number must be from 1 to 15");
    if (threads < 32 || threads % 32 || threads > block.thread_count)
        refuse("named barrier", "it is for whole warps, and no more threads than the block has");
    NamedBarrier& barrier = named[number];
    if (!barrier.waiting.empty() && barrier.threads != threads)
        refuse("named barrier", "those who wait at it count other numbers of threads");
    Thread& me = *block.current;
    barrier.threads = threads;
    barrier.code = code;
    barrier.waiting.push_back(me.number);
    if (static_cast<int>(barrier.waiting.size()) < threads) {
        me.code = code;
        block.states[me.number] = State::AT_NAMED_BARRIER;
        return yield_thread();
    }
    std::vector<int> slots;
    for (const int each : barrier.waiting) {
        slots.push_back(block.threads[each].slot);
        block.states[each] = State::READY;
    }
    order_threads(slots.data(), threads);
    barrier.waiting.clear();
}

void fence_async() {
    barrier_init_fence();  // it does for that, too
    order_proxies();
}

int cluster_rank() { return block.rank; }

void cluster_wait(Place) {
    code = __builtin_return_address(0);
    if (++cluster_waiting == alive_in_cluster()) return open_cluster_barrier();
    Thread& me = *block.current;
    me.code = code;
    block.states[me.number] = State::AT_CLUSTER_BARRIER;
    yield_thread();
}

void barrier_arrive_cluster(void* barrier, int rank, Place) {
    code = __builtin_return_address(0);
    require_block(rank, code);
    void* const remote = cluster_address(barrier, rank);
    in_block(rank, [&] {
        if (!find(remote, "an arrival from another block").fenced)
            refuse("mbarrier", "an arrival from another block: a missing barrier_init_fence by the thread that initialised it");
        arrive(remote, 0);
    });
}

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
    const void* const wanted = __builtin_return_address(0);
    for (;;) {
        Registers own{count, takes, place, false};
        warp_operation(~0u, &own, change_registers, place);
        if (!own.refused) return;
        const Thread& me = *block.current;
        while (count - warp_registers[me.warp] > free_registers) {  // they may have become free since
            block.states[me.number] = State::FOR_REGISTERS;
            block.current->code = wanted;
            yield_thread();
        }
    }
}

}  // namespace simulator
