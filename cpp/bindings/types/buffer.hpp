// The two heap types whose methods are the hot calls: add, sample, sample_uniform,
// update_priorities. The public Python classes inherit them and do not override these methods.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "buffer/replay_buffer.hpp"
#include "convert/field_rules.hpp"
#include "convert/generations.hpp"
#include "convert/recycled_memory.hpp"
#include "write/row_writer.hpp"

namespace mpbuffer::bindings {

// As mpbuffer/buffer/nstep.py has checked it: steps, gamma, names of rewards and of what is taken
// from the last step, and the name of the discount or "".
using NstepNames = std::tuple<std::uint64_t, double, std::vector<std::string>,
                              std::vector<std::string>, std::string>;

constexpr std::size_t no_field = static_cast<std::size_t>(-1);

// What a Python buffer object holds. Without a core buffer before it is opened.
struct BufferState {
    std::unique_ptr<ReplayBuffer> core;
    std::vector<FieldRule> rules;
    bool strict = false;
    std::uint64_t handle = 0;          // this object's own number, for the blocks of its samples
    std::uint64_t episode_length = 0;  // rows added through this object since on_episode_end
    std::set<std::string> warned;      // names of unknown fields already told
    std::optional<NstepNames> nstep;
    std::unique_ptr<StagedRows> steps;  // of n-step rows: what add() has not yet written
    std::size_t computed = no_field;    // the place of their discount, which add() does not take
    std::shared_ptr<RecycledMemory> sample_memory =
        std::make_shared<RecycledMemory>();  // of sample(); none once the buffer is closed
};

struct BufferObject {
    PyObject_HEAD BufferState* state;
};

// The buffer behind any Python object; TypeError if it is none.
BufferObject& buffer_object(pybind11::handle object);

// The state behind `object`; BufferClosed if it was never opened.
BufferState& state_of(pybind11::handle object);
BufferState& state_of(BufferObject& object);

// The exponent of importance weights: finite and at least 0. Raises TypeError, ValueError.
double convert_beta(PyObject* value);

// Slots in [0, size) out of any array of integers, and, where they lie in a live sample's memory,
// the generations of the rows meant: of other slots never. Raises TypeError, IndexError.
struct ConvertedIndexes {
    std::vector<std::int64_t> slots;
    std::vector<std::uint64_t> generations;  // 0 where not known
};
ConvertedIndexes convert_indexes(const BufferState& state, const char* verb, PyObject* value);

// Creates the types and adds them to the module.
void add_buffer_types(pybind11::module_& module);

}  // namespace mpbuffer::bindings
