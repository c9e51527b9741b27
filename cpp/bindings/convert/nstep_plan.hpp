// How rows of a buffer's fields are folded into n-step rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "convert/field_rules.hpp"
#include "write/step_window.hpp"

namespace mpbuffer::bindings {

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
NstepPlan plan_nstep(const std::vector<FieldRule>& rules, std::size_t stride,
                     const NstepNames* names);

}  // namespace mpbuffer::bindings
