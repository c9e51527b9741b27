#include "finished_rows.hpp"

#include <cstring>
#include <utility>

#include "convert/field_arguments.hpp"
#include "convert/output_batch.hpp"
#include "errors.hpp"
#include "os/fork_watch.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

// Calls the function for the priorities of finished rows.
void ask_for_priorities(BufferState& state, RowBatch& batch, PyObject* priorities_of) {
    const std::size_t n = batch.rows();
    const OutputArrays output(state, n);
    for (std::size_t i = 0; i < n; ++i) {
        for (const FieldTarget& field : output.targets) {
            std::memcpy(field.values + i * field.bytes, batch.record(i) + field.offset,
                        field.bytes);
        }
    }
    const py::dict rows = output.to_dict(state);
    const py::object said =
        owned(running_python([&] { return PyObject_CallOneArg(priorities_of, rows.ptr()); }));
    ConvertedPriorities priorities;
    convert_priorities(state, "cannot take what priorities() returned", said.ptr(), n, priorities);
    const std::span<const double> all = priorities.all(n);
    for (std::size_t i = 0; i < n; ++i) batch.set_priority(i, all[i]);
}

// Thrown in a child that was forked while rows were being written: they are the parent's.
struct RowsOfParent {};

}  // namespace

WrittenRows write_finished(BufferState& buffer, StagedRows& staged, PyObject* priorities_of) {
    ReplayBuffer& core = *buffer.core;
    if (staged.finished() == 0) return {};
    RowBatch batch = staged.take();
    WrittenRows outcome;
    const auto give_back = [&] {
        outcome.rows = batch.written;
        staged.give_back(std::move(batch));
    };
    if (batch.rows() == 0) {  // another thread was faster
        give_back();
        return {};
    }
    const auto require_own_rows = [&batch] {
        if (batch.generation != fork_generation()) throw RowsOfParent();
    };
    try {
        if (priorities_of != nullptr) ask_for_priorities(buffer, batch, priorities_of);
        require_own_rows();
        outcome.first_slot = write_rows(core, batch, [&] {
            run_signal_handlers();
            require_own_rows();
        });
    } catch (const RowsOfParent&) {
        return {};
    } catch (...) {
        give_back();
        throw;
    }
    give_back();
    return outcome;
}

}  // namespace mpbuffer::bindings
