#include "types/step_writer.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.hpp"
#include "convert/field_arguments.hpp"
#include "convert/output_batch.hpp"
#include "docstrings.hpp"
#include "errors.hpp"
#include "os/fork_watch.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

struct WriterState {
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
        return write_staged(state, *rows, priorities_of ? priorities_of.ptr() : nullptr);
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

WriterState& writer_of(py::handle object) { return writer_of(writer_object(object)); }

// Again, after values were converted: their code may have closed anything.
void still_open(WriterObject& object) { (void)writer_of(object).buffer_state(); }

const FieldRule* find_rule(const std::vector<FieldRule>& rules, const std::string& name) {
    for (const FieldRule& rule : rules) {
        if (rule.name.cast<std::string>() == name) return &rule;
    }
    return nullptr;
}

const FieldRule& rule_named(const std::vector<FieldRule>& rules, const std::string& name) {
    const FieldRule* rule = find_rule(rules, name);
    if (rule == nullptr) throw py::value_error("n-step rows need field '" + name + "'");
    return *rule;
}

FloatField float_field(const FieldRule& rule) {
    if (rule.type_number != NPY_FLOAT && rule.type_number != NPY_DOUBLE) {
        throw py::value_error("field " + rule.text() + " is neither float32 nor float64");
    }
    return {rule.offset, rule.row_bytes / rule.item_bytes, rule.type_number == NPY_DOUBLE};
}

std::optional<EpisodeFlag> find_flag(const std::vector<FieldRule>& rules, const char* name) {
    const FieldRule* rule = find_rule(rules, name);
    if (rule == nullptr || !rule->one_element || rule->item_bytes > 8) return std::nullopt;
    // Of another package's integers none has the sign of a float alone.
    const bool floating =
        PyTypeNum_ISFLOAT(rule->type_number) || PyTypeNum_ISUSERDEF(rule->type_number);
    if (!floating && !PyTypeNum_ISINTEGER(rule->type_number) &&
        !PyTypeNum_ISBOOL(rule->type_number)) {
        return std::nullopt;
    }
    return EpisodeFlag{rule->offset, rule->item_bytes, floating};
}

bool is_among(const std::vector<std::string>& all, const std::string& name) {
    return std::find(all.begin(), all.end(), name) != all.end();
}

// What the function says of finished rows.
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
    const auto said = py::reinterpret_steal<py::object>(
        running_python([&] { return PyObject_CallOneArg(priorities_of, rows.ptr()); }));
    if (!said) throw py::error_already_set();
    ConvertedPriorities priorities;
    convert_priorities(state, "cannot take what priorities() returned", said.ptr(), n, priorities);
    const std::span<const double> all = priorities.all(n);
    for (std::size_t i = 0; i < n; ++i) batch.set_priority(i, all[i]);
}

}  // namespace

FoldPlan plan_fold(const std::vector<FieldRule>& rules, std::size_t stride,
                   const NstepNames* names) {
    FoldPlan plan{{}, no_field};
    NstepRule& rule = plan.rule;
    rule.stride = stride;
    rule.done = find_flag(rules, "done");
    rule.terminated = find_flag(rules, "terminated");
    rule.truncated = find_flag(rules, "truncated");
    std::vector<std::string> from_last = {"done", "terminated", "truncated"};
    if (names != nullptr) {
        const auto& [steps, gamma, rewards, next, discount] = *names;
        rule.steps = steps;
        rule.gamma = gamma;
        for (const std::string& name : rewards) {
            rule.rewards.push_back(float_field(rule_named(rules, name)));
        }
        for (const std::string& name : next) {
            from_last.push_back(rule_named(rules, name).name.cast<std::string>());
        }
        if (!discount.empty()) {
            const FieldRule& field = rule_named(rules, discount);
            rule.discount = float_field(field);
            plan.computed = static_cast<std::size_t>(&field - rules.data());
        }
    }
    std::vector<StepField> fields;
    for (const FieldRule& field : rules) {
        fields.push_back(
            {field.offset, field.row_bytes, is_among(from_last, field.name.cast<std::string>())});
    }
    rule.take_fields(std::move(fields));
    return plan;
}

namespace {

// In a child that was forked while rows were being written, these are the parent's.
struct RowsOfParent {};

}  // namespace

WrittenRows write_staged(BufferState& buffer, StagedRows& staged, PyObject* priorities_of) {
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

namespace {

// Environments' numbers for n rows; ascending from 0 if none are given.
std::vector<std::int64_t> convert_environments(const std::string& what, PyObject* value,
                                               std::size_t environments) {
    const py::object source = as_array(what, value);
    auto* const raw = reinterpret_cast<PyArrayObject*>(source.ptr());
    if (PyArray_NDIM(raw) > 1 ||
        (!PyTypeNum_ISINTEGER(PyArray_TYPE(raw)) && PyArray_SIZE(raw) != 0)) {
        throw_python(PyExc_TypeError,
                     what + ": got shape " + shape_in_words(PyArray_NDIM(raw), PyArray_DIMS(raw)) +
                         " and dtype " + text_of(reinterpret_cast<PyObject*>(PyArray_DESCR(raw))) +
                         ", expected whole numbers, one for each row");
    }
    const auto cast = py::reinterpret_steal<py::object>(running_python([raw] {
        return PyArray_FromArray(raw, PyArray_DescrFromType(NPY_INT64),
                                 NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED | NPY_ARRAY_NOTSWAPPED |
                                     NPY_ARRAY_FORCECAST);
    }));
    if (!cast) throw py::error_already_set();
    auto* const numbers = reinterpret_cast<PyArrayObject*>(cast.ptr());
    const auto* first = static_cast<const std::int64_t*>(PyArray_DATA(numbers));
    const auto count = static_cast<std::size_t>(PyArray_SIZE(numbers));
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
                         what + ": got " + in_words(number) + ", expected finite numbers" +
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
    Beside(const WriterState& writer, const BufferState& state, const GivenBeside& given,
           Steps& steps) {
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
        const bool from_values = writer.from_values();
        if (is_given(given.priorities)) {
            if (from_values || writer.priorities_of) {
                throw_python(PyExc_TypeError,
                             "cannot add priorities: they are computed, as priorities= of "
                             "writer() says");
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
                         "cannot add q, v or next_v: they are for writer(priorities=\"td\")");
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
        GivenBeside beside;
        const FieldArguments given(
            state, writer.computed, args, nargs, kwnames,
            [&](PyObject* name, PyObject* value) { return beside.take(*state.core, name, value); });
        Steps steps{given.rows(), given.sources()};
        std::optional<Beside> converted;
        if (beside.any() || writer.from_values()) converted.emplace(writer, state, beside, steps);
        still_open(object);
        return PyLong_FromUnsignedLongLong(push(writer, state, steps));
    });
}

std::uint64_t flush(const py::object& self) {
    const WriterState& writer = writer_of(self);
    return writer.write(writer.buffer_state()).rows;
}

std::uint64_t end_episodes(const py::object& self, const py::object& envs) {
    const WriterState& writer = writer_of(self);
    BufferState& state = writer.buffer_state();
    if (envs.is_none()) {
        writer.rows->cut_off_all();
    } else {
        const auto environments = convert_environments("cannot end episodes: envs", envs.ptr(),
                                                       writer.rows->environments());
        still_open(writer_object(self));
        writer.rows->cut_off(environments);
    }
    return writer.write(state).rows;
}

void close(const py::object& self) {
    WriterState* writer = writer_object(self).state;
    if (writer == nullptr || !writer->open) return;
    writer->open = false;
    if (writer->rows->counts().staged == 0) return;
    try {
        writer->rows->cut_off_all();
        writer->write(writer->buffer_state());
    } catch (...) {
        writer->rows->drop();
        throw;
    }
}

void open(const py::object& self, const py::object& buffer, std::uint64_t flush_every,
          std::size_t environments, const std::optional<NstepNames>& names,
          const py::object& priorities_of, bool from_values) {
    WriterObject& object = writer_object(self);
    if (object.state != nullptr) throw py::value_error("this writer is open already");
    const BufferState& state = state_of(buffer);
    FoldPlan plan = plan_fold(state.rules, state.core->shape().stride, names ? &*names : nullptr);
    plan.rule.priority_from_values = from_values;
    auto writer = std::make_unique<WriterState>();
    writer->buffer = buffer;
    if (!priorities_of.is_none()) writer->priorities_of = priorities_of;
    writer->rows = std::make_unique<StagedRows>(std::move(plan.rule), environments);
    writer->computed = plan.computed;
    writer->flush_every = flush_every;
    writer->open = true;
    object.state = writer.release();
}

py::tuple counts(const py::object& self) {
    const WriterState* writer = writer_object(self).state;
    if (writer == nullptr) return py::make_tuple(0, 0, 0);
    const StagingCounts now = writer->rows->counts();
    return py::make_tuple(now.steps, now.staged, now.written);
}

PyObject* new_object(PyTypeObject* type, PyObject*, PyObject*) {
    PyObject* self = type->tp_alloc(type, 0);
    if (self != nullptr) reinterpret_cast<WriterObject*>(self)->state = nullptr;
    return self;
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
    static PyMethodDef methods[] = {
        {"add", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(add)),
         METH_FASTCALL | METH_KEYWORDS, docstrings::step_writer_add},
        {nullptr, nullptr, 0, nullptr}};
    PyType_Slot slots[] = {{Py_tp_doc, const_cast<char*>(docstrings::step_writer_type)},
                           {Py_tp_new, reinterpret_cast<void*>(new_object)},
                           {Py_tp_dealloc, reinterpret_cast<void*>(deallocate)},
                           {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                           {Py_tp_clear, reinterpret_cast<void*>(clear)},
                           {Py_tp_methods, methods},
                           {0, nullptr}};
    PyType_Spec spec{"mpbuffer._core.StepWriter", sizeof(WriterObject), 0,
                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};
    PyObject* type = PyType_FromSpec(&spec);
    if (type == nullptr) throw py::error_already_set();
    step_writer_type = reinterpret_cast<PyTypeObject*>(type);
    module.attr("StepWriter") = py::reinterpret_steal<py::object>(type);
    module.def("open_writer", open, py::arg("writer"), py::arg("buffer"), py::arg("flush_every"),
               py::arg("environments"), py::arg("nstep"), py::arg("priorities_of"),
               py::arg("from_values"));
    module.def("flush_writer", flush, py::arg("writer"));
    module.def("end_episodes_of", end_episodes, py::arg("writer"), py::arg("envs"));
    module.def("close_writer", close, py::arg("writer"));
    module.def(
        "writer_is_open",
        [](const py::object& self) {
            const WriterState* writer = writer_object(self).state;
            return writer != nullptr && writer->open;
        },
        py::arg("writer"));
    module.def("writer_counts", counts, py::arg("writer"));
    module.def(
        "set_nstep",
        [](const py::object& self, const NstepNames& names) {
            BufferState& state = state_of(self);
            FoldPlan plan = plan_fold(state.rules, state.core->shape().stride, &names);
            state.steps = std::make_unique<StagedRows>(std::move(plan.rule), 1);
            state.computed = plan.computed;
            state.nstep = names;
        },
        py::arg("buffer"), py::arg("nstep"));
    module.def(
        "nstep",
        [](const py::object& self) {
            const BufferState* state = buffer_object(self).state;
            return state == nullptr ? state_of(self).nstep : state->nstep;
        },
        py::arg("buffer"));
}

}  // namespace mpbuffer::bindings
