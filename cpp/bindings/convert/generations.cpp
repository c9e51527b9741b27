#include "convert/generations.hpp"

#include <cstdlib>
#include <iterator>
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

std::map<std::uintptr_t, LiveBlock>::iterator live_block_around(std::uintptr_t address) {
    auto& blocks = live_blocks();
    const auto behind = blocks.upper_bound(address);
    if (behind == blocks.begin()) return blocks.end();
    const auto block = std::prev(behind);
    return address - block->first < block->second.index_bytes ? block : blocks.end();
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
    py::object array = owned(PyArray_SimpleNewFromData(1, dims, NPY_INT64, indexes));
    if (PyArray_SetBaseObject(array_of(array), owner.inc_ref().ptr()) < 0) {
        throw py::error_already_set();
    }
    return array;
}

std::uint64_t* generations_beside(std::int64_t* indexes, std::size_t count, std::uint64_t handle) {
    const auto at = reinterpret_cast<std::uintptr_t>(indexes);
    const auto block = live_block_around(at);
    if (block == live_blocks().end()) return nullptr;
    if (block->second.handle != handle) {
        throw_python(PyExc_ValueError,
                     "cannot sample into out['indexes']: it is another buffer's, expected one that "
                     "this buffer returned, or an array of your own");
    }
    const std::size_t offset = at - block->first;
    if (offset % sizeof *indexes != 0 ||
        offset + count * sizeof *indexes > block->second.index_bytes) {
        return nullptr;
    }
    return reinterpret_cast<std::uint64_t*>(at + block->second.index_bytes);
}

GenerationsBeside::GenerationsBeside(const std::int64_t* address, std::uint64_t handle) {
    const auto block = live_block_around(reinterpret_cast<std::uintptr_t>(address));
    if (block == live_blocks().end() || block->second.handle != handle) return;
    first_ = block->first;
    index_bytes_ = block->second.index_bytes;
}

std::uint64_t GenerationsBeside::of(const std::int64_t* address) const {
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    const std::size_t offset = at - first_;
    if (offset >= index_bytes_ || offset % sizeof *address != 0) return 0;
    return *reinterpret_cast<const std::uint64_t*>(at + index_bytes_);
}

}  // namespace mpbuffer::bindings
