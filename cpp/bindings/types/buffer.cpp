#include "types/buffer.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "base/error.hpp"
#include "base/guard.hpp"
#include "convert/field_arguments.hpp"
#include "convert/generations.hpp"
#include "convert/output_batch.hpp"
#include "docstrings.hpp"
#include "errors.hpp"
#include "types/step_writer.hpp"

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

// Takes steps into the window of n-step rows, and writes those that are finished.
PyObject* add_steps(BufferState& state, const FieldArguments& given, const double* priorities) {
    if (given.rows() == 0) Py_RETURN_NONE;
    Steps steps{given.rows(), given.sources()};
    steps.priorities = priorities;
    state.steps->push(steps);
    state.episode_length += given.rows();
    const WrittenRows written = write_staged(state, *state.steps, nullptr);
    if (written.rows == 0) Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(written.first_slot);
}

PyObject* add(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    return guarded([&]() -> PyObject* {
        BufferState& state = state_of(self);
        ReplayBuffer& core = *state.core;
        PyObject* priorities = nullptr;
        const FieldArguments fields(
            state, state.computed, args, nargs, kwnames, [&](PyObject* name, PyObject* value) {
                if (!core.prioritized() || !same_name(names().priorities, name)) return false;
                priorities = value;
                return true;
            });
        const std::uint64_t n = fields.rows();
        if (n > core.capacity()) {
            throw_python(PyExc_IndexError, "cannot add " + std::to_string(n) + " rows to '" +
                                               core.name() + "': its size is " +
                                               std::to_string(core.capacity()));
        }
        ConvertedPriorities given;
        const bool with_priorities = priorities != nullptr && priorities != Py_None;
        if (with_priorities)
            convert_priorities(state, "cannot add priorities", priorities, n, given);
        if (state.steps) [[unlikely]] {
            (void)state_of(self);  // the code of values that were converted may have closed it
            return add_steps(state, fields, with_priorities ? given.first() : nullptr);
        }
        if (n == 0) return PyLong_FromUnsignedLongLong(core.next_slot());

        const std::uint64_t first =
            core.add(n, fields.sources(), with_priorities ? given.leaves.data() : nullptr,
                     given.largest, run_signal_handlers);
        state.episode_length += n;
        return PyLong_FromUnsignedLongLong(first);
    });
}

std::size_t convert_batch_size(const char* method, PyObject* value) {
    if (value == nullptr) {
        throw_python(PyExc_TypeError, std::string(method) + "() needs a batch_size");
    }
    const Py_ssize_t size =
        running_python([value] { return PyNumber_AsSsize_t(value, PyExc_OverflowError); });
    if (size == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (size < 1) {
        throw_python(PyExc_ValueError, "cannot sample: batch_size is " + std::to_string(size) +
                                           ", expected at least 1");
    }
    return static_cast<std::size_t>(size);
}

// Uniform draws; any process. A uniform buffer's method of that kind is called sample.
template <bool called_sample>
PyObject* sample_uniform(PyObject* self, PyObject* const* args, Py_ssize_t nargs,
                         PyObject* kwnames) {
    constexpr const char* method = called_sample ? "sample" : "sample_uniform";
    return guarded([&]() -> PyObject* {
        BufferState& state = state_of(self);
        ReplayBuffer& core = *state.core;
        const auto given =
            arguments<3>(method, {names().batch_size, names().return_indexes, names().out}, 1, args,
                         nargs, kwnames);
        const std::size_t count = convert_batch_size(method, given[0]);
        const int with_indexes =
            given[1] == nullptr ? 0 : running_python([&] { return PyObject_IsTrue(given[1]); });
        if (with_indexes < 0) throw py::error_already_set();
        OutputBatch batch(state, count, {false, with_indexes != 0}, given[2]);
        core.gather_uniform(count, batch.target());
        return batch.take_dict();
    });
}

// Stratified proportional draws; the learner.
PyObject* sample(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    return guarded([&]() -> PyObject* {
        BufferState& state = state_of(self);
        ReplayBuffer& core = *state.core;
        const auto given = arguments<3>("sample", {names().batch_size, names().beta, names().out},
                                        2, args, nargs, kwnames);
        const std::size_t count = convert_batch_size("sample", given[0]);
        const double beta = given[1] == nullptr ? 0.4 : convert_beta(given[1]);
        OutputBatch batch(state, count, {true, true}, given[2]);
        core.gather(count, beta, batch.target());
        return batch.take_dict();
    });
}

// A generation that cannot be the slot's is none: its index was changed after sampling.
std::uint64_t of_slot(std::uint64_t generation, std::int64_t slot, std::uint64_t capacity) {
    return generation % capacity == static_cast<std::uint64_t>(slot) ? generation : 0;
}

// Those that the caller names, in place of what was found beside the indexes.
void convert_generations(const BufferState& state, PyObject* value, ConvertedIndexes& indexes) {
    const std::size_t n = indexes.slots.size();
    const char* const what = "cannot update priorities: generations";
    const py::object source = as_array(what, value);
    auto* const raw = reinterpret_cast<PyArrayObject*>(source.ptr());
    if (!PyTypeNum_ISINTEGER(PyArray_TYPE(raw)) ||
        static_cast<std::size_t>(PyArray_SIZE(raw)) != n) {
        throw_python(PyExc_ValueError,
                     std::string(what) + " are " + std::to_string(PyArray_SIZE(raw)) +
                         " values of dtype " +
                         text_of(reinterpret_cast<PyObject*>(PyArray_DESCR(raw))) + ", expected " +
                         std::to_string(n) + " integers");
    }
    PyArray_Descr* wanted = PyArray_DescrFromType(NPY_UINT64);
    const auto cast = py::reinterpret_steal<py::object>(running_python([&] {
        return PyArray_FromArray(raw, wanted,
                                 NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED | NPY_ARRAY_FORCECAST);
    }));
    if (!cast) throw py::error_already_set();
    const auto* first = static_cast<const std::uint64_t*>(
        PyArray_DATA(reinterpret_cast<PyArrayObject*>(cast.ptr())));
    const std::uint64_t capacity = state.core->capacity();
    const CoreCall call;
    let_others_scan(n);
    for (std::size_t i = 0; i < n; ++i) {
        indexes.generations[i] = of_slot(first[i], indexes.slots[i], capacity);
    }
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
            convert_generations(state, given[2], indexes);
        }
        return PyLong_FromUnsignedLongLong(
            core.update(indexes.slots, indexes.generations, priorities.all(n), priorities.leaves));
    });
}

PyTypeObject* base_type = nullptr;

PyObject* new_object(PyTypeObject* type, PyObject*, PyObject*) {
    PyObject* self = type->tp_alloc(type, 0);
    if (self != nullptr) reinterpret_cast<BufferObject*>(self)->state = nullptr;
    return self;
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

PyMethodDef method(const char* name, _PyCFunctionFastWithKeywords call, const char* doc) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)),
            METH_FASTCALL | METH_KEYWORDS, doc};
}

py::object make_type(const char* name, const char* doc, PyMethodDef* methods, py::handle base) {
    PyType_Slot slots[] = {{Py_tp_doc, const_cast<char*>(doc)},
                           {Py_tp_new, reinterpret_cast<void*>(new_object)},
                           {Py_tp_dealloc, reinterpret_cast<void*>(deallocate)},
                           {Py_tp_methods, methods},
                           {0, nullptr}};
    PyType_Spec spec{name, sizeof(BufferObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                     slots};
    PyObject* type =
        base ? PyType_FromSpecWithBases(&spec, py::make_tuple(base).ptr()) : PyType_FromSpec(&spec);
    if (type == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(type);
}

}  // namespace

BufferObject& buffer_object(py::handle object) {
    if (PyObject_TypeCheck(object.ptr(), base_type) == 0) {
        throw_python(PyExc_TypeError, "expected a buffer, got a " + type_in_words(object.ptr()));
    }
    return *reinterpret_cast<BufferObject*>(object.ptr());
}

double convert_beta(PyObject* value) {
    const double beta = running_python([value] { return PyFloat_AsDouble(value); });
    if (beta == -1.0 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (!(beta >= 0) || !std::isfinite(beta)) {
        throw_python(PyExc_ValueError, "cannot sample: beta is " + in_words(beta) +
                                           ", expected a finite number of at least 0");
    }
    return beta;
}

BufferState& state_of(py::handle object) { return state_of(buffer_object(object)); }

BufferState& state_of(BufferObject& object) {
    BufferState* state = object.state;
    if (state == nullptr || !state->core) {
        throw BufferClosed("cannot use this buffer: its constructor has not run");
    }
    if (!state->core->is_open()) {
        throw BufferClosed("cannot use '" + state->core->name() + "': this handle was closed");
    }
    return *state;
}

namespace {

// Whole numbers of another dtype, or not laid out for direct use, as a fresh int64 array.
py::object to_int64(const std::string& what, PyArrayObject* raw) {
    constexpr int flags =
        NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED | NPY_ARRAY_NOTSWAPPED | NPY_ARRAY_FORCECAST;
    const auto cast_to = [flags](PyArrayObject* from, int type_number) {
        PyObject* result = running_python(
            [&] { return PyArray_FromArray(from, PyArray_DescrFromType(type_number), flags); });
        if (result == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(result);
    };
    const int type_number = PyArray_TYPE(raw);
    if (PyTypeNum_ISFLOAT(type_number)) {
        const py::object doubles = cast_to(raw, NPY_DOUBLE);
        auto* const values = reinterpret_cast<PyArrayObject*>(doubles.ptr());
        const auto* first = static_cast<const double*>(PyArray_DATA(values));
        for (npy_intp i = 0; i < PyArray_SIZE(values); ++i) {
            if (!(std::abs(first[i]) < 0x1p53 && first[i] == std::floor(first[i]))) {
                throw_python(PyExc_TypeError, what + ": index " + std::to_string(i) + " is " +
                                                  in_words(first[i]) + ", expected a whole number");
            }
        }
        return cast_to(values, NPY_INT64);
    }
    if (!PyTypeNum_ISINTEGER(type_number)) {
        throw_python(PyExc_TypeError, what + " have dtype " +
                                          text_of(reinterpret_cast<PyObject*>(PyArray_DESCR(raw))) +
                                          ", expected whole numbers");
    }
    return cast_to(raw, NPY_INT64);
}

}  // namespace

ConvertedIndexes convert_indexes(const BufferState& state, const char* verb, PyObject* value) {
    const std::string what = std::string("cannot ") + verb + ": indexes";
    py::object source = as_array(what, value);
    auto* raw = reinterpret_cast<PyArrayObject*>(source.ptr());
    // Of unsigned ones those beyond int64 come out negative, and out of range.
    const bool shared = (PyArray_EquivTypenums(PyArray_TYPE(raw), NPY_INT64) != 0 ||
                         PyArray_EquivTypenums(PyArray_TYPE(raw), NPY_UINT64) != 0) &&
                        PyArray_ISNOTSWAPPED(raw) && PyArray_ISALIGNED(raw);
    const auto count = static_cast<std::size_t>(PyArray_SIZE(raw));
    if (!shared) {
        source = to_int64(what, raw);
        raw = reinterpret_cast<PyArrayObject*>(source.ptr());
    }
    py::object iterator;  // where one stride does not reach all
    if (PyArray_NDIM(raw) > 1) {
        iterator =
            py::reinterpret_steal<py::object>(PyArray_IterNew(reinterpret_cast<PyObject*>(raw)));
        if (!iterator) throw py::error_already_set();
    }
    const auto* const first = reinterpret_cast<const std::int64_t*>(PyArray_BYTES(raw));
    const GenerationsBeside beside =
        shared ? GenerationsBeside(first, state.handle) : GenerationsBeside();
    const std::uint64_t capacity = state.core->capacity();
    ConvertedIndexes converted;
    std::optional<std::pair<std::size_t, std::int64_t>> outside;
    const auto take = [&](std::size_t i, const std::int64_t* address) {
        const std::int64_t slot = *address;
        if (slot < 0 || static_cast<std::uint64_t>(slot) >= capacity) {
            outside = {i, slot};
            return false;
        }
        converted.slots[i] = slot;
        converted.generations[i] = of_slot(beside.of(address), slot, capacity);
        return true;
    };
    {
        const CoreCall call;
        let_others_scan(count);
        converted.slots.resize(count);
        converted.generations.resize(count);
        if (!iterator) {
            const npy_intp step = PyArray_NDIM(raw) == 1 ? PyArray_STRIDE(raw, 0) : 0;
            const char* at = PyArray_BYTES(raw);
            for (std::size_t i = 0; i < count; ++i, at += step) {
                if (!take(i, reinterpret_cast<const std::int64_t*>(at))) break;
            }
        } else {
            auto* const at = reinterpret_cast<PyArrayIterObject*>(iterator.ptr());
            for (std::size_t i = 0; i < count; ++i) {
                if (!take(i, static_cast<const std::int64_t*>(PyArray_ITER_DATA(at)))) break;
                PyArray_ITER_NEXT(at);
            }
        }
    }
    if (outside) {
        throw_python(PyExc_IndexError, what + ": index " + std::to_string(outside->first) + " is " +
                                           std::to_string(outside->second) +
                                           ", expected one in [0, " + std::to_string(capacity) +
                                           ")");
    }
    return converted;
}

void add_buffer_types(py::module_& module) {
    static PyMethodDef uniform_methods[] = {
        method("add", add, docstrings::uniform_add),
        method("sample", sample_uniform<true>, docstrings::uniform_sample),
        {nullptr, nullptr, 0, nullptr}};
    static PyMethodDef prioritized_methods[] = {
        method("add", add, docstrings::prioritized_add),
        method("sample", sample, docstrings::prioritized_sample),
        method("sample_uniform", sample_uniform<false>, docstrings::sample_uniform),
        method("update_priorities", update_priorities, docstrings::update_priorities),
        {nullptr, nullptr, 0, nullptr}};
    const py::object uniform = make_type("mpbuffer._core.ReplayBuffer", docstrings::uniform_type,
                                         uniform_methods, py::handle());
    const py::object prioritized =
        make_type("mpbuffer._core.PrioritizedReplayBuffer", docstrings::prioritized_type,
                  prioritized_methods, uniform);
    base_type = reinterpret_cast<PyTypeObject*>(uniform.ptr());
    module.attr("ReplayBuffer") = uniform;
    module.attr("PrioritizedReplayBuffer") = prioritized;
}

}  // namespace mpbuffer::bindings
