// Stored rows as dicts of arrays: all of them, those in given slots, and rows that come back from a
// file. Every function may run signal handlers between its steps; any process may call it, but for
// generations(), which is the learner's.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "state.hpp"

namespace mpbuffer::bindings {

pybind11::dict all_rows(BufferState& state, bool shuffle);
// All rows, their seqs, and their priorities or None.
pybind11::tuple marked_rows(BufferState& state);
// Adds rows as they are: no n-step rows are made of them, and the discount is a field like others.
// The first `ahead` of them are added twice: before all others, to move on by so many slots.
void add_rows(BufferState& state, const pybind11::dict& rows, const pybind11::object& priorities,
              const pybind11::object& largest, std::uint64_t ahead);

// The rows in these slots; IndexOutOfRange if one of them holds none.
pybind11::dict rows_at(BufferState& state, const pybind11::object& indexes);
// As cpprb: negative indexes count from the end, and a slot without a row gives zeros.
pybind11::dict rows_or_zeros_at(BufferState& state, const pybind11::object& indexes);
pybind11::object priorities(BufferState& state, const pybind11::object& indexes);
pybind11::object generations(BufferState& state, const pybind11::object& indexes);
pybind11::object leaves(const BufferState& state);

}  // namespace mpbuffer::bindings
