// What every file of the extension shares at the Python border: array types and checks.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace gpucnn {

namespace py = pybind11;
using std::int64_t;

// A C-contiguous NumPy array of T. Bind its arguments with .noconvert(): another dtype or layout is then a TypeError.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

// Callers in gpucnn/ops check their users' arguments and say what is wrong; this is the last guard before raw pointers.
inline void expect(bool condition, const char* operation, const char* rule) {
    if (!condition) throw std::invalid_argument(std::string(operation) + ": " + rule);
}

inline void expect_shape(const py::array& array, std::initializer_list<int64_t> shape, const char* operation,
                         const char* name) {
    bool same = array.ndim() == static_cast<int64_t>(shape.size());
    int64_t axis = 0;
    for (int64_t extent : shape) same = same && array.shape(axis++) == extent;
    if (!same) throw std::invalid_argument(std::string(operation) + ": " + name + " has another shape than the call says");
}

inline void expect_same_shape(const py::array& first, const py::array& second, const char* operation, const char* name) {
    bool same = first.ndim() == second.ndim();
    for (py::ssize_t axis = 0; same && axis < first.ndim(); ++axis) same = first.shape(axis) == second.shape(axis);
    if (!same) throw std::invalid_argument(std::string(operation) + ": " + name + " has another shape than the call says");
}

void register_threads(py::module_& m);

}  // namespace gpucnn
