// Fibers: stacks of their own, and a switch between them that saves six registers. Sixteen instructions on x86-64;
// elsewhere ucontext, which makes a system call for each switch.
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

// `context` will start `body`, which must never return, at the top of `stack`, less a distance that depends on `number`:
// stacks lie at multiples of a page, so that without it the few lines that each uses would share a set of the CPU's cache.
void prepare(Context& context, char* stack, int number, void (*body)());

// Leave `from` where it is and go on with `to`. Inline, so that a function that ends with it leaves no frame behind.
#if defined(__x86_64__)
extern "C" void gpucnn_switch_stacks(void** save, void* to);
inline void switch_to(Context& from, const Context& to) { gpucnn_switch_stacks(&from.stack_pointer, to.stack_pointer); }
#else
inline void switch_to(Context& from, const Context& to) { swapcontext(&from.context, &to.context); }
#endif

}  // namespace simulator
