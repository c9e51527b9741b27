#include "snapshot.hpp"

#include <pybind11/stl.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "convert/field_arguments.hpp"
#include "errors.hpp"
#include "numpy_api.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

// Where the array's bytes lie; null for None.
template <class Value>
Value* memory(const py::object& array, std::size_t bytes) {
    if (array.is_none()) return nullptr;
    const bool suits = PyArray_Check(array.ptr()) != 0 && PyArray_ISCARRAY(array_of(array)) &&
                       static_cast<std::size_t>(PyArray_NBYTES(array_of(array))) == bytes;
    if (!suits) {
        throw_python(PyExc_ValueError,
                     "an array of slots does not suit: expected a writable "
                     "C-contiguous one of " +
                         std::to_string(bytes) + " bytes");
    }
    return values_of<Value>(array);
}

std::span<std::uint64_t> seqs_of(const py::object& array) {
    if (PyArray_Check(array.ptr()) == 0 || PyArray_TYPE(array_of(array)) != NPY_UINT64) {
        throw_python(PyExc_ValueError, "seqs do not suit: expected an array of uint64");
    }
    const auto count = static_cast<std::size_t>(PyArray_SIZE(array_of(array)));
    return {memory<std::uint64_t>(array, count * sizeof(std::uint64_t)), count};
}

std::size_t frame_bytes(const BufferState& state, unsigned ring) {
    const std::vector<std::uint64_t>& bytes = state.core->row_layout().source_bytes();
    if (ring == 0 || ring > bytes.size()) {
        throw IndexOutOfRange("'" + state.core->name() + "' has no source ring " +
                              std::to_string(ring));
    }
    return bytes[ring - 1];
}

// The places of each field's values, or of the positions of its frames.
template <class Add>
void for_each_field(const BufferState& state, const py::list& fields, std::size_t count,
                    Add&& add) {
    const std::vector<StoredField>& stored = state.core->row_layout().fields();
    if (fields.size() != stored.size()) {
        throw_python(PyExc_ValueError, "got arrays of " + std::to_string(fields.size()) +
                                           " fields, expected " + std::to_string(stored.size()));
    }
    for (std::size_t i = 0; i < stored.size(); ++i) {
        const StoredField& field = stored[i];
        const std::size_t bytes = field.shared() ? 8 * field.cut.planes : field.bytes;
        add(memory<std::byte>(fields[i], count * bytes), field.stored, bytes);
    }
}

std::uint64_t* births_of(const BufferState& state, const py::object& births, std::size_t count) {
    return memory<std::uint64_t>(births,
                                 count * 8 * state.core->row_layout().source_bytes().size());
}

}  // namespace

py::tuple counters(BufferState& state) {
    const SavedCounters saved = state.core->counters();
    return py::make_tuple(saved.rows.position, saved.rows.cleared, saved.max_priority,
                          saved.sources);
}

py::object generator_state(const BufferState& state) {
    return py::cast(state.core->generator_state());
}

void read_stored(const BufferState& state, std::uint64_t first, const py::list& fields,
                 const py::object& births, const py::object& seqs, const py::object& leaves) {
    const std::span<std::uint64_t> places = seqs_of(seqs);
    std::vector<FieldTarget> targets;
    if (!fields.empty()) {
        for_each_field(state, fields, places.size(),
                       [&](std::byte* values, std::size_t offset, std::size_t bytes) {
                           targets.push_back({values, offset, bytes});
                       });
    }
    state.core->read_stored({first, targets, births_of(state, births, places.size()), places,
                             memory<float>(leaves, places.size() * sizeof(float))});
}

void read_frames(const BufferState& state, unsigned ring, std::uint64_t first,
                 const py::object& frames, const py::object& seqs) {
    const std::span<std::uint64_t> places = seqs_of(seqs);
    auto* const into = memory<std::byte>(frames, places.size() * frame_bytes(state, ring));
    state.core->read_frames(ring, first, into, places);
}

void restore_counters(BufferState& state, std::uint64_t position, std::uint64_t cleared,
                      const std::vector<std::uint64_t>& sources) {
    state.core->restore_counters({{cleared, position}, 0, sources});
}

void restore_stored(BufferState& state, std::uint64_t first, const py::list& fields,
                    const py::object& births, const py::object& seqs, const py::object& leaves) {
    const std::span<const std::uint64_t> places = seqs_of(seqs);
    std::vector<FieldSource> sources;
    for_each_field(state, fields, places.size(),
                   [&](const std::byte* values, std::size_t offset, std::size_t bytes) {
                       sources.push_back({values, bytes, offset, bytes});
                   });
    state.core->restore_rows({first, sources, births_of(state, births, places.size()), places,
                              memory<const float>(leaves, places.size() * sizeof(float))});
}

void restore_frames(BufferState& state, unsigned ring, std::uint64_t first,
                    const py::object& frames, const py::object& seqs) {
    const std::span<const std::uint64_t> places = seqs_of(seqs);
    const auto* const from =
        memory<const std::byte>(frames, places.size() * frame_bytes(state, ring));
    state.core->restore_frames(ring, first, from, places);
}

void add_with_leaves(BufferState& state, const py::dict& rows, const py::object& leaves) {
    const FieldArguments given = fields_of(state, rows);
    const auto* const first = memory<const float>(leaves, given.rows() * sizeof(float));
    state.core->add(given.rows(), given.sources(), first, 0, run_signal_handlers);
}

void publish(BufferState& state, double max_priority, const py::object& generator) {
    const auto words = generator.cast<std::optional<Generator::State>>();
    state.core->raise_max_priority(max_priority);
    if (words) state.core->restore_generator(*words);
    state.core->publish();
}

}  // namespace mpbuffer::bindings
