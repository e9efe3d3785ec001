// The functions that -fsanitize=thread calls before every access; its own library is not linked.
#pragma once
#include "access.hpp"

namespace simulator {

#define ACCESS(size)                                                                                             \
    void __tsan_read##size(const char* p) { on_access(p, size, false, __builtin_return_address(0)); }            \
    void __tsan_write##size(const char* p) { on_access(p, size, true, __builtin_return_address(0)); }            \
    void __tsan_unaligned_read##size(const char* p) { on_access(p, size, false, __builtin_return_address(0)); }  \
    void __tsan_unaligned_write##size(const char* p) { on_access(p, size, true, __builtin_return_address(0)); }

extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(const char* p, size_t bytes) { on_access(p, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(const char* p, size_t bytes) { on_access(p, bytes, true, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
}

#undef ACCESS

}  // namespace simulator
