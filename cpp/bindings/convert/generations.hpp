// Which rows an array of indexes means.
//
// A sample's indexes and the generations (seqs) of the rows drawn lie in one block of memory, which
// the array's base keeps alive. An update recognises an array, slice or tensor of that memory by
// its address, and so finds the generation of each index without the user's help. Copies are not
// recognised. Calls that look up blocks need the GIL.
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

// The live block of a handle in which `address` lies, if any. Construction needs the GIL; an array
// over the block keeps it alive while its generations are read without the GIL.
class GenerationsBeside {
  public:
    GenerationsBeside() = default;  // of no block
    GenerationsBeside(const std::int64_t* address, std::uint64_t handle);

    // The generation of the index at `address`; 0 where the block has none.
    std::uint64_t of(const std::int64_t* address) const;

  private:
    std::uintptr_t first_ = 0;
    std::size_t index_bytes_ = 0;
};

}  // namespace mpbuffer::bindings
