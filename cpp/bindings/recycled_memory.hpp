// Memory of a sample's large arrays, used again for later samples.
//
// A large array that is freed gives its pages back to the kernel, which clears them for the next
// one: for Atari rows that takes as long as copying the rows. Here the memory of as many bytes as
// one sample takes is kept instead. Everything needs the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "big_memory.hpp"
#include "numpy_api.hpp"

namespace mpbuffer::bindings {

// An array of NumPy's own memory, or of `data`; its values are whatever is there.
pybind11::object fresh_array(PyArray_Descr* descr, int ndim, const npy_intp* dims,
                             void* data = nullptr);

class RecycledMemory : public std::enable_shared_from_this<RecycledMemory> {
  public:
    // What fresh arrays of NumPy's own do as well for.
    static constexpr std::size_t least_bytes = std::size_t{1} << 20;

    // The bytes of arrays that one sample takes: what is kept at most.
    void keep_at_most(std::size_t bytes);

    // An array whose values are whatever was there before; of NumPy's own memory if it is small.
    pybind11::object array(PyArray_Descr* descr, int ndim, const npy_intp* dims);

  private:
    struct Block {
        PrivateMemory memory;
        std::size_t bytes;
    };
    struct Loan;
    static void take_back(PyObject* capsule);
    std::unique_ptr<Block> block_of(std::size_t bytes);

    std::vector<std::unique_ptr<Block>> spare_;  // oldest first
    std::size_t spare_bytes_ = 0;
    std::size_t most_bytes_ = 0;
};

}  // namespace mpbuffer::bindings
