#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <utility>

#include "base/error.hpp"
#include "convert/field_arguments.hpp"
#include "docstrings.hpp"
#include "errors.hpp"
#include "nstep_rows.hpp"
#include "numpy_api.hpp"
#include "state.hpp"
#include "types/heap_type.hpp"
#include "types/registrations.hpp"
#include "write/staged_sequences.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

struct WriterState {
    py::object buffer;
    py::object priorities_of;  // a function, or nothing
    std::unique_ptr<Staging> rows;
    std::uint64_t flush_every;
    std::size_t computed;
    bool from_values;  // whether priorities are computed from q and v
    bool open = true;

    BufferState& buffer_state() const {
        return state_of(*reinterpret_cast<BufferObject*>(buffer.ptr()));
    }
    WrittenRows write(BufferState& state) const {
        return write_finished(state, *rows, priorities_of ? priorities_of.ptr() : nullptr);
    }
};

struct WriterObject {
    PyObject_HEAD WriterState* state;
};

PyTypeObject* step_writer_type = nullptr;

WriterObject& writer_object(py::handle object) {
    if (PyObject_TypeCheck(object.ptr(), step_writer_type) == 0) {
        throw_python(PyExc_TypeError,
                     "expected a StepWriter, got a " + type_in_words(object.ptr()));
    }
    return *reinterpret_cast<WriterObject*>(object.ptr());
}

WriterState& writer_of(WriterObject& object) {
    WriterState* state = object.state;
    if (state == nullptr) {
        throw BufferClosed("cannot use this writer: make one by writer() of a buffer");
    }
    if (!state->open) throw BufferClosed("cannot use this writer: it was closed");
    return *state;
}

// Again, after values were converted: their code may have closed anything.
void require_open(WriterObject& object) { (void)writer_of(object).buffer_state(); }

// The environment's number for each row.
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

// Arguments beside the fields; null: not given.
struct OtherArguments {
    PyObject* envs = nullptr;
    PyObject* priorities = nullptr;
    PyObject* q = nullptr;
    PyObject* v = nullptr;
    PyObject* next_v = nullptr;

    SequenceArguments of_sequences;

    bool any() const {
        return of_sequences.td != nullptr || envs != nullptr || priorities != nullptr ||
               q != nullptr || v != nullptr || next_v != nullptr;
    }
    bool take(const BufferState& state, PyObject* name, PyObject* value) {
        PyObject** place = nullptr;
        if (same_name(names().envs, name)) {
            place = &envs;
        } else if (state.sequences) {
            return of_sequences.take(state, name, value);
        } else if (state.core->prioritized() && same_name(names().priorities, name)) {
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

// The same, converted; `steps` points into it.
class ConvertedOthers {
  public:
    ConvertedOthers(const WriterState& writer, const BufferState& state,
                    const OtherArguments& given, Steps& steps) {
        const std::size_t n = steps.count;
        if (is_given(given.envs)) {
            environments_ =
                convert_environments("cannot add: envs", given.envs, writer.rows->environments());
            if (environments_.size() != n) {
                throw_python(PyExc_ValueError, "cannot add: envs has " +
                                                   std::to_string(environments_.size()) +
                                                   " numbers, expected " + std::to_string(n) +
                                                   ", one for each row of the fields");
            }
            steps.environments = environments_.data();
        }
        steps.td = given.of_sequences.convert(n, td_);
        const bool from_values = writer.from_values;
        if (is_given(given.priorities)) {
            if (from_values || writer.priorities_of) {
                throw_python(PyExc_TypeError,
                             "cannot add priorities: they are computed, because writer() was "
                             "given priorities=");
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
                         "cannot add q, v or next_v: they need writer(priorities=\"td\")");
        }
    }
    ConvertedOthers(const ConvertedOthers&) = delete;
    ConvertedOthers& operator=(const ConvertedOthers&) = delete;

  private:
    std::vector<std::int64_t> environments_;
    ConvertedPriorities priorities_;
    RowNumbers q_;
    RowNumbers v_;
    RowNumbers next_v_;
    RowNumbers td_;
};

std::uint64_t push(const WriterState& writer, BufferState& state, const Steps& steps) {
    if (steps.count == 0) return 0;
    const std::size_t environments = writer.rows->environments();
    if (steps.environments == nullptr && environments != 1 && steps.count != environments) {
        throw_python(PyExc_ValueError, "cannot add: the fields have " +
                                           std::to_string(steps.count) + " rows, expected " +
                                           std::to_string(environments) +
                                           ", one for each environment, or envs=");
    }
    const PushOutcome pushed = writer.rows->push(steps);
    const bool to_write = pushed.ended || pushed.finished >= writer.flush_every;
    return to_write ? writer.write(state).rows : 0;
}

PyObject* add(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    return guarded([&]() -> PyObject* {
        WriterObject& object = *reinterpret_cast<WriterObject*>(self);
        const WriterState& writer = writer_of(object);
        BufferState& state = writer.buffer_state();
        OtherArguments others;
        const FieldArguments given(
            state, writer.computed, args, nargs, kwnames,
            [&](PyObject* name, PyObject* value) { return others.take(state, name, value); });
        Steps steps{given.rows(), given.sources()};
        std::optional<ConvertedOthers> converted;
        if (others.any() || writer.from_values) converted.emplace(writer, state, others, steps);
        require_open(object);
        return PyLong_FromUnsignedLongLong(push(writer, state, steps));
    });
}

std::uint64_t flush(py::handle self) {
    const WriterState& writer = writer_of(writer_object(self));
    return writer.write(writer.buffer_state()).rows;
}

std::uint64_t end_episodes(py::handle self, const py::object& envs) {
    WriterObject& object = writer_object(self);
    const WriterState& writer = writer_of(object);
    BufferState& state = writer.buffer_state();
    if (envs.is_none()) {
        writer.rows->cut_off_all();
    } else {
        const auto environments = convert_environments("cannot end episodes: envs", envs.ptr(),
                                                       writer.rows->environments());
        require_open(object);
        writer.rows->cut_off(environments);
    }
    return writer.write(state).rows;
}

bool is_closed(py::handle self) {
    const WriterState* writer = writer_object(self).state;
    return writer == nullptr || !writer->open;
}

void close(py::handle self) {
    if (is_closed(self)) return;
    WriterState& writer = *writer_object(self).state;
    writer.open = false;
    if (writer.rows->counts().staged == 0) return;
    try {
        writer.rows->cut_off_all();
        writer.write(writer.buffer_state());
    } catch (...) {
        writer.rows->drop();
        throw;
    }
}

void open(py::handle self, const py::object& buffer, std::uint64_t flush_every,
          std::size_t environments, const std::optional<NstepNames>& names,
          const py::object& priorities_of, bool from_values) {
    WriterObject& object = writer_object(self);
    if (object.state != nullptr) throw py::value_error("this writer is open already");
    const BufferState& state = state_of(buffer);
    auto writer = std::make_unique<WriterState>();
    writer->buffer = buffer;
    writer->flush_every = flush_every;
    writer->from_values = from_values;
    writer->computed = no_field;
    if (!priorities_of.is_none()) writer->priorities_of = priorities_of;
    if (state.sequences) {
        writer->rows = std::make_unique<StagedSequences>(state.sequences->rule, environments);
    } else {
        NstepPlan plan =
            plan_nstep(state.rules, state.core->given_bytes(), names ? &*names : nullptr);
        plan.rule.priority_from_values = from_values;
        writer->computed = plan.computed;
        writer->rows = std::make_unique<StagedRows>(std::move(plan.rule), environments);
    }
    object.state = writer.release();
}

StagingCounts counts(py::handle self) {
    const WriterState* writer = writer_object(self).state;
    return writer == nullptr ? StagingCounts() : writer->rows->counts();
}

int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    const WriterState* state = reinterpret_cast<WriterObject*>(self)->state;
    if (state != nullptr) {
        Py_VISIT(state->buffer.ptr());
        Py_VISIT(state->priorities_of.ptr());
    }
    return 0;
}

int clear(PyObject* self) {
    delete std::exchange(reinterpret_cast<WriterObject*>(self)->state, nullptr);
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

void add_step_writer_type(py::module_& module) {
    static PyMethodDef methods[] = {hot_call("add", add, docstrings::step_writer_add),
                                    {nullptr, nullptr, 0, nullptr}};
    PyType_Slot slots[] = {{Py_tp_doc, const_cast<char*>(docstrings::step_writer_type)},
                           {Py_tp_new, reinterpret_cast<void*>(new_without_state<WriterObject>)},
                           {Py_tp_dealloc, reinterpret_cast<void*>(deallocate)},
                           {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                           {Py_tp_clear, reinterpret_cast<void*>(clear)},
                           {Py_tp_methods, methods},
                           {0, nullptr}};
    PyType_Spec spec{"mpbuffer._core.StepWriter", sizeof(WriterObject), 0,
                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};
    const py::object type = owned(PyType_FromSpec(&spec));
    step_writer_type = reinterpret_cast<PyTypeObject*>(type.ptr());
    module.attr("StepWriter") = type;
    HeapType(type)
        .bind("_open", open)
        .bind("on_episode_end", end_episodes)
        .def("flush",
             "Write all finished rows to the buffer; return how many. Raises as on_episode_end().",
             flush)
        .def("close",
             R"(End all episodes, as on_episode_end() does, write all rows, and take no more.

Twice is once. If it raises, as on_episode_end() does, it is closed all the
same, and what was not written is lost.)",
             close)
        .property("closed", "Whether it was closed.", is_closed)
        .property("steps", "How many steps add() has taken, in this process.",
                  [](py::handle self) { return counts(self).steps; })
        .property("rows_staged",
                  "How many steps and rows wait, in this process, to become rows of the buffer.",
                  [](py::handle self) { return counts(self).staged; })
        .property("rows_written", "How many rows this process has written through it.",
                  [](py::handle self) { return counts(self).written; });
}

}  // namespace mpbuffer::bindings
