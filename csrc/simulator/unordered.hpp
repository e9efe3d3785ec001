// For modes that do not check the order of accesses.
#pragma once
#include "barrier.hpp"

namespace simulator {

void order_initialisation(int) {}
void order_use(int, const void*) {}
void order_arrival(int) {}
void order_completion(int) {}
void order_wait(int, uint32_t) {}
void order_threads(const int*, int) {}
void order_warp(int, uint32_t) {}
void order_proxies() {}

}  // namespace simulator
