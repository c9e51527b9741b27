// Sequences: how a buffer's steps make them, and how they are sampled.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <tuple>
#include <vector>

#include "convert/field_rules.hpp"
#include "format/row_layout.hpp"
#include "write/episode_sequences.hpp"

namespace mpbuffer::bindings {

// As mpbuffer/buffer/sequences.py has checked it: the most steps, the steps from one to the next,
// whether shorter ones are padded, the names of the fields of the first step, the burn-in, and
// whether each is an episode, so that a batch is cut to its longest.
using SequenceNames =
    std::tuple<std::size_t, std::size_t, bool, std::vector<std::string>, std::size_t, bool>;

struct SequencePlan {
    SequenceNames names;
    SequenceRule rule;
    SequenceShape shape;
    std::vector<FieldRule> sampled;  // what a sample has: the fields, "mask" and "is_first"

    bool of_episodes() const { return std::get<5>(names); }
};

SequencePlan plan_sequences(const std::vector<FieldRule>& rules, std::size_t step_bytes,
                            const SequenceNames& names);

// Replaces the arrays of whole episodes in the batch by views that end with the longest one. `time`
// is the axis of the steps.
void cut_to_longest(const pybind11::dict& batch, const std::vector<FieldRule>& sampled,
                    std::size_t time);

}  // namespace mpbuffer::bindings
