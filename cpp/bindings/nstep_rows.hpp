// N-step rows: how a buffer's fields are folded, and the writing of finished rows.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "convert/field_rules.hpp"
#include "write/row_writer.hpp"

namespace mpbuffer::bindings {

struct BufferState;

// As mpbuffer/buffer/nstep.py has checked it: steps, gamma, names of rewards and of what is taken
// from the last step, and the name of the discount or "".
using NstepNames = std::tuple<std::uint64_t, double, std::vector<std::string>,
                              std::vector<std::string>, std::string>;

constexpr std::size_t no_field = static_cast<std::size_t>(-1);

struct NstepPlan {
    NstepRule rule;
    std::size_t computed;  // the index of the discount's field, or no_field
};

// Without names, each step is a row. The flags are the fields done, terminated and truncated, as
// far as they are one number each.
NstepPlan plan_nstep(const std::vector<FieldRule>& rules, std::size_t row_bytes,
                     const NstepNames* names);

struct WrittenRows {
    std::uint64_t rows = 0;
    std::uint64_t first_slot = 0;
};
// Writes all finished rows. `priorities_of`, unless null, is called for their priorities. After an
// exception, rows that are not written stay staged.
WrittenRows write_finished(BufferState& buffer, StagedRows& staged, PyObject* priorities_of);

}  // namespace mpbuffer::bindings
