#include <algorithm>
#include <array>
#include <string>

#include "convert/field_arguments.hpp"
#include "convert/output_batch.hpp"
#include "convert/sample_arguments.hpp"
#include "docstrings.hpp"
#include "errors.hpp"
#include "nstep_rows.hpp"
#include "state.hpp"
#include "types/heap_type.hpp"
#include "types/registrations.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

// Sorts positional and keyword arguments into places. `count` parameters, the first `positional` of
// which may be given by position.
template <std::size_t count>
std::array<PyObject*, count> arguments(const char* method,
                                       const std::array<PyObject*, count>& known,
                                       std::size_t positional, PyObject* const* args,
                                       Py_ssize_t nargs, PyObject* kwnames) {
    std::array<PyObject*, count> values{};
    if (static_cast<std::size_t>(nargs) > positional) {
        throw_python(PyExc_TypeError, std::string(method) + "() takes at most " +
                                          std::to_string(positional) +
                                          " positional arguments, got " + std::to_string(nargs));
    }
    std::copy_n(args, nargs, values.begin());
    const Py_ssize_t named = kwnames == nullptr ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < named; ++i) {
        PyObject* name = PyTuple_GET_ITEM(kwnames, i);
        std::size_t place = 0;
        while (place < count && !same_name(known[place], name)) ++place;
        if (place == count) {
            throw_python(PyExc_TypeError,
                         std::string(method) + "() has no argument '" + text_of(name) + "'");
        }
        if (values[place] != nullptr) {
            throw_python(PyExc_TypeError,
                         std::string(method) + "() got '" + text_of(name) + "' twice");
        }
        values[place] = args[nargs + i];
    }
    return values;
}

// The truth of an argument; false where it is not given.
bool is_true(PyObject* value) {
    const int truth =
        value == nullptr ? 0 : running_python([value] { return PyObject_IsTrue(value); });
    if (truth < 0) throw py::error_already_set();
    return truth != 0;
}

// Takes steps of n-step rows or sequences, and writes those that are finished.
PyObject* add_steps(BufferState& state, const FieldArguments& given, const double* priorities,
                    const double* td) {
    if (given.rows() == 0) Py_RETURN_NONE;
    Steps steps{given.rows(), given.sources()};
    steps.priorities = priorities;
    steps.td = td;
    state.steps->push(steps);
    state.episode_length += given.rows();
    const WrittenRows written = write_finished(state, *state.steps, nullptr);
    if (written.rows == 0) Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(written.first_slot);
}

PyObject* add(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    return guarded([&]() -> PyObject* {
        BufferState& state = state_of(self);
        ReplayBuffer& core = *state.core;
        PyObject* priorities = nullptr;
        SequenceArguments of_sequences;
        const FieldArguments fields(
            state, state.computed, args, nargs, kwnames, [&](PyObject* name, PyObject* value) {
                if (state.sequences) return of_sequences.take(state, name, value);
                if (!core.prioritized() || !same_name(names().priorities, name)) return false;
                priorities = value;
                return true;
            });
        const std::uint64_t n = fields.rows();
        if (n > core.capacity() && !state.sequences) {
            throw_python(PyExc_IndexError, "cannot add " + std::to_string(n) + " rows to '" +
                                               core.name() + "': its size is " +
                                               std::to_string(core.capacity()));
        }
        ConvertedPriorities given;
        const bool with_priorities = priorities != nullptr && priorities != Py_None;
        if (with_priorities)
            convert_priorities(state, "cannot add priorities", priorities, n, given);
        if (state.steps) [[unlikely]] {
            RowNumbers td;
            const double* const first_td = of_sequences.convert(n, td);
            (void)state_of(self);  // the code of values that were converted may have closed it
            return add_steps(state, fields, with_priorities ? given.first() : nullptr, first_td);
        }
        if (n == 0) return PyLong_FromUnsignedLongLong(core.next_slot());

        const std::uint64_t first =
            core.add(n, fields.sources(), with_priorities ? given.leaves.data() : nullptr,
                     given.largest, run_signal_handlers);
        state.episode_length += n;
        return PyLong_FromUnsignedLongLong(first);
    });
}

// Uniform draws; any process. A uniform buffer's method of that kind is called sample.
template <bool called_sample>
PyObject* sample_uniform(PyObject* self, PyObject* const* args, Py_ssize_t nargs,
                         PyObject* kwnames) {
    constexpr const char* method = called_sample ? "sample" : "sample_uniform";
    return guarded([&]() -> PyObject* {
        BufferState& state = state_of(self);
        ReplayBuffer& core = *state.core;
        const auto given = arguments<4>(
            method, {names().batch_size, names().return_indexes, names().out, names().time_major},
            1, args, nargs, kwnames);
        const std::size_t count = convert_batch_size(method, given[0]);
        const BatchParts parts{false, is_true(given[1]), false, is_true(given[3])};
        OutputBatch batch(state, count, parts, given[2]);
        core.gather_uniform(count, batch.target());
        return batch.take_dict();
    });
}

// Stratified proportional draws; the learner.
PyObject* sample(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    return guarded([&]() -> PyObject* {
        BufferState& state = state_of(self);
        ReplayBuffer& core = *state.core;
        const auto given =
            arguments<6>("sample",
                         {names().batch_size, names().beta, names().out, names().weight_norm,
                          names().return_probabilities, names().time_major},
                         2, args, nargs, kwnames);
        const std::size_t count = convert_batch_size("sample", given[0]);
        const Weighting weighting(given[1] == nullptr ? 0.4 : convert_beta(given[1]),
                                  convert_weight_norm(given[3]));
        const BatchParts parts{true, true, is_true(given[4]), is_true(given[5])};
        OutputBatch batch(state, count, parts, given[2]);
        core.gather(count, weighting, batch.target());
        return batch.take_dict();
    });
}

PyObject* update_priorities(PyObject* self, PyObject* const* args, Py_ssize_t nargs,
                            PyObject* kwnames) {
    return guarded([&]() -> PyObject* {
        BufferState& state = state_of(self);
        ReplayBuffer& core = *state.core;
        const auto given = arguments<3>("update_priorities",
                                        {names().indexes, names().priorities, names().generations},
                                        3, args, nargs, kwnames);
        for (std::size_t i = 0; i < 2; ++i) {
            if (given[i] == nullptr || given[i] == Py_None) {
                throw_python(PyExc_TypeError, std::string("cannot update priorities: ") +
                                                  (i == 0 ? "indexes" : "priorities") +
                                                  " are missing or None");
            }
        }
        ConvertedIndexes indexes = convert_indexes(state, "update priorities", given[0]);
        const std::size_t n = indexes.slots.size();
        ConvertedPriorities priorities;
        convert_priorities(state, "cannot update priorities", given[1], n, priorities);
        if (given[2] != nullptr && given[2] != Py_None) {
            convert_generations(given[2], indexes);
        }
        return PyLong_FromUnsignedLongLong(
            core.update(indexes.slots, indexes.generations, priorities.all(n), priorities.leaves));
    });
}

void deallocate(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    // A running error must survive what closing the buffer does.
    PyObject* kind = nullptr;
    PyObject* value = nullptr;
    PyObject* trace = nullptr;
    PyErr_Fetch(&kind, &value, &trace);
    delete reinterpret_cast<BufferObject*>(self)->state;
    PyErr_Restore(kind, value, trace);
    type->tp_free(self);
    Py_DECREF(type);
}

py::object make_type(const char* name, const char* doc, PyMethodDef* methods, py::handle base) {
    PyType_Slot slots[] = {{Py_tp_doc, const_cast<char*>(doc)},
                           {Py_tp_new, reinterpret_cast<void*>(new_without_state<BufferObject>)},
                           {Py_tp_dealloc, reinterpret_cast<void*>(deallocate)},
                           {Py_tp_methods, methods},
                           {0, nullptr}};
    PyType_Spec spec{name, sizeof(BufferObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                     slots};
    return owned(base ? PyType_FromSpecWithBases(&spec, py::make_tuple(base).ptr())
                      : PyType_FromSpec(&spec));
}

}  // namespace

void add_buffer_types(py::module_& module) {
    static PyMethodDef uniform_methods[] = {
        hot_call("add", add, docstrings::uniform_add),
        hot_call("sample", sample_uniform<true>, docstrings::uniform_sample),
        {nullptr, nullptr, 0, nullptr}};
    static PyMethodDef prioritized_methods[] = {
        hot_call("add", add, docstrings::prioritized_add),
        hot_call("sample", sample, docstrings::prioritized_sample),
        hot_call("sample_uniform", sample_uniform<false>, docstrings::sample_uniform),
        hot_call("update_priorities", update_priorities, docstrings::update_priorities),
        {nullptr, nullptr, 0, nullptr}};
    const py::object uniform = make_type("mpbuffer._core.ReplayBuffer", docstrings::uniform_type,
                                         uniform_methods, py::handle());
    const py::object prioritized =
        make_type("mpbuffer._core.PrioritizedReplayBuffer", docstrings::prioritized_type,
                  prioritized_methods, uniform);
    buffer_type = reinterpret_cast<PyTypeObject*>(uniform.ptr());
    add_buffer_methods(module, uniform, prioritized);
    module.attr("ReplayBuffer") = uniform;
    module.attr("PrioritizedReplayBuffer") = prioritized;
}

}  // namespace mpbuffer::bindings
