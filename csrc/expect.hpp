// The last guard before raw pointers. Callers in gpucnn/ops check their users' arguments and say what is wrong.
#pragma once

#include <stdexcept>
#include <string>

namespace gpucnn {

inline void expect(bool condition, const char* operation, const char* rule) {
    if (!condition) throw std::invalid_argument(std::string(operation) + ": " + rule);
}

}  // namespace gpucnn
