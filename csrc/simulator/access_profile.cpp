// Mode "profile": counts what a GPU's memory units would do, per line of the kernel. The compiler calls these functions
// before every access (-fsanitize=thread); its own library is not linked.
//
// The n-th access of each lane of a warp at one instruction makes one request. A request to global memory touches
// sectors of 32 bytes. A request to shared memory takes as many passes ("wavefronts") as the fullest of the 32 banks has
// distinct words: in one phase for words of 4 bytes, a phase for each half warp for 8 and each quarter for 16; two phases
// merge when lanes n and n^1, or n and n^2, all read the same words.
#include <algorithm>
#include <cstdio>
#include <map>
#include <tuple>
#include <unordered_map>

#include "access.hpp"
#include "thread_hooks.hpp"
#include "unordered.hpp"

namespace simulator {
namespace {

struct Access {
    int lane;
    const char* address;
    size_t bytes;
};
struct Key {
    const void* code;
    int warp, occurrence;
    bool operator<(const Key& other) const {
        return std::tie(code, warp, occurrence) < std::tie(other.code, other.warp, other.occurrence);
    }
};
struct Request {
    Space space;
    bool writes;
    std::vector<Access> lanes;
};
struct Counters {
    Space space;
    bool writes;
    uint64_t requests = 0, bytes = 0, units = 0, least = 0, partial = 0;  // units: sectors or wavefronts
};

std::map<Key, Request> requests;
std::vector<std::unordered_map<const void*, int>> occurrences;  // of each thread
std::map<const void*, Counters> counters;
uint64_t barriers, flops;
std::string report;

template <class Value>
int count_distinct(std::vector<Value>& values) {
    std::sort(values.begin(), values.end());
    return static_cast<int>(std::unique(values.begin(), values.end()) - values.begin());
}

int count_sectors(const Request& request) {
    std::vector<uintptr_t> sectors;
    for (const Access& access : request.lanes) {
        const uintptr_t first = reinterpret_cast<uintptr_t>(access.address);
        for (uintptr_t s = first / 32; s <= (first + access.bytes - 1) / 32; ++s) sectors.push_back(s);
    }
    return count_distinct(sectors);
}

// Passes of the lanes first, first + 1, … first + count − 1.
int count_phase_wavefronts(const Request& request, int first, int count) {
    std::vector<uintptr_t> words;
    for (const Access& access : request.lanes) {
        if (access.lane < first || access.lane >= first + count) continue;
        const uintptr_t begin = reinterpret_cast<uintptr_t>(access.address) / 4;
        for (uintptr_t w = begin; w < begin + (access.bytes + 3) / 4; ++w) words.push_back(w);
    }
    words.resize(count_distinct(words));
    int banks[32] = {};
    for (const uintptr_t word : words) ++banks[word % 32];
    return *std::max_element(banks, banks + 32);
}

bool pairs_agree(const Request& request, int distance) {
    const char* addresses[32] = {};
    for (const Access& access : request.lanes) addresses[access.lane] = access.address;
    for (int lane = 0; lane < 32; ++lane)
        if (addresses[lane] != addresses[lane ^ distance]) return false;
    return true;
}

int count_wavefronts(const Request& request) {
    const size_t bytes = request.lanes.front().bytes;
    int lanes = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8;
    const bool merges = !request.writes && lanes < 32 && (pairs_agree(request, 1) || pairs_agree(request, 2));
    if (merges) lanes *= 2;
    int wavefronts = 0;
    for (int first = 0; first < 32; first += lanes) wavefronts += count_phase_wavefronts(request, first, lanes);
    return wavefronts;
}

void add(const Key& key, const Request& request) {
    Counters& counter = counters[key.code];
    counter.space = request.space;
    counter.writes = request.writes;
    ++counter.requests;
    uint64_t bytes = 0;
    for (const Access& access : request.lanes) bytes += access.bytes;
    counter.bytes += bytes;
    const bool shared = request.space == Space::SHARED;
    counter.units += shared ? count_wavefronts(request) : count_sectors(request);
    counter.least += shared ? (bytes + 127) / 128 : (bytes + 31) / 32;
    counter.partial += static_cast<int>(request.lanes.size()) < std::min(32, block.thread_count - 32 * key.warp);
}

void flush() {
    for (const auto& [key, request] : requests) add(key, request);
    requests.clear();
}

}  // namespace

const size_t SHARED_GAP = 0;

void start_launch_checks() {
    counters.clear();
    barriers = flops = 0;
}
void start_block_checks() { occurrences.assign(block.thread_count, {}); }
void barrier_checks() {
    ++barriers;
    flush();
}
void finish_block_checks() {
    flush();
}
void count_flops(int count) { flops += count; }
void copy_issued(const AsyncCopy& copy) {
    on_access(copy.destination, copy.bytes, true, copy.code);
    if (copy.source_bytes) on_access(copy.source, copy.source_bytes, false, static_cast<const char*>(copy.code) - 1);
}
void copy_completed(const AsyncCopy&) {}
void unit_write_issued(const char*, size_t, const void*, const void*) {}
void unit_read_issued(const char*, size_t, const void*) {}
void unit_read_finished(const char*, size_t, const void*) {}
void unit_write_completed(const char*, size_t, const void*) {}

// Requests of no warp: shared memory takes 128 bytes at a time, global memory sectors.
void visit_global(const std::vector<Span>& parts, bool writes, size_t shared_bytes, const void* code) {
    Counters& shared = counters[code];
    shared.space = Space::SHARED;
    shared.writes = !writes;
    ++shared.requests;
    shared.bytes += shared_bytes;
    shared.units += (shared_bytes + 127) / 128;
    shared.least += (shared_bytes + 127) / 128;
    Request request{Space::GLOBAL, writes, {}};
    size_t bytes = 0;
    for (const Span& span : parts) {
        request.lanes.push_back({0, span.begin, span.bytes});
        bytes += span.bytes;
    }
    Counters& counter = counters[static_cast<const char*>(code) - 1];
    counter.space = Space::GLOBAL;
    counter.writes = writes;
    ++counter.requests;
    counter.bytes += bytes;
    counter.units += count_sectors(request);
    counter.least += (bytes + 31) / 32;
}

void on_access(const char* address, size_t bytes, bool writes, const void* code) {
    if (!block.current) return;
    const Target target = find_target(address, bytes, writes);
    if (target.space != Space::SHARED && target.space != Space::GLOBAL) return;
    const Thread& thread = *block.current;
    const int occurrence = occurrences[thread.number][code]++;
    Request& request = requests[{code, thread.warp, occurrence}];
    request.space = target.space;
    request.writes = writes;
    request.lanes.push_back({thread.lane, address, bytes});
}

// One line an instruction: code, s or g, r or w, requests, bytes, units, least units, partial requests. The first line:
// barriers, flops.
extern "C" __attribute__((visibility("default"))) const char* gpucnn_profile() {
    report = std::to_string(barriers) + " " + std::to_string(flops) + "\n";
    for (const auto& [code, c] : counters) {
        char line[192];
        snprintf(line, sizeof line, "%p %c %c %llu %llu %llu %llu %llu\n", code, c.space == Space::SHARED ? 's' : 'g',
                 c.writes ? 'w' : 'r', static_cast<unsigned long long>(c.requests), static_cast<unsigned long long>(c.bytes),
                 static_cast<unsigned long long>(c.units), static_cast<unsigned long long>(c.least),
                 static_cast<unsigned long long>(c.partial));
        report += line;
    }
    return report.c_str();
}

}  // namespace simulator
