// Copies of boxes by the tensor memory accelerator: PTX ISA 5.5, "Tensors", and 9.7.9.25, "Asynchronous copies".
//
// A load gathers its bytes from global memory and counts them at its barrier when it completes; a store reads shared
// memory first, and writes global memory later. With `late_copies` each of these steps waits until no thread can go on, or
// a thread waits for it; in random order it may come at any time before.
#include "tma.hpp"

#include <algorithm>

#include "access.hpp"
#include "barrier.hpp"

namespace simulator {

namespace {

constexpr int RANK_MAX = 5;
constexpr int ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};  // by CUtensorMapDataType
enum Type { FLOAT16 = 6, FLOAT32 = 7, FLOAT64 = 8, BFLOAT16 = 9, TF32 = 11 };
enum Flags { FILLS_NAN = 1, STORES = 2 };

// As gpucnn.launch.tensor_map packs it; dimension 0 is the innermost.
struct Map {
    char magic[8];
    uint64_t address, strides[RANK_MAX - 1];
    uint32_t last[RANK_MAX];  // the number of elements less 1
    uint16_t box[RANK_MAX], channels, pixels;
    int16_t lower[3], upper[3];
    uint8_t steps[RANK_MAX], rank, walks, type, swizzle, flags;

    int item() const { return ELEMENT_BYTES[type]; }
    int64_t size(int i) const { return int64_t{last[i]} + 1; }
    int count(int i) const { return i ? (box[i] + steps[i] - 1) / steps[i] : box[0]; }  // steps[0] means nothing
    int row_elements() const { return walks ? channels : box[0]; }
    int rows() const {
        int total = walks ? pixels : 1;
        for (int i = 1; i < rank && !walks; ++i) total *= count(i);
        return total;
    }
    int row_bytes() const { return row_elements() * item(); }
    int bytes() const { return rows() * row_bytes(); }
};
static_assert(sizeof(Map) <= 128, "a tensor map has 128 bytes");

enum class Stage { ISSUED, READ, WRITTEN };  // a load is forgotten once it is WRITTEN, a store when it was waited for too

struct Copy {
    Map map;
    int at[RANK_MAX], offsets[3];
    char* shared;
    void* barrier;  // of a load; null: a store
    unsigned blocks;
    int thread, group;
    Stage stage;
    bool waited;                // for a store's read
    std::vector<char> content;  // that a store has read
    const void* code;
};

std::vector<Copy> copies;
std::vector<int> groups;  // that each thread has committed

// `bytes` at `global`, of which elements [begin, end) of a row lie in the array, and the row's place in shared memory.
struct Row {
    char* shared;
    uint64_t global;
    int begin, end;
};

// The row at `where` of the dimensions after the first, of elements from `first` on.
Row place_row(const Map& map, int64_t first, const int64_t* where, char* shared) {
    Row row{shared, map.address + first * map.item(), 0, 0};
    for (int i = 1; i < map.rank; ++i) {
        if (where[i] < 0 || where[i] >= map.size(i)) return row;
        row.global += where[i] * map.strides[i - 1];
    }
    const int64_t count = map.row_elements();
    row.begin = std::clamp<int64_t>(-first, 0, count);
    row.end = std::clamp<int64_t>(map.size(0) - first, row.begin, count);
    return row;
}

template <class Visit>
void visit_box(const Copy& copy, Visit visit) {
    const Map& map = copy.map;
    int j[RANK_MAX] = {};
    for (int r = 0; r < map.rows(); ++r) {
        int64_t where[RANK_MAX];
        for (int i = 1; i < map.rank; ++i) where[i] = int64_t{copy.at[i]} + j[i] * map.steps[i];
        visit(place_row(map, copy.at[0], where, copy.shared + r * map.row_bytes()));
        for (int i = 1; i < map.rank && ++j[i] == map.count(i); ++i) j[i] = 0;
    }
}

// Pixel by pixel from the base: along w by its step, at the end of the window to the next row, then to the next image.
// The offsets are added to where a pixel is read, not to where the walk stands.
template <class Visit>
void visit_walk(const Copy& copy, Visit visit) {
    const Map& map = copy.map;
    const int image = map.rank - 1;
    int64_t base[RANK_MAX];
    for (int i = 1; i < map.rank; ++i) base[i] = copy.at[i];
    for (int pixel = 0; pixel < map.pixels; ++pixel) {
        int64_t where[RANK_MAX];
        for (int i = 1; i < image; ++i) where[i] = base[i] + copy.offsets[i - 1];
        where[image] = base[image];
        visit(place_row(map, copy.at[0], where, copy.shared + pixel * map.row_bytes()));
        int i = 1;
        for (; i < image; ++i) {
            base[i] += map.steps[i];
            if (base[i] <= map.size(i) - 1 + map.upper[i - 1]) break;
            base[i] = map.lower[i - 1];
        }
        if (i == image) ++base[image];
    }
}

template <class Visit>
void visit_rows(const Copy& copy, Visit visit) {
    if (copy.map.walks)
        visit_walk(copy, visit);
    else
        visit_box(copy, visit);
}

// Where a group of 16 bytes lies: bits 4 to 6 of the address of shared memory by bits 7 to 9.
char* swizzled(const Map& map, char* address) {
    const size_t offset = address - block.shared;
    return block.shared + (offset ^ ((offset >> 7 & ((1u << map.swizzle) - 1)) << 4));
}

// To tf32, to nearest, ties to even; infinities and NaN stay what they are.
void round_row(uint32_t* values, int count) {
    for (int i = 0; i < count; ++i) {
        uint32_t& bits = values[i];
        if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0xfffu + (bits >> 13 & 1)) & 0xffffe000u;
    }
}

void fill_row(const Map& map, char* row) {
    const int bytes = map.row_bytes(), item = map.item();
    memset(row, 0, bytes);
    if (!(map.flags & FILLS_NAN)) return;
    const uint64_t nan = map.type == FLOAT16 || map.type == BFLOAT16 ? 0x7fff
                         : map.type == FLOAT64                       ? 0x7fffffffffffffff
                                                                     : 0x7fffffff;
    for (int i = 0; i < bytes; i += item) memcpy(row + i, &nan, item);
}

constexpr int ROW_BYTES_MAX = 256 * 8;

void load(Copy& copy) {
    const Map& map = copy.map;
    copy.stage = Stage::WRITTEN;
    alignas(16) char content[ROW_BYTES_MAX];
    visit_rows(copy, [&](const Row& row) {
        fill_row(map, content);
        char* const first = content + row.begin * map.item();
        const char* const source = reinterpret_cast<const char*>(row.global) + row.begin * map.item();
        const int valid = row.end - row.begin;
        if (valid) memcpy(first, source, valid * map.item());
        if (map.type == TF32) round_row(reinterpret_cast<uint32_t*>(first), valid);
        for (int i = 0; i < map.row_bytes(); i += 16) memcpy(swizzled(map, row.shared + i), content + i, 16);
    });
    unit_write_completed(copy.shared, map.bytes(), copy.barrier);
    complete_bytes(copy.barrier, map.bytes());
}

void read_store(Copy& copy) {
    const Map& map = copy.map;
    copy.content.resize(map.bytes());
    for (int i = 0; i < map.bytes(); i += 16) memcpy(&copy.content[i], swizzled(map, copy.shared + i), 16);
    copy.stage = Stage::READ;
}

void write_store(Copy& copy) {
    const Map& map = copy.map;
    copy.stage = Stage::WRITTEN;
    visit_rows(copy, [&](const Row& row) {
        const int first = row.begin * map.item(), bytes = (row.end - row.begin) * map.item();
        if (bytes) memcpy(reinterpret_cast<char*>(row.global) + first, &copy.content[row.shared - copy.shared + first], bytes);
    });
}

void advance(Copy& copy) {
    if (copy.barrier)
        load(copy);
    else if (copy.stage == Stage::ISSUED)
        read_store(copy);
    else
        write_store(copy);
}

void forget_finished() {
    const auto finished = [](const Copy& copy) { return copy.stage == Stage::WRITTEN && (copy.barrier || copy.waited); };
    copies.erase(std::remove_if(copies.begin(), copies.end(), finished), copies.end());
}

std::string list(const int* values, int count) {
    std::string text = "{";
    for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
    return text + "}";
}

void require(bool holds, const std::string& message, const void* code) {
    if (!holds) fail_at("TMA", message, code);
}

void check_shared(const Copy& copy) {
    const Map& map = copy.map;
    const bool inside = copy.shared >= block.shared && copy.shared < block.shared + ARENA_BYTES;
    require(inside, "the box is not in shared memory", copy.code);
    const size_t offset = copy.shared - block.shared, alignment = map.swizzle ? 128 << map.swizzle : 128;
    require(offset % alignment == 0,
            "the box is at shared offset " + std::to_string(offset) + "; " +
                (map.swizzle ? "with a swizzle of " + std::to_string(16 << map.swizzle) + " bytes" : "without a swizzle") +
                " it must be a multiple of " + std::to_string(alignment),
            copy.code);
    check_bounds({Space::SHARED, nullptr, offset}, copy.shared, map.bytes(), !!copy.barrier, copy.code);
}

// Where the walk starts must be one of its pixels, and the offsets must fit the instruction.
void check_walk(const Copy& copy) {
    const Map& map = copy.map;
    const int spatial = map.rank - 2, most = spatial == 1 ? 65535 : spatial == 2 ? 255 : 31;
    for (int i = 0; i < spatial; ++i) {
        const int64_t first = map.lower[i], end = map.size(i + 1) - 1 + map.upper[i], from = copy.at[i + 1];
        const std::string name = "coordinate " + std::to_string(i + 1) + " is " + std::to_string(from);
        require(from >= first && from <= end,
                name + "; the walk goes from " + std::to_string(first) + " to " + std::to_string(end), copy.code);
        require((from - first) % map.steps[i + 1] == 0,
                name + "; the walk goes from " + std::to_string(first) + " in steps of " + std::to_string(map.steps[i + 1]),
                copy.code);
        require(copy.offsets[i] >= 0 && copy.offsets[i] <= most,
                "offset " + std::to_string(i) + " is " + std::to_string(copy.offsets[i]) + "; it must be from 0 to " +
                    std::to_string(most),
                copy.code);
    }
}

Copy make_copy(const void* map, void* shared, int rank, const int* at, void* barrier, const void* code) {
    Copy copy{};
    memcpy(&copy.map, map, sizeof(Map));
    require(memcmp(copy.map.magic, "simulate", 8) == 0, "the map is no kernel's parameter TENSOR_MAP", code);
    const std::string ranks = "the map has rank " + std::to_string(copy.map.rank) + ", the copy " + std::to_string(rank);
    require(copy.map.rank == rank, ranks, code);
    std::copy(at, at + rank, copy.at);
    copy.shared = static_cast<char*>(shared);
    copy.barrier = barrier;
    copy.thread = block.current->number;
    copy.group = groups[copy.thread];
    copy.code = code;
    check_shared(copy);
    return copy;
}

// Its bounds are checked where the thread asks for it, whenever the bytes are copied.
void issue(Copy& copy) {
    static std::vector<Span> spans;
    spans.clear();
    visit_rows(copy, [&](const Row& row) {
        const size_t item = copy.map.item();
        if (row.begin < row.end)
            spans.push_back({reinterpret_cast<const char*>(row.global) + row.begin * item, (row.end - row.begin) * item});
    });
    const bool stores = !copy.barrier;
    for (const Span& span : spans)
        check_bounds(find_target(span.begin, span.bytes, stores), span.begin, span.bytes, stores, copy.code);
    visit_global(spans, stores, copy.map.bytes(), copy.code);
    if (stores)
        unit_read_issued(copy.shared, copy.map.bytes(), copy.code);
    else
        unit_write_issued(copy.shared, copy.map.bytes(), copy.barrier, copy.code);
    while (!block.launch->late_copies && copy.stage != Stage::WRITTEN) advance(copy);
    copies.push_back(std::move(copy));
    forget_finished();
}

}  // namespace

void start_box_copies() {
    copies.clear();
    groups.assign(block.thread_count, 0);
}

bool has_box_copies() { return !copies.empty(); }

bool complete_box_copy(uint64_t random) {
    std::vector<int> open;
    for (size_t i = 0; i < copies.size(); ++i)
        if (copies[i].stage != Stage::WRITTEN) open.push_back(i);
    if (open.empty()) return false;
    const int order = block.launch->order;
    advance(copies[order == FORWARD ? open.front() : order == REVERSE ? open.back() : open[random % open.size()]]);
    forget_finished();
    return true;
}

void finish_box_copies() {
    for (Copy& copy : copies) {
        block.current = &block.threads[copy.thread];
        require(!copy.barrier, "the block ends while a load into its shared memory is under way", copy.code);
        require(copy.group < groups[copy.thread], "the block ends, and a store was never committed", copy.code);
        require(copy.waited, "the block ends, and nothing waited until a store had read its shared memory", copy.code);
        while (copy.stage != Stage::WRITTEN) advance(copy);
    }
    copies.clear();
}

void tma_load(void* shared, const void* map, void* barrier, int rank, const int* at, const int* offsets, unsigned blocks) {
    const void* const code = __builtin_return_address(0);
    Copy copy = make_copy(map, shared, rank, at, barrier, code);
    require(!!offsets == !!copy.map.walks, offsets ? "an im2col load by a tiled map" : "a tiled load by an im2col map", code);
    require(blocks <= 1, "a multicast to blocks outside the cluster", code);
    if (offsets) {
        std::copy(offsets, offsets + rank - 2, copy.offsets);
        check_walk(copy);
    }
    issue(copy);
}

void tma_store(const void* map, const void* shared, int rank, const int* at) {
    const void* const code = __builtin_return_address(0);
    Copy copy = make_copy(map, const_cast<void*>(shared), rank, at, nullptr, code);
    require(!copy.map.walks, "a tiled store by an im2col map", code);
    require(copy.map.flags & STORES, "a store by a map that was made without stores", code);
    for (int i = 0; i < rank; ++i) require(at[i] >= 0, "a store starts at " + list(at, rank) + ", which is negative", code);
    issue(copy);
}

void tma_store_commit() { ++groups[block.current->number]; }

void tma_store_wait(int groups_in_flight, bool read_only) {
    const int me = block.current->number, open = groups[me] - groups_in_flight;
    for (Copy& copy : copies) {
        if (copy.barrier || copy.thread != me || copy.group >= open) continue;
        while (copy.stage < (read_only ? Stage::READ : Stage::WRITTEN)) advance(copy);
        if (!copy.waited) unit_read_finished(copy.shared, copy.map.bytes());
        copy.waited = true;
    }
    forget_finished();
}

}  // namespace simulator
