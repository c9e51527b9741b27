// Which rows an array of indexes means.
//
// A sample's indexes and the generations (seqs) of the rows drawn lie in one block of memory, which
// the array's base keeps alive. An array, slice or tensor that shares that memory is recognised by
// its address, so that an update finds the generation of each index with nothing asked of the user.
// A copy is not. Everything here needs the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>

namespace mpbuffer::bindings {

struct SampleBlock {
    std::int64_t* indexes;
    std::uint64_t* generations;
    pybind11::object owner;  // frees the block

    static SampleBlock allocate(std::size_t count, std::uint64_t handle);
    // A new (count,) int64 array over the indexes.
    pybind11::object to_array(std::size_t count) const;
};

// Where the generations of `count` indexes from `indexes` on belong, if these lie in a live block
// of that handle; nullptr if in none. ValueError if in another buffer's.
std::uint64_t* generations_beside(std::int64_t* indexes, std::size_t count, std::uint64_t handle);

// The generation of the index at `address`, if it lies in a live block of that handle; else 0.
class GenerationFinder {
  public:
    explicit GenerationFinder(std::uint64_t handle) : handle_(handle) {}
    std::uint64_t find(const std::int64_t* address);

  private:
    std::uint64_t handle_;
    std::uintptr_t first_ = 0;
    std::uintptr_t last_ = 0;
    std::size_t distance_ = 0;
};

}  // namespace mpbuffer::bindings
