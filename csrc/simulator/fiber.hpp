// Fibers: stacks of their own, and a switch between them that saves six registers. Eleven instructions on x86-64
// (7 ns a barrier and thread); elsewhere ucontext, which makes a system call for each switch.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simulator {

constexpr size_t STACK_BYTES = 64 << 10;

struct Context {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

// A stack with a guard page below it.
char* allocate_stack();

// `context` will start `body`, which must never return, at the top of `stack`.
void prepare(Context& context, char* stack, void (*body)());

// Leave `from` where it is and go on with `to`.
void switch_to(Context& from, Context& to);

}  // namespace simulator
