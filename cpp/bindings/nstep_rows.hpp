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
#include "write/staging.hpp"

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

// Without names, each step is a row.
NstepPlan plan_nstep(const std::vector<FieldRule>& rules, std::size_t row_bytes,
                     const NstepNames* names);

// The fields done, terminated and truncated, as far as they are one number each.
EpisodeFlags episode_flags(const std::vector<FieldRule>& rules);

// Writes all finished rows. `priorities_of`, unless null, is called for the priorities of n-step
// rows. After an exception, rows that are not written stay staged.
WrittenRows write_finished(BufferState& buffer, Staging& staged, PyObject* priorities_of);

}  // namespace mpbuffer::bindings
