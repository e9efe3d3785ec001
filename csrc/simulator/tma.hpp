// What the scheduler does with copies of boxes that are under way (tma.cpp).
#pragma once
#include <cstdint>

namespace simulator {

void start_box_copies();  // at the start of a block
bool has_box_copies();    // under way, or stores that nothing has waited for
// One of those under way goes a step on, in random order that which `random` says; false if there is none.
bool complete_box_copy(uint64_t random);
void finish_box_copies();  // by the last thread of a block: what must not be under way any more fails

}  // namespace simulator
