// wgmma: matrix products of a warpgroup that run on their own, between their issue and the wait for their group.
//
// The four warps of a warpgroup issue an operation each for itself, and it multiplies the warp's 16 rows of a by all of
// b; that all issue the same is checked. With late_copies an operation runs when its warp waits for it, on what shared
// memory then holds, and its accumulator is NaN until then; else it runs at once. In both, registers that change between
// issue and wait are found at the wait, and shared memory that is read is announced to the checks of accesses until then.
#include <algorithm>
#include <memory>  // before the simulator's macros

#include "tensor_core.hpp"

namespace simulator {
namespace {

constexpr const char* KIND = "wgmma";
constexpr uint64_t SHARED_BASE = 0x400;
constexpr uint32_t IN_FLIGHT = 0x7FDEAD00;  // a NaN
constexpr int CHUNK = 16;                   // bytes that a swizzle keeps together
constexpr int ROWS = PRODUCT_ROWS;          // of a warp

struct Issue {
    WarpgroupProduct product;
    const void* code;
};

// The registers of a warp that add up a product. `values` is what they hold, or will hold after the wait.
struct Accumulator {
    float* lanes[32];
    int columns;
    int under_way;   // operations
    uint32_t fences;  // of the warp when it was last waited for
    float values[ROWS * PRODUCT_COLUMNS];
};

struct Registers {
    const uint32_t* lanes[32];
    uint32_t values[32][4];
    uint32_t fences;  // of the warp at the issue
};

struct Pending {
    WarpgroupProduct product;
    const void* code;
    Accumulator* accumulator;
    std::unique_ptr<Registers> a;
    uint32_t group;
    std::vector<uint32_t> chunks;  // offsets in shared memory that it reads
};

struct WarpProducts {
    std::vector<Pending> under_way;
    std::vector<std::unique_ptr<Accumulator>> accumulators;
    std::vector<Registers> a;  // that earlier operations had, by their place
    uint32_t issued, groups, fences;
};

std::vector<WarpProducts> warps;
std::vector<std::vector<WarpgroupProduct>> warpgroups;  // what the first warp to issue the n-th operation gave
bool used = false;                                      // by the running block

WarpProducts& my_warp() {
    if (!used) {
        warps.clear(), warpgroups.clear();
        warps.resize(block.warps.size()), warpgroups.resize((block.warps.size() + 3) / 4);
        used = true;
    }
    return warps[block.current->warp];
}

// What one operand is: where element (row, term) lies, in chunks of 16 bytes.
struct Layout {
    uint32_t start, leading, stride;
    int width;     // of a row of the swizzle; 16 without one
    int swizzle;   // how many bits of the row's number are added to the chunk's
    bool mn_major;

    // Of the chunk with 16 bytes of a row's terms, or of a term's rows: `major` counts the other direction.
    uint32_t offset(int minor_chunk, int major) const {
        const int per_row = width / CHUNK;
        uint32_t address = start + major % 8 * width;
        if (!mn_major)
            address += major / 8 * stride + minor_chunk * (swizzle ? CHUNK : leading);
        else if (swizzle)
            address += major / 8 * stride + minor_chunk / per_row * leading + minor_chunk % per_row * CHUNK;
        else
            address += major / 8 * leading + minor_chunk * stride;
        return address ^ (address >> 7 & ((1u << swizzle) - 1)) << 4;
    }
};

[[noreturn]] void refuse(const std::string& message, const void* code) { fail_at(KIND, message, code); }

// PTX ISA, "Matrix descriptor": the start, two distances, an offset and the swizzle.
Layout decode(uint64_t descriptor, bool mn_major, const char* operand, const void* code) {
    constexpr uint64_t FIELDS = 0xC00E3FFF3FFF3FFF;
    const std::string name = std::string("the descriptor of ") + operand;
    if (descriptor & ~FIELDS) refuse(name + " sets bits that have no meaning", code);
    if (descriptor >> 49 & 7) refuse(name + " has a base offset; tiles start at a multiple of their pattern instead", code);
    const auto field = [&](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3FFF) << 4; };
    const int mode = descriptor >> 62, swizzle = mode ? 4 - mode : 0;  // 1, 2, 3: 128, 64, 32 bytes
    const Layout layout{field(0), field(16), field(32), CHUNK << swizzle, swizzle, mn_major};
    if (layout.start % (8 * layout.width) >= static_cast<uint32_t>(layout.width) && swizzle)
        refuse(name + " starts " + std::to_string(layout.start % (8 * layout.width)) + " bytes after a multiple of " +
                   std::to_string(8 * layout.width) + ": not in the first row of its swizzle's pattern",
               code);
    return layout;
}

// Reads `rows` × terms of an operand into out, by the bits of float32, with these distances between rows and terms.
class Reader {
public:
    Reader(const Pending& operation) : format(operation.product.format) {}

    void read(const Layout& layout, int first_row, int rows, uint32_t* out, int row_step, int term_step) const {
        const int elements = format == Format::TF32 ? 4 : 8, terms = 2 * elements;
        const int chunks = layout.mn_major ? rows / 8 : 2, majors = layout.mn_major ? terms : rows;
        const int first_chunk = layout.mn_major ? first_row / 8 : 0, first_major = layout.mn_major ? 0 : first_row;
        const int minor_step = layout.mn_major ? row_step : term_step, major_step = layout.mn_major ? term_step : row_step;
        for (int major = 0; major < majors; ++major)
            for (int chunk = 0; chunk < chunks; ++chunk)
                widen(layout.offset(first_chunk + chunk, first_major + major),
                      out + major * major_step + chunk * elements * minor_step, minor_step);
    }

private:
    void widen(uint32_t address, uint32_t* out, int step) const {
        const char* const memory = block.shared + (address - SHARED_BASE);
        if (format == Format::TF32) {
            uint32_t words[4];
            memcpy(words, memory, CHUNK);
            for (int i = 0; i < 4; ++i) out[i * step] = words[i] & 0xFFFFE000u;  // the lowest 13 bits are not looked at
            return;
        }
        uint16_t halves[8];
        memcpy(halves, memory, CHUNK);
        for (int i = 0; i < 8; ++i) out[i * step] = format == Format::F16 ? table[halves[i]] : uint32_t{halves[i]} << 16;
    }

    Format format;
    const uint32_t* table = half_table();
};

// PTX ISA, the accumulator of wgmma: where register i of a lane stands among its warp's rows.
inline int position(int lane, int i, int columns) {
    return (lane / 4 + 8 * (i / 2 % 2)) * columns + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
}

// Visits pairs of neighbours, as (register, two values).
template <class Visit>
void visit_registers(Accumulator& accumulator, Visit visit) {
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < accumulator.columns / 2; i += 2)
            visit(accumulator.lanes[lane] + i, accumulator.values + position(lane, i, accumulator.columns));
}

void write_registers(Accumulator& accumulator) {
    visit_registers(accumulator, [](float* registers, const float* values) { memcpy(registers, values, 8); });
}

void poison_registers(Accumulator& accumulator) {
    constexpr uint32_t both[2] = {IN_FLIGHT, IN_FLIGHT};
    visit_registers(accumulator, [&](float* registers, const float*) { memcpy(registers, both, 8); });
}

// Whether somebody has changed them since they were written, or poisoned.
bool are_changed(Accumulator& accumulator, bool poisoned) {
    constexpr uint32_t both[2] = {IN_FLIGHT, IN_FLIGHT};
    bool changed = false;
    visit_registers(accumulator, [&](const float* registers, const float* values) {
        changed |= memcmp(registers, poisoned ? static_cast<const void*>(both) : values, 8) != 0;
    });
    return changed;
}

void read_registers(Accumulator& accumulator) {
    visit_registers(accumulator, [](const float* registers, float* values) { memcpy(values, registers, 8); });
}

bool overlap(const Accumulator& accumulator, const WarpgroupProduct& product) {
    return product.d < accumulator.lanes[0] + accumulator.columns / 2 &&
           accumulator.lanes[0] < product.d + product.columns / 2;
}

// The record of the registers that an operation adds to; takes over their values if it is the first to use them.
Accumulator& find_accumulator(WarpProducts& warp, void* const* lanes, const Issue& first) {
    const WarpgroupProduct& product = first.product;
    auto& all = warp.accumulators;
    Accumulator* found = nullptr;
    for (auto& each : all) {
        const bool same = each->lanes[0] == product.d && each->columns == product.columns;
        if (same) found = each.get();
        if (!same && each->under_way && overlap(*each, product))
            refuse("an operation of another shape on the same registers is under way", first.code);
    }
    if (found && found->under_way) return *found;
    if (found && product.accumulate && found->fences == warp.fences && are_changed(*found, false))
        refuse("the accumulator was changed after its wait, and no wgmma_fence stands between", first.code);
    if (!found) {
        const auto settled = [](const auto& each) { return !each->under_way; };
        all.erase(std::remove_if(all.begin(), all.end(), settled), all.end());
        found = all.emplace_back(new Accumulator{}).get();
    }
    found->columns = product.columns;
    for (int lane = 0; lane < 32; ++lane) found->lanes[lane] = static_cast<const Issue*>(lanes[lane])->product.d;
    if (product.accumulate) read_registers(*found);
    return *found;
}

std::unique_ptr<Registers> take_a(WarpProducts& warp, void* const* lanes, const Issue& first) {
    if (!first.product.a_registers) return nullptr;
    auto own = std::make_unique<Registers>();
    own->fences = warp.fences;
    for (int lane = 0; lane < 32; ++lane) {
        own->lanes[lane] = static_cast<const Issue*>(lanes[lane])->product.a_registers;
        memcpy(own->values[lane], own->lanes[lane], sizeof own->values[lane]);
    }
    const auto same_place = [&](const Registers& other) { return other.lanes[0] == own->lanes[0]; };
    const auto before = std::find_if(warp.a.begin(), warp.a.end(), same_place);
    if (before == warp.a.end()) {
        warp.a.push_back(*own);
    } else {
        if (before->fences == own->fences && memcmp(before->values, own->values, sizeof own->values))
            refuse("the registers of a were changed after the last wgmma_fence", first.code);
        *before = *own;
    }
    return own;
}

bool same(const WarpgroupProduct& one, const WarpgroupProduct& other) {
    return one.format == other.format && one.columns == other.columns && one.a_mn_major == other.a_mn_major &&
           one.b_mn_major == other.b_mn_major && one.accumulate == other.accumulate && one.a == other.a &&
           one.b == other.b && !one.a_registers == !other.a_registers;
}

// All lanes of a warp, and all warps of a warpgroup, must issue the same.
void check_agreement(WarpProducts& warp, void* const* lanes, const Issue& first) {
    for (int lane = 1; lane < 32; ++lane)
        if (!same(first.product, static_cast<const Issue*>(lanes[lane])->product))
            refuse("the lanes of a warp give different descriptors or shapes", first.code);
    const int group = block.current->warp / 4;
    if (128 * (group + 1) > block.thread_count)
        refuse("a warpgroup is four warps, the first with a number divisible by four; the block has no four here", first.code);
    auto& issued = warpgroups[group];
    if (warp.issued == issued.size()) {
        for (int i = 4 * group; i < 4 * group + 4; ++i)
            if (!block.warps[i].alive) refuse("a warp of the warpgroup has ended", first.code);
        issued.push_back(first.product);
    } else if (!same(first.product, issued[warp.issued])) {
        refuse("the warps of a warpgroup give different descriptors or shapes", first.code);
    }
    ++warp.issued;
}

// The places in shared memory that an operation of this warp reads.
void list_chunks(Pending& operation, const Layout& layout, int first_row, int rows, const char* operand) {
    const int terms = operation.product.format == Format::TF32 ? 8 : 16;
    const int chunks = layout.mn_major ? rows / 8 : 2, majors = layout.mn_major ? terms : rows;
    for (int major = 0; major < majors; ++major)
        for (int chunk = 0; chunk < chunks; ++chunk) {
            const int from = layout.mn_major ? first_row / 8 : 0, first_major = layout.mn_major ? 0 : first_row;
            const uint32_t address = layout.offset(from + chunk, first_major + major);
            const uint64_t offset = address - SHARED_BASE;
            if (address < SHARED_BASE || offset + CHUNK > block.arena_used)
                refuse(std::string("the descriptor of ") + operand + " reaches shared address " + std::to_string(address) +
                           ", outside the block's memory",
                       operation.code);
            unit_read_issued(block.shared + offset, CHUNK, operation.code);
            operation.chunks.push_back(static_cast<uint32_t>(offset));
        }
}

int first_row_of_warp() { return block.current->warp % 4 * ROWS; }

void check_memory(Pending& operation) {
    const WarpgroupProduct& product = operation.product;
    operation.chunks.reserve(64 + 2 * product.columns);
    if (!product.a_registers)
        list_chunks(operation, decode(product.a, product.a_mn_major, "a", operation.code), first_row_of_warp(), ROWS, "a");
    list_chunks(operation, decode(product.b, product.b_mn_major, "b", operation.code), 0, product.columns, "b");
}

// Where a lane's registers of a stand (PTX ISA, the fragments of wgmma, as those of mma.sync).
void widen_registers(const Registers& registers, Format format, uint32_t* a) {
    const uint32_t* const halves = half_table();
    const auto widen = [&](uint32_t half) { return format == Format::F16 ? halves[half] : half << 16; };
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + 8 * (i % 2), member = lane % 4;
            const uint32_t bits = registers.values[lane][i];
            if (format == Format::TF32) {
                a[row * 8 + member + 4 * (i / 2)] = bits & 0xFFFFE000u;
            } else {
                uint32_t* const pair = a + row * 16 + 2 * member + 8 * (i / 2);
                pair[0] = widen(bits & 0xFFFF), pair[1] = widen(bits >> 16);
            }
        }
}

void run(Pending& operation) {
    static uint32_t a[ROWS * PRODUCT_TERMS], b[PRODUCT_TERMS * PRODUCT_COLUMNS];
    const WarpgroupProduct& product = operation.product;
    const int terms = product.format == Format::TF32 ? 8 : 16;
    const Reader reader(operation);
    if (operation.a)
        widen_registers(*operation.a, product.format, a);
    else
        reader.read(decode(product.a, product.a_mn_major, "a", operation.code), first_row_of_warp(), ROWS, a, terms, 1);
    reader.read(decode(product.b, product.b_mn_major, "b", operation.code), 0, product.columns, b, 1, product.columns);
    float* const c = operation.accumulator->values;
    if (!product.accumulate) std::fill_n(c, ROWS * product.columns, 0.0f);
    add_matrix_product({product.format, ROWS, product.columns, terms, a, b, c});
}

void issue_lanes(void* const* lanes, uint32_t) {
    const Issue& first = *static_cast<const Issue*>(lanes[0]);
    WarpProducts& warp = my_warp();
    check_agreement(warp, lanes, first);
    if (!warp.fences) refuse("no wgmma_fence stands before the first wgmma", first.code);
    Pending operation{first.product, first.code, nullptr, take_a(warp, lanes, first), warp.groups, {}};
    check_memory(operation);
    operation.accumulator = &find_accumulator(warp, lanes, first);
    const bool late = block.launch->late_copies;
    if (!late) {
        run(operation);
        write_registers(*operation.accumulator);
    } else if (!operation.accumulator->under_way) {
        poison_registers(*operation.accumulator);
    }
    ++operation.accumulator->under_way;
    warp.under_way.push_back(std::move(operation));
}

void finish(WarpProducts& warp, Pending& operation) {
    const bool late = block.launch->late_copies;
    if (operation.a)
        for (int lane = 0; lane < 32; ++lane)
            if (memcmp(operation.a->lanes[lane], operation.a->values[lane], sizeof operation.a->values[lane]))
                refuse("the registers of a were changed before the wait", operation.code);
    if (late) run(operation);
    for (const uint32_t offset : operation.chunks) unit_read_finished(block.shared + offset, CHUNK, operation.code);
    Accumulator& accumulator = *operation.accumulator;
    if (--accumulator.under_way) return;
    if (are_changed(accumulator, late)) refuse("the accumulator was written before the wait", operation.code);
    if (late) write_registers(accumulator);
    accumulator.fences = warp.fences;
}

void commit_lanes(void* const*, uint32_t) { ++my_warp().groups; }

void fence_lanes(void* const*, uint32_t) { ++my_warp().fences; }

struct Wait {
    int groups;
    const void* code;
};

void wait_lanes(void* const* lanes, uint32_t) {
    const Wait& wait = *static_cast<const Wait*>(lanes[0]);
    WarpProducts& warp = my_warp();
    auto& all = warp.under_way;
    if (!all.empty() && all.back().group == warp.groups)
        refuse("a wait, and no wgmma_commit after the last wgmma", wait.code);
    const auto rest = std::find_if(all.begin(), all.end(), [&](const Pending& operation) {
        return static_cast<int>(warp.groups - operation.group) <= wait.groups;
    });
    for (auto each = all.begin(); each != rest; ++each) finish(warp, *each);
    all.erase(all.begin(), rest);
}

}  // namespace

uint64_t shared_address(const void* address) {
    const char* const byte = static_cast<const char*>(address);
    if (byte < block.shared || byte > block.shared + ARENA_BYTES)
        fail_at(KIND, "an address is not in shared memory", __builtin_return_address(0));
    return byte - block.shared + SHARED_BASE;
}

void multiply_warpgroup(const WarpgroupProduct& product, Place place) {
    const void* const code = __builtin_return_address(0);
    if (block.launch->architecture != 90) refuse("the instruction exists on sm_90 only", code);
    count_flops(2 * ROWS * product.columns * (product.format == Format::TF32 ? 8 : 16) / 32);
    Issue own{product, code};
    warp_operation(~0u, &own, issue_lanes, place);
}

void warpgroup_fence(Place place) { warp_operation(~0u, nullptr, fence_lanes, place); }
void warpgroup_commit(Place place) { warp_operation(~0u, nullptr, commit_lanes, place); }

void warpgroup_wait(int groups, Place place) {
    Wait own{groups, __builtin_return_address(0)};
    warp_operation(~0u, &own, wait_lanes, place);
}

void start_warpgroups() { used = false; }

void end_warpgroup_thread() {
    if (!used) return;
    const int number = block.current->warp;
    WarpProducts& warp = warps[number];
    if (!warp.under_way.empty()) refuse("the thread ends and has not waited for it", warp.under_way.front().code);
    if (warp.issued != warpgroups[number / 4].size())
        fail(KIND, "a warp has issued fewer operations than the others of its warpgroup", {nullptr, 0});
}

}  // namespace simulator
