#include "fiber.hpp"

#include <sys/mman.h>

namespace simulator {

char* allocate_stack() {
    constexpr size_t page = 4096;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char* const memory = static_cast<char*>(mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE, flags, -1, 0));
    mprotect(memory, page, PROT_NONE);
    return memory + page;
}

#if defined(__x86_64__)

// It ends with an indirect jump, which the CPU predicts by the branches before it: a `ret` is predicted to return to the
// last caller, and fibers wait at other barriers than the one that is left.
asm(R"(
.text
.hidden gpucnn_switch_stacks
.globl gpucnn_switch_stacks
.type gpucnn_switch_stacks,@function
gpucnn_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size gpucnn_switch_stacks,.-gpucnn_switch_stacks
)");

void prepare(Context& context, char* stack, int number, void (*body)()) {
    constexpr size_t lines = 64, line_bytes = 64, used_lines = 7;  // of a page; odd, so that all lines have their turn
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES - number * used_lines % lines * line_bytes);
    *--top = nullptr;  // where body would return to; also keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(body);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context.stack_pointer = top;
}

#else

void prepare(Context& context, char* stack, int /*all start at the top*/, void (*body)()) {
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = stack;
    context.context.uc_stack.ss_size = STACK_BYTES;
    context.context.uc_link = nullptr;
    makecontext(&context.context, body, 0);
}

#endif

}  // namespace simulator
