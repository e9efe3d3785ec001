#include "access.hpp"

#include <link.h>

#include <algorithm>

namespace simulator {
namespace {

struct Range {
    const char *begin, *end;
};

// The memory that the kernel's own library is loaded into.
Range module_range() {
    Range range{nullptr, nullptr};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
            const char *begin = nullptr, *end = nullptr;
            for (int i = 0; i < info->dlpi_phnum; ++i) {
                if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
                const char* const first = reinterpret_cast<const char*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
                if (!begin || first < begin) begin = first;
                if (first + info->dlpi_phdr[i].p_memsz > end) end = first + info->dlpi_phdr[i].p_memsz;
            }
            const char* const here = reinterpret_cast<const char*>(&block);
            if (here < begin || here >= end) return 0;
            *static_cast<Range*>(out) = {begin, end};
            return 1;
        },
        &range);
    return range;
}

std::string describe(const Buffer& buffer) {
    const long position = &buffer - block.launch->buffers;
    return "argument " + std::to_string(position) + " (" + std::to_string(buffer.bytes) + " bytes)";
}

std::string nearest_buffer(const char* address) {
    const Buffer* nearest = nullptr;
    size_t distance = SIZE_MAX;
    for (int i = 0; i < block.launch->buffer_count; ++i) {
        const Buffer& buffer = block.launch->buffers[i];
        const size_t after = address >= buffer.begin + buffer.bytes ? address - (buffer.begin + buffer.bytes) : SIZE_MAX;
        const size_t before = address < buffer.begin ? buffer.begin - address : SIZE_MAX;
        if (std::min(after, before) >= distance) continue;
        distance = std::min(after, before);
        nearest = &buffer;
    }
    if (!nearest) return "the kernel has no buffer";
    const bool after = address >= nearest->begin;
    return std::to_string(distance) + " bytes " + (after ? "after the end of " : "before the begin of ") + describe(*nearest);
}

}  // namespace

Target find_target(const char* address, size_t bytes, bool writes) {
    if (address >= block.shared && address < block.shared + ARENA_BYTES)
        return {Space::SHARED, nullptr, static_cast<size_t>(address - block.shared)};
    const Buffer* found = nullptr;
    for (int i = 0; i < block.launch->buffer_count; ++i) {
        const Buffer& buffer = block.launch->buffers[i];
        if (address < buffer.begin || address + bytes > buffer.begin + buffer.bytes) continue;
        found = &buffer;
        if (buffer.writable || !writes) break;
    }
    if (found) return {Space::GLOBAL, found, static_cast<size_t>(address - found->begin)};
    const char* const stack = block.current->stack;
    if (address >= stack && address < stack + STACK_BYTES) return {Space::OWN, nullptr, 0};
    static const Range module = module_range();
    if (address >= module.begin && address < module.end) return {Space::OWN, nullptr, 0};
    return {Space::UNKNOWN, nullptr, 0};
}

void check_bounds(const Target& target, const char* address, size_t bytes, bool writes, const void* code) {
    const auto what = [&] { return (writes ? "a write of " : "a read of ") + std::to_string(bytes) + " bytes "; };
    if (target.space == Space::UNKNOWN) fail_at("out of bounds", what() + nearest_buffer(address), code);
    if (target.space == Space::GLOBAL && writes && !target.buffer->writable)
        fail_at("read-only", "a write to " + describe(*target.buffer) + ", which is const", code);
    if (target.space != Space::SHARED) return;
    for (const Block::Site& site : block.sites)
        if (address >= site.memory && address + bytes <= site.memory + site.bytes) return;
    fail_at("out of bounds", what() + "at shared offset " + std::to_string(target.offset) + " is in no array", code);
}

}  // namespace simulator
