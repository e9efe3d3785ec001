// Mode "asan": every access must lie inside one array of shared memory or one buffer of the launch, and nothing may be
// undefined behaviour. The compiler calls these functions (-fsanitize=kernel-address,undefined); its own libraries, which
// end the process at the first error, are not linked.
#include <cstdio>

#include "access.hpp"
#include "unordered.hpp"

namespace simulator {

const size_t SHARED_GAP = 64;

void start_launch_checks() {}
void start_block_checks() {}
void barrier_checks() {}
void finish_block_checks() {}
void copy_issued(const AsyncCopy& copy) {
    on_access(copy.destination, copy.bytes, true, copy.code);
    if (copy.source_bytes) on_access(copy.source, copy.source_bytes, false, copy.code);
}
void copy_completed(const AsyncCopy&) {}
void unit_write_issued(const char* address, size_t bytes, const void*, const void* code) { on_access(address, bytes, true, code); }
void unit_read_issued(const char* address, size_t bytes, const void* code) { on_access(address, bytes, false, code); }
void unit_read_finished(const char*, size_t, const void*) {}
void unit_write_completed(const char*, size_t, const void*) {}
void count_flops(int) {}
void visit_global(const std::vector<Span>&, bool, size_t, const void*) {}

void on_access(const char* address, size_t bytes, bool writes, const void* code) {
    if (block.current) check_bounds(find_target(address, bytes, writes), address, bytes, writes, code);
}

namespace {

constexpr const char* UNDEFINED_BEHAVIOUR = "undefined behaviour";

struct TypeMismatch {  // as the compiler lays it out
    const char* file;
    uint32_t line, column;
    const void* type;
    unsigned char alignment_log2, kind;
};

}  // namespace

#define ACCESS(size)                                                                          \
    void __asan_load##size##_noabort(const char* address) {                                   \
        on_access(address, size, false, __builtin_return_address(0));                         \
    }                                                                                         \
    void __asan_store##size##_noabort(const char* address) {                                  \
        on_access(address, size, true, __builtin_return_address(0));                          \
    }
#define UNDEFINED(name, message) \
    void __ubsan_handle_##name() { fail_at(UNDEFINED_BEHAVIOUR, message, __builtin_return_address(0)); }

extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __asan_loadN_noabort(const char* address, size_t bytes) {
    on_access(address, bytes, false, __builtin_return_address(0));
}
void __asan_storeN_noabort(const char* address, size_t bytes) {
    on_access(address, bytes, true, __builtin_return_address(0));
}
void __asan_handle_no_return() {}

UNDEFINED(add_overflow, "a signed sum overflows")
UNDEFINED(sub_overflow, "a signed difference overflows")
UNDEFINED(mul_overflow, "a signed product overflows")
UNDEFINED(negate_overflow, "a signed negation overflows")
UNDEFINED(divrem_overflow, "an integer is divided by zero, or the quotient overflows")
UNDEFINED(shift_out_of_bounds, "a shift by a negative amount, by too much, or out of the type")
UNDEFINED(out_of_bounds, "an index is outside its array")
UNDEFINED(vla_bound_not_positive, "an array has no positive length")
UNDEFINED(load_invalid_value, "a bool or enumeration holds no value of its type")
UNDEFINED(pointer_overflow, "pointer arithmetic overflows")
UNDEFINED(builtin_unreachable, "unreachable code is reached")
UNDEFINED(missing_return, "a function ends without returning a value")
UNDEFINED(nonnull_arg, "a null argument where none is allowed")
UNDEFINED(invalid_builtin, "a builtin's argument is out of range")

void __ubsan_handle_type_mismatch_v1(const TypeMismatch* data, uintptr_t address) {
    const size_t alignment = size_t{1} << data->alignment_log2;
    char text[96];
    if (address && address % alignment)
        snprintf(text, sizeof text, "misaligned: address %#zx is no multiple of %zu", static_cast<size_t>(address), alignment);
    else
        snprintf(text, sizeof text, address ? "an object is too small for the access" : "a null pointer is used");
    fail_at(UNDEFINED_BEHAVIOUR, text, __builtin_return_address(0));
}
}

}  // namespace simulator
