// What a Python buffer object holds.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "buffer/replay_buffer.hpp"
#include "convert/field_rules.hpp"
#include "convert/recycled_memory.hpp"
#include "nstep_rows.hpp"
#include "sequences.hpp"
#include "write/staging.hpp"

namespace mpbuffer::bindings {

struct BufferState {
    std::unique_ptr<ReplayBuffer> core;  // never null once a buffer object has this state
    std::vector<FieldRule> rules;
    bool strict = false;
    std::uint64_t handle;              // this object's own number, for the blocks of its samples
    std::uint64_t episode_length = 0;  // rows added through this object since on_episode_end
    std::set<std::string> warned;      // names of unknown fields already told
    bool warned_of_frames = false;     // that none are shared
    std::optional<NstepNames> nstep;
    std::optional<SequencePlan> sequences;
    std::unique_ptr<Staging> steps;   // of n-step rows and sequences: what is not yet written
    std::size_t computed = no_field;  // the place of their discount, which add() does not take
    std::shared_ptr<RecycledMemory> sample_memory =
        std::make_shared<RecycledMemory>();  // of sample(); none once the buffer is closed

    BufferState();
    // What a sample has.
    const std::vector<FieldRule>& sampled() const { return sequences ? sequences->sampled : rules; }
};

struct BufferObject {
    PyObject_HEAD BufferState* state;  // null before the buffer is opened
};

extern PyTypeObject* buffer_type;  // the base of all buffers, once add_buffer_types() has run

// The buffer behind any Python object; TypeError if it is none.
BufferObject& buffer_object(pybind11::handle object);

// The state behind `object`; BufferClosed if it was never opened, or was closed.
BufferState& state_of(pybind11::handle object);
BufferState& state_of(BufferObject& object);

}  // namespace mpbuffer::bindings
