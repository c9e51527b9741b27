// Memory of arrays, reused for later arrays once nothing references it.
//
// Freeing a large array returns its pages to the kernel, which clears them before their next use:
// for Atari rows that takes as long as copying the rows. Here an array's base is a capsule, which
// every view, tensor and memoryview of the array keeps alive, however NumPy shortens the chain of
// bases. The capsule's destructor returns the block for a later array object; what a program sets
// on an array (shape, dtype, flags) ends with that object.
//
// All calls need the GIL. array() may run Python code, which may call the same object.
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
    // Page-locked memory from the module torch, for small arrays too. A block is reused only after
    // nothing references it and the GPU has finished the work that was queued in the current CUDA
    // stream until then. A block that is dropped goes back to torch.
    explicit RecycledMemory(pybind11::object torch) : torch_(std::move(torch)) {}

    // How much memory may be kept that no array uses.
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
