#include "generations.hpp"

#include <cstdlib>
#include <map>

#include "errors.hpp"
#include "numpy_api.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

struct LiveBlock {
    std::size_t index_bytes;
    std::uint64_t handle;
};

// Never destroyed: arrays may be freed after static destructors have run.
std::map<std::uintptr_t, LiveBlock>& live_blocks() {
    static auto* blocks = new std::map<std::uintptr_t, LiveBlock>;
    return *blocks;
}

constexpr const char* capsule_name = "mpbuffer.sample_block";

void free_block(PyObject* capsule) {
    void* memory = PyCapsule_GetPointer(capsule, capsule_name);
    live_blocks().erase(reinterpret_cast<std::uintptr_t>(memory));
    std::free(memory);
}

}  // namespace

SampleBlock SampleBlock::allocate(std::size_t count, std::uint64_t handle) {
    const std::size_t index_bytes = count * sizeof(std::int64_t);
    void* memory = std::malloc(2 * index_bytes);
    if (memory == nullptr) throw std::bad_alloc();
    PyObject* capsule = PyCapsule_New(memory, capsule_name, free_block);
    if (capsule == nullptr) {
        std::free(memory);
        throw py::error_already_set();
    }
    SampleBlock block{
        static_cast<std::int64_t*>(memory),
        reinterpret_cast<std::uint64_t*>(static_cast<std::byte*>(memory) + index_bytes),
        py::reinterpret_steal<py::object>(capsule)};
    live_blocks()[reinterpret_cast<std::uintptr_t>(memory)] = {index_bytes, handle};
    return block;
}

py::object SampleBlock::to_array(std::size_t count) const {
    npy_intp dims[1] = {static_cast<npy_intp>(count)};
    PyObject* result = PyArray_SimpleNewFromData(1, dims, NPY_INT64, indexes);
    if (result == nullptr) throw py::error_already_set();
    auto object = py::reinterpret_steal<py::object>(result);
    if (PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(result), owner.inc_ref().ptr()) <
        0) {
        throw py::error_already_set();
    }
    return object;
}

std::uint64_t* generations_beside(std::int64_t* indexes, std::size_t count, std::uint64_t handle) {
    const auto at = reinterpret_cast<std::uintptr_t>(indexes);
    auto block = live_blocks().upper_bound(at);
    if (block == live_blocks().begin()) return nullptr;
    --block;
    const std::size_t offset = at - block->first;
    if (offset >= block->second.index_bytes) return nullptr;
    if (block->second.handle != handle) {
        throw_python(PyExc_ValueError,
                     "cannot sample into out['indexes']: it is another buffer's, expected one that "
                     "this buffer returned, or an array of your own");
    }
    if (offset % sizeof *indexes != 0 ||
        offset + count * sizeof *indexes > block->second.index_bytes) {
        return nullptr;
    }
    return reinterpret_cast<std::uint64_t*>(at + block->second.index_bytes);
}

std::uint64_t GenerationFinder::find(const std::int64_t* address) {
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    if (at < first_ || at >= last_) {
        auto block = live_blocks().upper_bound(at);
        if (block == live_blocks().begin()) return 0;
        --block;
        if (block->second.handle != handle_ || at - block->first >= block->second.index_bytes)
            return 0;
        first_ = block->first;
        last_ = block->first + block->second.index_bytes;
        distance_ = block->second.index_bytes;
    }
    if ((at - first_) % sizeof(std::int64_t) != 0) return 0;
    return *reinterpret_cast<const std::uint64_t*>(at + distance_);
}

}  // namespace mpbuffer::bindings
