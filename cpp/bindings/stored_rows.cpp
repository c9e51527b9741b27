#include "stored_rows.hpp"

#include <algorithm>
#include <optional>
#include <vector>

#include "base/error.hpp"
#include "base/guard.hpp"
#include "convert/field_arguments.hpp"
#include "convert/output_batch.hpp"
#include "convert/sample_arguments.hpp"
#include "numpy_api.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

template <class Value>
py::object array_with(const std::vector<Value>& values, int type_number) {
    py::object result = new_array(values.size(), type_number);
    auto* const first = values_of<Value>(result);
    const CoreCall call;
    let_others_copy(values.size() * sizeof(Value));
    std::copy(values.begin(), values.end(), first);
    return result;
}

py::dict read_all(BufferState& state, bool shuffle, RowMarks* marks) {
    std::optional<OutputArrays> output;
    std::size_t room = 0;
    const auto make_room = [&](std::size_t rows) -> std::span<const FieldTarget> {
        room = rows;
        return output.emplace(state, rows).targets;
    };
    const std::size_t rows = state.core->read_all(shuffle, make_room, run_signal_handlers, marks);
    py::dict all = output->to_dict(state);
    if (rows != room) {
        const py::slice present(py::int_(0), py::int_(rows), py::none());
        for (const FieldRule& rule : state.sampled()) all[rule.name] = all[rule.name][present];
    }
    if (state.sequences && state.sequences->of_episodes()) {
        cut_to_longest(all, state.sampled(), 1);
    }
    return all;
}

py::dict read_rows(BufferState& state, const ConvertedIndexes& indexes,
                   ReplayBuffer::WithoutRow without_row) {
    const OutputArrays output(state, indexes.slots.size());
    const std::vector<std::uint64_t> slots(indexes.slots.begin(), indexes.slots.end());
    if (state.core->read_slots(slots, output.targets, run_signal_handlers, without_row) <
        slots.size()) {
        throw IndexOutOfRange("cannot read rows of '" + state.core->name() +
                              "': one of these slots holds no complete row");
    }
    return output.to_dict(state);
}

}  // namespace

py::dict all_rows(BufferState& state, bool shuffle) { return read_all(state, shuffle, nullptr); }

py::tuple marked_rows(BufferState& state) {
    RowMarks marks;
    const py::dict rows = read_all(state, false, &marks);
    return py::make_tuple(rows, array_with(marks.seqs, NPY_UINT64),
                          state.core->prioritized() ? array_with(marks.priorities, NPY_FLOAT64)
                                                    : py::object(py::none()));
}

void add_rows(BufferState& state, const py::dict& rows, const py::object& priorities,
              const py::object& largest, std::uint64_t ahead) {
    const FieldArguments given = fields_of(state, rows);
    const std::uint64_t n = given.rows();
    ConvertedPriorities converted;
    ConvertedPriorities most;
    if (!priorities.is_none()) {
        convert_priorities(state, "cannot add priorities", priorities.ptr(), n, converted);
        convert_priorities(state, "cannot set the largest priority", largest.ptr(), 1, most);
    }
    ReplayBuffer& core = *state.core;
    for (const std::uint64_t count : {std::min(ahead, n), n}) {
        if (count == 0) continue;
        core.add(count, given.sources(), priorities.is_none() ? nullptr : converted.leaves.data(),
                 std::max(converted.largest, most.largest), run_signal_handlers);
    }
}

py::dict rows_or_zeros_at(BufferState& state, const py::object& indexes) {
    return read_rows(state, convert_indexes(state, "read rows", indexes.ptr(), true),
                     ReplayBuffer::WithoutRow::zeros);
}

py::dict rows_at(BufferState& state, const py::object& indexes) {
    return read_rows(state, convert_indexes(state, "read rows", indexes.ptr()),
                     ReplayBuffer::WithoutRow::left_out);
}

py::object priorities(BufferState& state, const py::object& indexes) {
    const ConvertedIndexes converted = convert_indexes(state, "get priorities", indexes.ptr());
    std::vector<double> all(converted.slots.size());
    {
        const CoreCall call;
        state.core->read_priorities(converted.slots, all);
    }
    return array_with(all, NPY_FLOAT64);
}

py::object generations(BufferState& state, const py::object& indexes) {
    ConvertedIndexes converted = convert_indexes(state, "get generations", indexes.ptr());
    state.core->find_generations(converted.slots, converted.generations);
    return array_with(converted.generations, NPY_UINT64);
}

py::object leaves(const BufferState& state) {
    return array_with(state.core->leaves(), NPY_FLOAT32);
}

}  // namespace mpbuffer::bindings
