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

extern "C" void gpucnn_switch_stacks(void** save, void* to);
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
  ret
.size gpucnn_switch_stacks,.-gpucnn_switch_stacks
)");

void prepare(Context& context, char* stack, void (*body)()) {
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES);
    *--top = nullptr;  // where body would return to; also keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(body);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context.stack_pointer = top;
}

void switch_to(Context& from, Context& to) { gpucnn_switch_stacks(&from.stack_pointer, to.stack_pointer); }

#else

void prepare(Context& context, char* stack, void (*body)()) {
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = stack;
    context.context.uc_stack.ss_size = STACK_BYTES;
    context.context.uc_link = nullptr;
    makecontext(&context.context, body, 0);
}

void switch_to(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

#endif

}  // namespace simulator
