// The extension gpucnn._C: CPU operations where NumPy is weak. Each family of operations registers its own functions.
#include "array.hpp"

namespace gpucnn {
void register_gemm(py::module_& m);
void register_conv2d(py::module_& m);
void register_max_pool2d(py::module_& m);
void register_avg_pool2d(py::module_& m);
void register_batch_norm(py::module_& m);
void register_local_response_norm(py::module_& m);
void register_elementwise(py::module_& m);
void register_random(py::module_& m);
void register_update(py::module_& m);
void register_batch(py::module_& m);
}  // namespace gpucnn

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU operations of gpucnn; called through gpucnn.ops and gpucnn.data, which check the arguments";
    gpucnn::register_threads(m);
    gpucnn::register_gemm(m);
    gpucnn::register_conv2d(m);
    gpucnn::register_max_pool2d(m);
    gpucnn::register_avg_pool2d(m);
    gpucnn::register_batch_norm(m);
    gpucnn::register_local_response_norm(m);
    gpucnn::register_elementwise(m);
    gpucnn::register_random(m);
    gpucnn::register_update(m);
    gpucnn::register_batch(m);
}
