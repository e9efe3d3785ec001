// The compiler's calls before every access of an instrumented kernel: -fsanitize=thread and -fsanitize=kernel-address
// without their libraries. A build defines `on_access`; nothing else of the sanitizers is used.
#pragma once
#include "runtime.hpp"

namespace simulator {

enum class Space { SHARED, GLOBAL, OWN, UNKNOWN };  // OWN: a thread's stack, or constants and statics of the kernel

struct Target {
    Space space;
    const Buffer* buffer;  // of GLOBAL
    size_t offset;         // in shared memory or in the buffer
};

// Where an access of the current thread goes; of two arguments with the same memory, to one that may be so accessed.
Target find_target(const char* address, size_t bytes, bool writes);

// Fails unless all of the access lies in one array of shared memory, or in one buffer that may be so accessed.
void check_bounds(const Target& target, const char* address, size_t bytes, bool writes, const void* code);

struct Span {
    const char* begin;
    size_t bytes;
};
// A copy of a box is asked for: of these parts of global memory, whose bounds were checked, and so many bytes of shared.
void visit_global(const std::vector<Span>& parts, bool writes, size_t shared_bytes, const void* code);

void on_access(const char* address, size_t bytes, bool writes, const void* code);

}  // namespace simulator
