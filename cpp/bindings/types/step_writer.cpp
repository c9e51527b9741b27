#include "types/step_writer.hpp"

#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.hpp"
#include "base/words.hpp"
#include "convert/field_arguments.hpp"
#include "docstrings.hpp"
#include "errors.hpp"
#include "finished_rows.hpp"
#include "numpy_api.hpp"
#include "state.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

struct StagingState {
    py::object buffer;
    py::object priorities_of;  // a function, or nothing
    std::unique_ptr<StagedRows> rows;
    std::uint64_t flush_every = 0;
    std::size_t computed = no_field;
    bool open = false;

    BufferState& buffer_state() const {
        return state_of(*reinterpret_cast<BufferObject*>(buffer.ptr()));
    }
    bool from_values() const { return rows->rule().priority_from_values; }
    WrittenRows write(BufferState& state) const {
        return write_finished(state, *rows, priorities_of ? priorities_of.ptr() : nullptr);
    }
};

struct StagingObject {
    PyObject_HEAD StagingState* state;
};

PyTypeObject* staging_type = nullptr;

StagingObject& staging_object(py::handle object) {
    if (PyObject_TypeCheck(object.ptr(), staging_type) == 0) {
        throw_python(PyExc_TypeError, "expected a staging, got a " + type_in_words(object.ptr()));
    }
    return *reinterpret_cast<StagingObject*>(object.ptr());
}

StagingState& staging_of(StagingObject& object) {
    StagingState* state = object.state;
    if (state == nullptr) {
        throw BufferClosed("cannot use this staging: make one by explorer() of a buffer");
    }
    if (!state->open) throw BufferClosed("cannot use this staging: it was closed");
    return *state;
}

StagingState& staging_of(py::handle object) { return staging_of(staging_object(object)); }

// Again, after values were converted: their code may have closed anything.
void still_open(StagingObject& object) { (void)staging_of(object).buffer_state(); }

// Environments' numbers for n rows; ascending from 0 if none are given.
std::vector<std::int64_t> convert_environments(const std::string& what, PyObject* value,
                                               std::size_t environments) {
    const py::object source = as_array(what, value);
    PyArrayObject* const raw = array_of(source);
    if (PyArray_NDIM(raw) > 1 ||
        (!PyTypeNum_ISINTEGER(PyArray_TYPE(raw)) && PyArray_SIZE(raw) != 0)) {
        throw_python(PyExc_TypeError, what + ": got shape " +
                                          shape_in_words(PyArray_NDIM(raw), PyArray_DIMS(raw)) +
                                          " and dtype " + text_of(dtype_of(raw).ptr()) +
                                          ", expected whole numbers, one for each row");
    }
    const py::object numbers = native_array(raw, NPY_INT64);
    const auto* first = values_of<std::int64_t>(numbers);
    const auto count = static_cast<std::size_t>(PyArray_SIZE(raw));
    for (std::size_t i = 0; i < count; ++i) {
        if (first[i] < 0 || static_cast<std::uint64_t>(first[i]) >= environments) {
            throw_python(PyExc_IndexError, what + ": number " + std::to_string(i) + " is " +
                                               std::to_string(first[i]) + ", expected one in [0, " +
                                               std::to_string(environments) + ")");
        }
    }
    return {first, first + count};
}

bool is_given(PyObject* value) { return value != nullptr && value != Py_None; }

// The values that a row's priority is computed from: finite, but for next_v, which may be NaN.
void convert_values(const char* name, PyObject* value, std::size_t n, bool may_be_nan,
                    RowNumbers& converted) {
    const std::string what = std::string("cannot add ") + name;
    convert_row_numbers(what.c_str(), "values", value, n, converted);
    for (const double number : converted.all(n)) {
        if (!std::isfinite(number) && !(may_be_nan && std::isnan(number))) {
            throw_python(PyExc_ValueError,
                         what + ": got " + number_in_words(number) + ", expected finite numbers" +
                             (may_be_nan ? ", or NaN where it is not known" : ""));
        }
    }
}

// What came beside the fields; null: not given.
struct GivenBeside {
    PyObject* envs = nullptr;
    PyObject* priorities = nullptr;
    PyObject* q = nullptr;
    PyObject* v = nullptr;
    PyObject* next_v = nullptr;

    bool any() const {
        return envs != nullptr || priorities != nullptr || q != nullptr || v != nullptr ||
               next_v != nullptr;
    }
    bool take(const ReplayBuffer& core, PyObject* name, PyObject* value) {
        PyObject** place = nullptr;
        if (same_name(names().envs, name)) {
            place = &envs;
        } else if (core.prioritized() && same_name(names().priorities, name)) {
            place = &priorities;
        } else if (same_name(names().q, name)) {
            place = &q;
        } else if (same_name(names().v, name)) {
            place = &v;
        } else if (same_name(names().next_v, name)) {
            place = &next_v;
        } else {
            return false;
        }
        *place = value;
        return true;
    }
};

// The same, converted: what `steps` then points to.
class Beside {
  public:
    Beside(const StagingState& staging, const BufferState& state, const GivenBeside& given,
           Steps& steps) {
        const std::size_t n = steps.count;
        if (is_given(given.envs)) {
            environments_ =
                convert_environments("cannot add: envs", given.envs, staging.rows->environments());
            if (environments_.size() != n) {
                throw_python(PyExc_ValueError, "cannot add: envs has " +
                                                   std::to_string(environments_.size()) +
                                                   " numbers, expected " + std::to_string(n) +
                                                   ", one for each row of the fields");
            }
            steps.environments = environments_.data();
        }
        const bool from_values = staging.from_values();
        if (is_given(given.priorities)) {
            if (from_values || staging.priorities_of) {
                throw_python(PyExc_TypeError,
                             "cannot add priorities: they are computed, as priorities= of "
                             "explorer() says");
            }
            convert_priorities(state, "cannot add priorities", given.priorities, n, priorities_);
            steps.priorities = priorities_.first();
        }
        if (from_values) {
            if (!is_given(given.q) || !is_given(given.v)) {
                throw_python(PyExc_KeyError, std::string("cannot add: ") +
                                                 (is_given(given.q) ? "v" : "q") +
                                                 " is missing, which priorities are computed from");
            }
            convert_values("q", given.q, n, false, q_);
            convert_values("v", given.v, n, false, v_);
            steps.q = q_.first();
            steps.v = v_.first();
            if (is_given(given.next_v)) {
                convert_values("next_v", given.next_v, n, true, next_v_);
                steps.next_v = next_v_.first();
            }
        } else if (given.q != nullptr || given.v != nullptr || given.next_v != nullptr) {
            throw_python(PyExc_TypeError,
                         "cannot add q, v or next_v: they are for explorer(priorities=\"td\")");
        }
    }
    Beside(const Beside&) = delete;
    Beside& operator=(const Beside&) = delete;

  private:
    std::vector<std::int64_t> environments_;
    ConvertedPriorities priorities_;
    RowNumbers q_;
    RowNumbers v_;
    RowNumbers next_v_;
};

std::uint64_t push(const StagingState& staging, BufferState& state, const Steps& steps) {
    if (steps.count == 0) return 0;
    const std::size_t environments = staging.rows->environments();
    if (steps.environments == nullptr && environments != 1 && steps.count != environments) {
        throw_python(PyExc_ValueError, "cannot add: the fields have " +
                                           std::to_string(steps.count) + " rows, expected " +
                                           std::to_string(environments) +
                                           ", one for each environment, or envs=");
    }
    const PushOutcome pushed = staging.rows->push(steps);
    const bool to_write = pushed.ended || pushed.finished >= staging.flush_every;
    return to_write ? staging.write(state).rows : 0;
}

PyObject* add(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    return guarded([&]() -> PyObject* {
        StagingObject& object = *reinterpret_cast<StagingObject*>(self);
        const StagingState& staging = staging_of(object);
        BufferState& state = staging.buffer_state();
        GivenBeside beside;
        const FieldArguments given(
            state, staging.computed, args, nargs, kwnames,
            [&](PyObject* name, PyObject* value) { return beside.take(*state.core, name, value); });
        Steps steps{given.rows(), given.sources()};
        std::optional<Beside> converted;
        if (beside.any() || staging.from_values()) converted.emplace(staging, state, beside, steps);
        still_open(object);
        return PyLong_FromUnsignedLongLong(push(staging, state, steps));
    });
}

std::uint64_t flush(const py::object& self) {
    const StagingState& staging = staging_of(self);
    return staging.write(staging.buffer_state()).rows;
}

std::uint64_t end_episodes(const py::object& self, const py::object& envs) {
    const StagingState& staging = staging_of(self);
    BufferState& state = staging.buffer_state();
    if (envs.is_none()) {
        staging.rows->cut_off_all();
    } else {
        const auto environments = convert_environments("cannot end episodes: envs", envs.ptr(),
                                                       staging.rows->environments());
        still_open(staging_object(self));
        staging.rows->cut_off(environments);
    }
    return staging.write(state).rows;
}

void close(const py::object& self) {
    StagingState* staging = staging_object(self).state;
    if (staging == nullptr || !staging->open) return;
    staging->open = false;
    if (staging->rows->counts().staged == 0) return;
    try {
        staging->rows->cut_off_all();
        staging->write(staging->buffer_state());
    } catch (...) {
        staging->rows->drop();
        throw;
    }
}

void open(const py::object& self, const py::object& buffer, std::uint64_t flush_every,
          std::size_t environments, const std::optional<NstepNames>& names,
          const py::object& priorities_of, bool from_values) {
    StagingObject& object = staging_object(self);
    if (object.state != nullptr) throw py::value_error("this staging is open already");
    const BufferState& state = state_of(buffer);
    NstepPlan plan = plan_nstep(state.rules, state.core->shape().stride, names ? &*names : nullptr);
    plan.rule.priority_from_values = from_values;
    auto staging = std::make_unique<StagingState>();
    staging->buffer = buffer;
    if (!priorities_of.is_none()) staging->priorities_of = priorities_of;
    staging->rows = std::make_unique<StagedRows>(std::move(plan.rule), environments);
    staging->computed = plan.computed;
    staging->flush_every = flush_every;
    staging->open = true;
    object.state = staging.release();
}

py::tuple counts(const py::object& self) {
    const StagingState* staging = staging_object(self).state;
    if (staging == nullptr) return py::make_tuple(0, 0, 0);
    const StagingCounts now = staging->rows->counts();
    return py::make_tuple(now.steps, now.staged, now.written);
}

PyObject* new_object(PyTypeObject* type, PyObject*, PyObject*) {
    PyObject* self = type->tp_alloc(type, 0);
    if (self != nullptr) reinterpret_cast<StagingObject*>(self)->state = nullptr;
    return self;
}

int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    const StagingState* state = reinterpret_cast<StagingObject*>(self)->state;
    if (state != nullptr) {
        Py_VISIT(state->buffer.ptr());
        Py_VISIT(state->priorities_of.ptr());
    }
    return 0;
}

int clear(PyObject* self) {
    delete std::exchange(reinterpret_cast<StagingObject*>(self)->state, nullptr);
    return 0;
}

void deallocate(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

}  // namespace

void add_staging_type(py::module_& module) {
    static PyMethodDef methods[] = {
        {"add", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(add)),
         METH_FASTCALL | METH_KEYWORDS, docstrings::staging_add},
        {nullptr, nullptr, 0, nullptr}};
    PyType_Slot slots[] = {{Py_tp_doc, const_cast<char*>(docstrings::staging_type)},
                           {Py_tp_new, reinterpret_cast<void*>(new_object)},
                           {Py_tp_dealloc, reinterpret_cast<void*>(deallocate)},
                           {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                           {Py_tp_clear, reinterpret_cast<void*>(clear)},
                           {Py_tp_methods, methods},
                           {0, nullptr}};
    PyType_Spec spec{"mpbuffer._core.Staging", sizeof(StagingObject), 0,
                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};
    PyObject* type = PyType_FromSpec(&spec);
    if (type == nullptr) throw py::error_already_set();
    staging_type = reinterpret_cast<PyTypeObject*>(type);
    module.attr("Staging") = py::reinterpret_steal<py::object>(type);
    module.def("open_staging", open, py::arg("staging"), py::arg("buffer"), py::arg("flush_every"),
               py::arg("environments"), py::arg("nstep"), py::arg("priorities_of"),
               py::arg("from_values"));
    module.def("flush_staging", flush, py::arg("staging"));
    module.def("end_staged_episodes", end_episodes, py::arg("staging"), py::arg("envs"));
    module.def("close_staging", close, py::arg("staging"));
    module.def(
        "staging_is_open",
        [](const py::object& self) {
            const StagingState* staging = staging_object(self).state;
            return staging != nullptr && staging->open;
        },
        py::arg("staging"));
    module.def("staging_counts", counts, py::arg("staging"));
}

}  // namespace mpbuffer::bindings
