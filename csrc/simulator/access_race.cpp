// Mode "race": who accessed each byte last, and whether anything orders that access before this one. The compiler calls
// these functions before every access (-fsanitize=thread); its own library is not linked.
//
// Two accesses of which one writes conflict if they come from different blocks of a launch, or from different threads of a
// block and nothing orders them: no barrier of the block, no operation of their whole warp and, in blocks that use them,
// no mbarrier or named barrier (order.hpp).
//
// What the hardware does by itself is an access, too:
// - A cp.async owns its destination from its issue until its thread has waited for it.
// - A copy of a box writes shared memory as if its mbarrier did, in the phase that it completes: nobody may touch the
//   bytes who has not waited for that phase, and whoever touched them before must come before the copy's issue.
// - What a product or a store of a box reads may not be written until it was waited for.
// - What threads have written may be read by them only behind a fence of the writing thread (PTX ISA, "Proxies").
#include <algorithm>
#include <unordered_map>
#include <vector>

#include "access.hpp"
#include "order.hpp"
#include "thread_hooks.hpp"

namespace simulator {
namespace {

constexpr int MANY = -1;      // readers: more than one warp
constexpr uint32_t NONE = 0;  // block numbers count from 1
constexpr uint32_t UNDER_WAY = UINT32_MAX;  // a time that nobody knows of

struct Accessor {
    uint32_t block = NONE, epoch = 0, warp_epoch = 0;
    int thread = 0;         // of the block; after all threads: an mbarrier
    uint32_t time = 0;
    bool unit = false;      // a unit of the hardware accesses for the thread
};

struct Cell {
    Accessor writer, reader;
    uint32_t copying = NONE;  // the block with a cp.async to it under way
    uint32_t unit_block = NONE, unit_reads = 0;  // the block with operations under way that read it, and how many
};

// Lanes of a warp that have read a byte, and when each did last.
struct WarpReaders {
    int warp;
    bool unit;
    uint32_t lanes, times[32];
};
struct Readers {
    uint32_t epoch = 0;
    std::vector<WarpReaders> warps;
};

// A byte of shared memory (argument −1) or of a buffer, for messages.
struct Where {
    long argument;
    size_t byte;
};

constexpr size_t GLOBAL_GRAIN = 2;  // bytes a cell in buffers: the smallest element that kernels write there
std::vector<Cell> shared_cells;
std::vector<std::vector<Cell>> buffer_cells;
std::unordered_map<const Cell*, Readers> many_readers;  // of cells that more than one warp has read, while clocks count
std::vector<Accessor> initialisers;  // of mbarriers
Clocks clocks;
bool for_unit = false;  // whether the access under way is that of a unit

int rank_of(int slot) { return slot / block.thread_count; }

Accessor current_accessor() {
    const Thread& thread = *block.current;
    const Block& own = block_of(rank_of(thread.slot));
    return {block.number, own.epoch, own.warps[thread.warp].epoch, thread.slot, clocks.time(thread.slot), for_unit};
}

bool is_unit(const Accessor& accessor) { return accessor.thread >= block.thread_count * cluster_size(); }

// Whether nothing orders `before` and `now`, which a thread does.
bool concurrent(const Accessor& before, const Accessor& now) {
    if (before.block == NONE) return false;
    if (before.block != now.block) return true;
    if (is_unit(before)) return !clocks.knows(now.thread, before.thread, before.time);
    if (before.thread == MANY) return before.epoch == now.epoch;
    if (rank_of(before.thread) != rank_of(now.thread)) return !clocks.knows(now.thread, before.thread, before.time);
    if (before.epoch != now.epoch || before.thread == now.thread) return false;
    if (clocks.active && clocks.knows(now.thread, before.thread, before.time)) return false;
    return before.thread / 32 != now.thread / 32 || before.warp_epoch == now.warp_epoch;
}

std::string slot_name(int slot) {
    const std::string of_block = cluster_size() > 1 ? " of block " + std::to_string(rank_of(slot)) + " of the cluster" : "";
    return thread_name(slot % block.thread_count) + of_block;
}

std::string name_of(Where where) {
    const std::string byte = std::to_string(where.byte);
    return where.argument < 0 ? "shared byte " + byte : "argument " + std::to_string(where.argument) + " at byte " + byte;
}

std::string name_of(const Accessor& accessor) {
    if (accessor.thread == MANY) return "several threads";
    return accessor.block == block.number && is_unit(accessor) ? "a copy of a box" : slot_name(accessor.thread);
}

[[noreturn]] void fail_race(const Accessor& before, const char* did, const char* does, Where where, const void* code) {
    const bool same_block = before.block == block.number;
    std::string message = name_of(before) + (same_block ? "" : " of another block") + did + name_of(where) + ", which " +
                          slot_name(block.current->slot) + does;
    message += !same_block       ? ": blocks have no order"
               : is_unit(before) ? " without having waited for its barrier"
                                 : " with no barrier between";
    fail_at("race", message, code);
}

// Of readers of several warps: the thread whose read nothing orders before `now`, or −1.
int concurrent_reader(const Readers& readers, const Accessor& now) {
    if (readers.epoch != now.epoch && cluster_size() == 1) return -1;
    for (const WarpReaders& each : readers.warps)
        for (int lane = 0; lane < 32; ++lane) {
            const int thread = each.warp * 32 + lane;
            if (each.lanes >> lane & 1 && thread != now.thread && !clocks.knows(now.thread, thread, each.times[lane])) return thread;
        }
    return -1;
}

void check_readers(const Cell& cell, const Accessor& now, Where where, const void* code) {
    Accessor before = cell.reader;
    if (before.block == now.block && before.thread == MANY && clocks.active) {
        const auto found = many_readers.find(&cell);
        before.thread = found == many_readers.end() ? MANY : concurrent_reader(found->second, now);
        if (before.thread >= 0) fail_race(before, " read ", " writes", where, code);
        if (found != many_readers.end()) return;
    }
    if (concurrent(before, now)) fail_race(before, " read ", " writes", where, code);
}

void note(Readers& readers, const Accessor& reader) {
    if (readers.epoch != reader.epoch) readers = {reader.epoch, {}};
    const int warp = reader.thread / 32, lane = reader.thread % 32;
    auto found = std::find_if(readers.warps.begin(), readers.warps.end(), [&](const WarpReaders& each) {
        return each.warp == warp && each.unit == reader.unit;
    });
    if (found == readers.warps.end()) found = readers.warps.insert(found, {warp, reader.unit, 0, {}});
    found->lanes |= 1u << lane;
    found->times[lane] = reader.time;
}

void note_reader(Cell& cell, const Accessor& now) {
    const Accessor before = cell.reader;
    cell.reader = now;
    if (before.block != now.block || before.epoch != now.epoch) return;
    if (before.thread == now.thread && before.unit == now.unit) return;
    const bool several_warps = before.thread == MANY || before.thread / 32 != now.thread / 32;
    if (!clocks.active) {
        if (several_warps) cell.reader.thread = MANY;
        return;
    }
    if (!several_warps && before.unit == now.unit && clocks.knows(now.thread, before.thread, before.time)) return;
    Readers& readers = many_readers[&cell];
    if (before.thread != MANY) {
        readers = {};
        note(readers, before);
    }
    note(readers, now);
    cell.reader.thread = MANY;
}

void check_units(const Cell& cell, bool writes, Where where, const void* code) {
    if (cell.copying == block.number)
        fail_at("race", "a cp.async to " + name_of(where) + " is under way: wait for it, then for the other threads", code);
    if (writes && cell.unit_block == block.number && cell.unit_reads)
        fail_at("race", "a write to " + name_of(where) + ", which a product or store that is under way reads: wait for it", code);
}

void visit(Cell& cell, bool writes, Where where, const void* code) {
    const Accessor now = current_accessor();
    check_units(cell, writes, where, code);
    if (concurrent(cell.writer, now)) fail_race(cell.writer, " wrote ", writes ? " writes" : " reads", where, code);
    if (!writes) return note_reader(cell, now);
    check_readers(cell, now, where, code);
    cell.writer = now;
    cell.reader = {};
}

// Shared memory of an earlier block is not this one's.
Cell& shared_cell(size_t offset) {
    Cell& cell = shared_cells[block.rank * ARENA_BYTES + offset];
    if (cell.writer.block != block.number) cell.writer = {};
    if (cell.reader.block != block.number) cell.reader = {};
    return cell;
}

void visit_shared(size_t offset, size_t bytes, bool writes, const void* code) {
    if (is_barrier(block.shared + offset, bytes))
        fail_at("race", "shared byte " + std::to_string(offset) + " belongs to an mbarrier: no other access may touch it", code);
    for (size_t i = offset; i < offset + bytes; ++i) {
        Cell& cell = shared_cell(i);
        if (!writes && cell.writer.block == NONE && cell.copying != block.number)
            fail_at("uninitialised", "a read of shared byte " + std::to_string(i) + ", which nothing wrote", code);
        visit(cell, writes, {-1, i}, code);
    }
}

void visit_buffer(const Buffer& buffer, size_t offset, size_t bytes, bool writes, const void* code) {
    const long position = &buffer - block.launch->buffers;
    std::vector<Cell>& cells = buffer_cells[position];
    for (size_t i = offset / GLOBAL_GRAIN; i <= (offset + bytes - 1) / GLOBAL_GRAIN; ++i)
        visit(cells[i], writes, {position, i * GLOBAL_GRAIN}, code);
}

// What a thread does to shared memory itself, a unit comes after only behind a fence of the thread (PTX ISA, "Proxies").
void require_fence(const Accessor& before, const char* did, size_t offset, const char* does, const void* code) {
    if (before.block != block.number || before.thread == MANY || before.unit || is_unit(before)) return;
    if (clocks.knows_fence(block.current->slot, before.thread, before.time)) return;
    fail_at("race", "a missing fence.proxy.async: " + slot_name(before.thread) + did + "shared byte " + std::to_string(offset) +
                        ", which " + does + ", and has made no fence_async_shared since with a barrier behind it", code);
}

void require_fences_of_readers(const Cell& cell, const Cell* key, size_t offset, const void* code) {
    constexpr const char* does = "a copy of a box overwrites";
    require_fence(cell.reader, " read ", offset, does, code);
    const auto found = many_readers.find(key);
    if (cell.reader.block != block.number || cell.reader.thread != MANY || found == many_readers.end()) return;
    for (const WarpReaders& each : found->second.warps)
        for (int lane = 0; lane < 32; ++lane) {
            if (!(each.lanes >> lane & 1)) continue;
            const Accessor reader{block.number, 0, 0, each.warp * 32 + lane, each.times[lane], each.unit};
            require_fence(reader, " read ", offset, does, code);
        }
}

}  // namespace

const size_t SHARED_GAP = 64;

void start_launch_checks() {
    shared_cells.assign(ARENA_BYTES * cluster_size(), Cell{});
    buffer_cells.clear();
    many_readers.clear();
    for (int i = 0; i < block.launch->buffer_count; ++i)
        buffer_cells.emplace_back(block.launch->buffers[i].bytes / GLOBAL_GRAIN + 1);
}
void start_block_checks() {
    clocks.start(block.thread_count * cluster_size(), cluster_size());
    initialisers.assign(BARRIERS_MAX * cluster_size(), {});
    for_unit = false;  // an error may have ended the launch before
}
void barrier_checks() {
    if (!clocks.active) return;
    std::vector<int> slots;
    for (int i = 0; i < block.thread_count; ++i) slots.push_back(block.threads[i].slot);
    clocks.meet(slots.data(), slots.size());
}
void finish_block_checks() {}
void count_flops(int) {}

namespace {

int column(int barrier) { return block.rank * BARRIERS_MAX + barrier; }

}  // namespace

void order_initialisation(int barrier) { initialisers[column(barrier)] = current_accessor(); }
void order_use(int barrier, const void* code) {
    const Accessor& before = initialisers[column(barrier)];
    if (!concurrent(before, current_accessor())) return;
    const std::string message = slot_name(before.thread) + " initialised a barrier, which " + slot_name(block.current->slot) +
                                " uses with no barrier of the block between";
    fail_at("race", message, code);
}
void order_arrival(int barrier) { clocks.arrive(block.current->slot, column(barrier)); }
void order_completion(int barrier) { clocks.complete(column(barrier), barrier_phase(barrier) + 1); }
void order_wait(int barrier, uint32_t) { clocks.wait(block.current->slot, column(barrier)); }
void order_threads(const int* slots, int count) { clocks.meet(slots, count); }
void order_warp(int warp, uint32_t mask) {
    if (clocks.active) clocks.meet_warp(block.threads[0].slot / 32 + warp, mask, block.warps[warp].alive);
}
void order_proxies() { clocks.fence(block.current->slot); }

void on_access(const char* address, size_t bytes, bool writes, const void* code) {
    if (!block.current || !bytes) return;
    const Target target = find_target(address, bytes, writes);
    if (target.space == Space::OWN) return;
    check_bounds(target, address, bytes, writes, code);
    if (target.space == Space::SHARED)
        visit_shared(target.offset, bytes, writes, code);
    else
        visit_buffer(*target.buffer, target.offset, bytes, writes, code);
}

void visit_global(const std::vector<Span>& parts, bool writes, size_t, const void* code) {
    for (const Span& part : parts) on_access(part.begin, part.bytes, writes, code);
}

void copy_issued(const AsyncCopy& copy) {
    on_access(copy.destination, copy.bytes, true, copy.code);
    if (copy.source_bytes) on_access(copy.source, copy.source_bytes, false, copy.code);
    for (int i = 0; i < copy.bytes; ++i) shared_cell(copy.destination - block.shared + i).copying = block.number;
}

void copy_completed(const AsyncCopy& copy) {
    for (int i = 0; i < copy.bytes; ++i) {
        Cell& cell = shared_cell(copy.destination - block.shared + i);
        cell.copying = NONE;
        cell.writer = current_accessor();
    }
}

void unit_write_issued(const char* address, size_t bytes, const void* barrier, const void* code) {
    const size_t first = address - block.shared;
    static std::vector<Cell> before;
    before.clear();
    for (size_t i = 0; i < bytes; ++i) before.push_back(shared_cell(first + i));
    for_unit = true;
    on_access(address, bytes, true, code);
    for_unit = false;
    for (size_t i = 0; i < bytes; ++i) {
        require_fence(before[i].writer, " wrote ", first + i, "a copy of a box overwrites", code);
        require_fences_of_readers(before[i], &shared_cells[block.rank * ARENA_BYTES + first + i], first + i, code);
    }
    const int index = barrier_index(barrier);
    if (index < 0) return;  // fails when the bytes arrive
    const Accessor unit{block.number, block.epoch, 0, clocks.barrier_thread(column(index)), UNDER_WAY, true};
    for (size_t i = 0; i < bytes; ++i) shared_cell(first + i).writer = unit;
}

// In the phase that is under way by then, which may be a later one than at the issue.
void unit_write_completed(const char* address, size_t bytes, const void* barrier) {
    const int index = barrier_index(barrier);
    if (index < 0) return;
    for (size_t i = 0; i < bytes; ++i) shared_cell(address - block.shared + i).writer.time = barrier_phase(index) + 1;
}

void unit_read_issued(const char* address, size_t bytes, const void* code) {
    for_unit = true;
    on_access(address, bytes, false, code);
    for_unit = false;
    for (size_t i = 0; i < bytes; ++i) {
        const size_t offset = address - block.shared + i;
        Cell& cell = shared_cells[block.rank * ARENA_BYTES + offset];
        require_fence(cell.writer, " wrote ", offset, "a product or a store of a box reads", code);
        cell.unit_reads = (cell.unit_block == block.number ? cell.unit_reads : 0) + 1;
        cell.unit_block = block.number;
    }
}

// What comes after must be ordered after the wait, not only after the issue.
void unit_read_finished(const char* address, size_t bytes, const void*) {
    for_unit = true;
    for (size_t i = 0; i < bytes; ++i) {
        Cell& cell = shared_cell(address - block.shared + i);
        --cell.unit_reads;
        note_reader(cell, current_accessor());
    }
    for_unit = false;
}

}  // namespace simulator
