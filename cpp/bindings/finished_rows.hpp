// Writing the finished rows of an n-step window to the buffer: of the buffer's own add() and of
// step writers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "state.hpp"
#include "write/row_writer.hpp"

namespace mpbuffer::bindings {

struct WrittenRows {
    std::uint64_t rows = 0;
    std::uint64_t first_slot = 0;
};
// Writes all finished rows. `priorities_of`, unless null, is called for their priorities. After an
// exception, rows that are not written stay staged.
WrittenRows write_finished(BufferState& buffer, StagedRows& staged, PyObject* priorities_of);

}  // namespace mpbuffer::bindings
