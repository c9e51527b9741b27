// Memory of arrays, reused for later arrays once nothing references it.
//
// A large array that is freed gives its pages back to the kernel, which clears them for the next
// one: for Atari rows that takes as long as copying the rows. Here an array's base is a capsule,
// which every view, tensor and memoryview of the array keeps alive, however NumPy shortens the
// chain of bases. The capsule's destructor gives the block back, to whatever array object comes
// next: what a program sets on an array of its own (shape, dtype, flags) ends with that object.
//
// Everything needs the GIL. array() may run Python code, which may call the same object.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <list>
#include <memory>

#include "numpy_api.hpp"
#include "os/pages.hpp"

namespace mpbuffer::bindings {

// An array of NumPy's own memory, or of `data`; its values are whatever is there.
pybind11::object fresh_array(PyArray_Descr* descr, int ndim, const npy_intp* dims,
                             void* data = nullptr);

class RecycledMemory : public std::enable_shared_from_this<RecycledMemory> {
  public:
    // Smaller arrays have NumPy's own memory, which is as fast.
    static constexpr std::size_t least_bytes = std::size_t{64} << 10;

    RecycledMemory() = default;
    // Page-locked memory from the module torch, small arrays included. A block is reused only after
    // the GPU has done what the current CUDA stream had been asked to do when nothing referenced
    // the block any more. A block that is dropped is torch's, which follows its own rules.
    explicit RecycledMemory(pybind11::object torch) : torch_(std::move(torch)) {}

    // How much memory is kept that no array has.
    void keep_at_most(std::size_t bytes);

    // An array whose values are whatever was there before.
    pybind11::object array(PyArray_Descr* descr, int ndim, const npy_intp* dims);

  private:
    struct Block {
        std::size_t bytes = 0;
        PrivateMemory own;
        pybind11::object pinned;  // a tensor, instead of `own`
        std::byte* data = nullptr;
        pybind11::object copied;  // the CUDA event that a pinned block is reused after
    };
    using Blocks = std::list<Block>;  // one can be moved to another list without allocating
    struct Loan;
    static void take_back(PyObject* capsule) noexcept;
    std::size_t bytes_kept() const;
    void mark_returned();
    bool may_be_reused(const Block& block) const;
    Blocks spare_block(std::size_t bytes);
    Blocks new_block(std::size_t bytes) const;

    pybind11::object torch_;
    std::size_t most_bytes_ = 0;
    // Both: the block that came back first is first.
    Blocks returned_;
    Blocks spare_;  // with an event, where they are pinned
};

}  // namespace mpbuffer::bindings
