// Slots as they are stored, in arrays that Python has made: read for a snapshot, and written back.
// ValueError if an array does not suit; mpbuffer/buffer/snapshots.py says what is in them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "state.hpp"

namespace mpbuffer::bindings {

// Position, clear_before, max_priority, and the positions of the source rings.
pybind11::tuple counters(BufferState& state);
// Four words, or None.
pybind11::object generator_state(const BufferState& state);
// `fields`: an array for each field, or none; `births` and `leaves`: an array or None.
void read_stored(const BufferState& state, std::uint64_t first, const pybind11::list& fields,
                 const pybind11::object& births, const pybind11::object& seqs,
                 const pybind11::object& leaves);
void read_frames(const BufferState& state, unsigned ring, std::uint64_t first,
                 const pybind11::object& frames, const pybind11::object& seqs);

void restore_counters(BufferState& state, std::uint64_t position, std::uint64_t cleared,
                      const std::vector<std::uint64_t>& sources);
void restore_stored(BufferState& state, std::uint64_t first, const pybind11::list& fields,
                    const pybind11::object& births, const pybind11::object& seqs,
                    const pybind11::object& leaves);
void restore_frames(BufferState& state, unsigned ring, std::uint64_t first,
                    const pybind11::object& frames, const pybind11::object& seqs);
// Adds whole rows with these leaves, or None.
void add_with_leaves(BufferState& state, const pybind11::dict& rows,
                     const pybind11::object& leaves);
// Shows a restored buffer under its name. With the largest priority, and the generator's state or
// None.
void publish(BufferState& state, double max_priority, const pybind11::object& generator);

}  // namespace mpbuffer::bindings
