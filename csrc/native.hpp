// The CUDA driver, opened at run time: the extension builds and imports on machines that have none.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace gpucnn::native {

// The driver's handles are pointers that only it can look behind.
using Handle = void*;

struct Functions;  // the driver functions that are used

class Driver {
public:
    // Opens the library and starts the driver; throws std::runtime_error where there is none.
    explicit Driver(const std::string& library);
    ~Driver();
    Driver(const Driver&) = delete;
    Driver& operator=(const Driver&) = delete;

    const Functions& functions() const { return *functions_; }
    // Throws std::runtime_error with the driver's name for `code`, unless it is 0.
    void check(int code, const char* what) const;
    // Makes a device's primary context this thread's, if it has none.
    void require_context(int device) const;

private:
    void* library_;
    std::unique_ptr<Functions> functions_;
};

// Compiled kernels in the memory of the current context's GPU; they stay there until the process ends.
class Module {
public:
    Module(std::shared_ptr<const Driver> driver, const std::string& cubin);
    Handle function(const std::string& name) const;
    const std::shared_ptr<const Driver>& driver() const { return driver_; }

private:
    std::shared_ptr<const Driver> driver_;
    Handle module_;
};

// A kernel with its grid and arguments bound: to launch it is one call of the driver.
class Launch {
public:
    // arguments: the bytes of each parameter, in order.
    Launch(const Module& module, const std::string& name, const unsigned (&grid)[3], unsigned threads,
           unsigned shared_bytes, const std::vector<std::string>& arguments);
    Launch(const Launch&) = delete;
    Launch& operator=(const Launch&) = delete;
    void run(Handle stream) const;

private:
    std::shared_ptr<const Driver> driver_;
    Handle function_;
    unsigned grid_[3], threads_, shared_bytes_;
    std::vector<std::vector<uint64_t>> values_;  // as 8-byte words, so that every parameter is aligned
    mutable std::vector<void*> pointers_;
};

// Launches captured into a CUDA graph, which one call starts.
class Graph {
public:
    Graph(std::shared_ptr<const Driver> driver, const std::vector<const Launch*>& launches);
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    void run(Handle stream) const;

private:
    std::shared_ptr<const Driver> driver_;
    Handle executable_ = nullptr;
};

}  // namespace gpucnn::native
