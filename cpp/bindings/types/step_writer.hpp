// The type behind mpbuffer.StepWriter, whose add is a hot call, and what a buffer with n-step rows
// shares with it.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "types/buffer.hpp"
#include "write/row_writer.hpp"

namespace mpbuffer::bindings {

struct FoldPlan {
    NstepRule rule;
    std::size_t computed;  // the place of the discount's field, or no_field
};
// How rows of these fields are folded; without names: each step is a row. The flags are the fields
// done, terminated and truncated, as far as they are one number each.
FoldPlan plan_fold(const std::vector<FieldRule>& rules, std::size_t stride,
                   const NstepNames* names);

struct WrittenRows {
    std::uint64_t rows = 0;
    std::uint64_t first_slot = 0;
};
// Writes all finished rows; `priorities_of`, if not null, is called for their priorities. After an
// exception those that are not written are staged again.
WrittenRows write_staged(BufferState& buffer, StagedRows& staged, PyObject* priorities_of);

void add_step_writer_type(pybind11::module_& module);

}  // namespace mpbuffer::bindings
