// gpucnn._C's classes of the engine "native". Streams come as integers, as CuPy's `stream.ptr`.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "native.hpp"

namespace gpucnn {

void define_native(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace native;
    const auto stream_of = [](uintptr_t stream) { return reinterpret_cast<Handle>(stream); };

    py::class_<Driver, std::shared_ptr<Driver>>(m, "NativeDriver")
        .def(py::init<const std::string&>(), py::arg("library"))
        .def("require_context", &Driver::require_context, py::arg("device"));
    py::class_<Module, std::shared_ptr<Module>>(m, "NativeModule")
        .def(py::init([](std::shared_ptr<Driver> driver, const py::bytes& cubin) {
                 return std::make_shared<Module>(driver, std::string(cubin));
             }),
             py::arg("driver"), py::arg("cubin"));
    py::class_<Launch, std::shared_ptr<Launch>>(m, "NativeLaunch")
        .def(py::init([](const Module& module, const std::string& name, std::array<unsigned, 3> grid, unsigned threads,
                         unsigned shared_bytes, const std::vector<py::bytes>& arguments) {
                 const unsigned blocks[3] = {grid[0], grid[1], grid[2]};
                 const std::vector<std::string> values(arguments.begin(), arguments.end());
                 return std::make_shared<Launch>(module, name, blocks, threads, shared_bytes, values);
             }),
             py::arg("module"), py::arg("name"), py::arg("grid"), py::arg("threads"), py::arg("shared_bytes"),
             py::arg("arguments"))
        .def("run", [stream_of](const Launch& launch, uintptr_t stream) { launch.run(stream_of(stream)); }, py::arg("stream"));
    py::class_<Graph>(m, "NativeGraph")
        .def(py::init([](std::shared_ptr<Driver> driver, const std::vector<std::shared_ptr<Launch>>& launches) {
                 std::vector<const Launch*> pointers;
                 for (const auto& launch : launches) pointers.push_back(launch.get());
                 return std::make_unique<Graph>(driver, pointers);
             }),
             py::arg("driver"), py::arg("launches"))
        .def("run", [stream_of](const Graph& graph, uintptr_t stream) { graph.run(stream_of(stream)); }, py::arg("stream"));
}

}  // namespace gpucnn
