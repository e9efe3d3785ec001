// Mode "race": who accessed each byte last, and whether a barrier stands between. The compiler calls these functions
// before every access (-fsanitize=thread); its own library is not linked.
//
// Two accesses of which one writes conflict if they come from different threads of a block in one interval between
// barriers (from one warp: between two operations of the whole warp), or from different blocks of a launch.
// A cp.async owns its destination from its issue until its thread has waited for it.
#include <vector>

#include "access.hpp"
#include "thread_hooks.hpp"

namespace simulator {
namespace {

constexpr int MANY = -1;      // readers: more than one warp
constexpr uint32_t NONE = 0;  // block numbers count from 1

struct Accessor {
    uint32_t block = NONE, epoch = 0, warp_epoch = 0;
    int thread = 0;
};

struct Cell {
    Accessor writer, reader;
    uint32_t copying = NONE;  // the block with a cp.async to it under way
    uint32_t unit_block = NONE, unit_reads = 0;  // the block with operations under way that read it, and how many
};

// A byte of shared memory (argument −1) or of a buffer, for messages.
struct Where {
    long argument;
    size_t byte;
};

constexpr size_t GLOBAL_GRAIN = 2;  // bytes a cell in buffers: the smallest element that kernels write there
std::vector<Cell> shared_cells;
std::vector<std::vector<Cell>> buffer_cells;

Accessor current_accessor() {
    const Thread& thread = *block.current;
    return {block.number, block.epoch, block.warps[thread.warp].epoch, thread.number};
}

// Whether nothing orders `before` and `now`.
bool concurrent(const Accessor& before, const Accessor& now) {
    if (before.block == NONE) return false;
    if (before.block != now.block) return true;
    if (before.epoch != now.epoch || before.thread == now.thread) return false;
    if (before.thread == MANY) return true;
    return before.thread / 32 != now.thread / 32 || before.warp_epoch == now.warp_epoch;
}

std::string name_of(Where where) {
    const std::string byte = std::to_string(where.byte);
    return where.argument < 0 ? "shared byte " + byte : "argument " + std::to_string(where.argument) + " at byte " + byte;
}

[[noreturn]] void fail_race(const Accessor& before, const char* did, const char* does, Where where, const void* code) {
    const bool same_block = before.block == block.number;
    std::string message = before.thread == MANY ? "several threads" : thread_name(before.thread);
    message += std::string(same_block ? "" : " of another block") + did + name_of(where) + ", which " +
               thread_name(block.current->number) + does + (same_block ? " with no barrier between" : ": blocks have no order");
    fail_at("race", message, code);
}

void visit(Cell& cell, bool writes, Where where, const void* code) {
    const Accessor now = current_accessor();
    if (cell.copying == block.number)
        fail_at("race", "a cp.async to " + name_of(where) + " is under way: wait for it, then for the other threads", code);
    if (writes && cell.unit_block == block.number && cell.unit_reads)
        fail_at("race", "a write to " + name_of(where) + ", which a wgmma that is under way reads: wait for it", code);
    if (concurrent(cell.writer, now)) fail_race(cell.writer, " wrote ", writes ? " writes" : " reads", where, code);
    if (writes && concurrent(cell.reader, now)) fail_race(cell.reader, " read ", " writes", where, code);
    if (writes) {
        cell.writer = now;
        return;
    }
    const Accessor before = cell.reader;
    cell.reader = now;
    if (before.block == now.block && before.epoch == now.epoch && before.thread != now.thread &&
        (before.thread == MANY || before.thread / 32 != now.thread / 32))
        cell.reader.thread = MANY;
}

// Shared memory of an earlier block is not this one's.
Cell& shared_cell(size_t offset) {
    Cell& cell = shared_cells[offset];
    if (cell.writer.block != block.number) cell.writer = {};
    if (cell.reader.block != block.number) cell.reader = {};
    return cell;
}

void visit_shared(size_t offset, size_t bytes, bool writes, const void* code) {
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

}  // namespace

const size_t SHARED_GAP = 64;

void start_launch_checks() {
    shared_cells.assign(ARENA_BYTES, Cell{});
    buffer_cells.clear();
    for (int i = 0; i < block.launch->buffer_count; ++i)
        buffer_cells.emplace_back(block.launch->buffers[i].bytes / GLOBAL_GRAIN + 1);
}
void start_block_checks() {}
void barrier_checks() {}
void finish_block_checks() {}
void count_flops(int) {}
void count_copy(const std::vector<Span>&, bool, size_t, const void*) {}

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

void copy_issued(const AsyncCopy& copy) {
    on_access(copy.destination, copy.bytes, true, copy.code);
    if (copy.source_bytes) on_access(copy.source, copy.source_bytes, false, copy.code);
    for (int i = 0; i < copy.bytes; ++i) shared_cell(copy.destination - block.shared + i).copying = block.number;
}

void unit_read_issued(const char* address, size_t bytes, const void* code) {
    on_access(address, bytes, false, code);
    for (size_t i = 0; i < bytes; ++i) {
        Cell& cell = shared_cells[address - block.shared + i];
        cell.unit_reads = (cell.unit_block == block.number ? cell.unit_reads : 0) + 1;
        cell.unit_block = block.number;
    }
}

void unit_read_finished(const char* address, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) --shared_cells[address - block.shared + i].unit_reads;
}

void copy_completed(const AsyncCopy& copy) {
    for (int i = 0; i < copy.bytes; ++i) {
        Cell& cell = shared_cell(copy.destination - block.shared + i);
        cell.copying = NONE;
        cell.writer = current_accessor();
    }
}

}  // namespace simulator
