// mpbuffer._core: the two buffer types and what mpbuffer/buffer/replay_buffer.py does with them
// beside the hot calls.
#define MPBUFFER_IMPORTS_NUMPY
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>

#include "base/error.hpp"
#include "base/guard.hpp"
#include "convert/output_batch.hpp"
#include "convert/role_line.hpp"
#include "errors.hpp"
#include "format/row_schema.hpp"
#include "gil.hpp"
#include "numpy_api.hpp"
#include "os/end_with_learner.hpp"
#include "segment/names.hpp"
#include "source_digest.hpp"
#include "types/batch_gatherer.hpp"
#include "types/buffer.hpp"
#include "types/deferred_signals.hpp"
#include "types/inspection.hpp"
#include "types/step_writer.hpp"
#include "types/weights.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

using FieldDescription = std::tuple<std::string, py::object, std::vector<npy_intp>>;

PyArray_Descr* descr_of(const py::object& dtype) {
    if (!PyArray_DescrCheck(dtype.ptr())) throw py::type_error("a field's dtype is no numpy.dtype");
    return reinterpret_cast<PyArray_Descr*>(dtype.ptr());
}

std::vector<FieldRule> make_rules(const std::vector<FieldDescription>& descriptions) {
    std::vector<FieldRule> rules;
    for (const auto& [name, dtype, shape] : descriptions) {
        PyArray_Descr* descr = descr_of(dtype);
        FieldRule rule{};
        PyObject* interned = PyUnicode_InternFromString(name.c_str());
        if (interned == nullptr) throw py::error_already_set();
        rule.name = py::reinterpret_steal<py::object>(interned);
        rule.dtype = dtype;
        rule.type_number = descr->type_num;
        rule.plain = PyTypeNum_ISNUMBER(descr->type_num) || PyTypeNum_ISBOOL(descr->type_num) ||
                     PyTypeNum_ISUSERDEF(descr->type_num);
        rule.range = std::make_unique<const ValueRange>(range_of(dtype));
        rule.shape = shape;
        rule.out_shape = shape;
        rule.out_shape.insert(rule.out_shape.begin(), 0);
        rule.item_bytes = static_cast<std::size_t>(PyDataType_ELSIZE(descr));
        std::size_t count = 1;
        for (const npy_intp extent : shape) {
            if (extent < 0 ||
                __builtin_mul_overflow(count, static_cast<std::size_t>(extent), &count) ||
                count > (std::size_t{1} << 40)) {
                throw py::value_error("cannot lay out field '" + name +
                                      "': its shape is too large");
            }
        }
        rule.row_bytes = rule.item_bytes * count;
        rule.one_element = count == 1;
        rules.push_back(std::move(rule));
    }
    return rules;
}

Schema make_schema(std::vector<FieldRule>& rules) {
    std::vector<Field> fields;
    for (const FieldRule& rule : rules) {
        fields.push_back({rule.name.cast<std::string>(), rule.row_bytes,
                          static_cast<std::size_t>(PyDataType_ALIGNMENT(rule.descr()))});
    }
    Schema schema(std::move(fields));
    for (std::size_t i = 0; i < rules.size(); ++i) rules[i].offset = schema.fields()[i].offset;
    return schema;
}

BufferState& fresh_state(py::handle object) {
    BufferObject& self = buffer_object(object);
    if (self.state != nullptr) throw py::value_error("this buffer object is open already");
    static std::atomic<std::uint64_t> handles{0};
    self.state = new BufferState;
    self.state->handle = ++handles;
    return *self.state;
}

// Opens `object` on what `open` returns; the object stays unopened if that throws.
template <class Open>
void open_with(py::handle object, Open&& open) {
    BufferState& state = fresh_state(object);
    try {
        open(state);
    } catch (...) {
        delete &state;
        buffer_object(object).state = nullptr;
        throw;
    }
}

void create(const py::object& self, const std::string& name, std::uint64_t size,
            const std::vector<FieldDescription>& fields, bool prioritized, double alpha, double eps,
            std::uint64_t seed, bool strict, const std::string& description, bool interleave_nodes,
            bool nameless, bool overwrite, const py::object& progress) {
    open_with(self, [&](BufferState& state) {
        state.rules = make_rules(fields);
        const Schema schema = make_schema(state.rules);
        state.strict = strict;
        const RingShape shape{size, schema.row_bytes(), schema.stride(), prioritized, alpha, eps};
        SegmentOptions options;
        options.interleave_nodes = interleave_nodes;
        options.nameless = nameless;
        options.overwrite = overwrite;
        options.progress = [&progress](std::size_t done) {
            run_signal_handlers();
            running_python([&] { progress(done); });
        };
        state.core = ReplayBuffer::create({name, shape, seed, description, options});
    });
}

// How many rows make a segment of at most that share of what may be allocated now.
std::uint64_t largest_size(const std::vector<FieldDescription>& fields, bool prioritized,
                           const std::string& description, double share, bool nameless) {
    std::vector<FieldRule> rules = make_rules(fields);
    const Schema schema = make_schema(rules);
    constexpr double largest_segment = 0x1p45;
    const auto free = static_cast<double>(largest_room(nameless ? "" : SegmentOptions().directory));
    const double room = std::min(share * free, largest_segment);
    const auto fits = [&](std::uint64_t size) {
        const RingShape shape{size, schema.row_bytes(), schema.stride(), prioritized, 0.0, 0.0};
        return static_cast<double>(plan_segment(shape, description, 0).total_bytes) <= room;
    };
    std::uint64_t least = 0;
    std::uint64_t beyond =
        static_cast<std::uint64_t>(room) / (schema.stride() + sizeof(std::uint64_t)) + 1;
    while (beyond - least > 1) {
        const std::uint64_t middle = least + (beyond - least) / 2;
        (fits(middle) ? least : beyond) = middle;
    }
    return least;
}

std::string attach(const py::object& self, const std::string& name, int descriptor) {
    std::string description;
    open_with(self, [&](BufferState& state) {
        state.core = descriptor < 0 ? ReplayBuffer::attach(name)
                                    : ReplayBuffer::attach_descriptor(descriptor, name);
        description = state.core->description();
    });
    return description;
}

// Hands what `source` has open to `target`, an object of another class that has nothing open yet.
void move(const py::object& source, const py::object& target) {
    if (buffer_object(target).state != nullptr) {
        throw py::value_error("this buffer object is open already");
    }
    std::swap(buffer_object(source).state, buffer_object(target).state);
}

void set_fields(const py::object& self, const std::vector<FieldDescription>& fields, bool strict) {
    BufferState& state = state_of(self);
    std::vector<FieldRule> rules = make_rules(fields);
    const Schema schema = make_schema(rules);
    const RingEntry& shape = state.core->shape();
    if (schema.row_bytes() != shape.row_bytes || schema.stride() != shape.stride) {
        throw SegmentMismatch("cannot attach '" + state.core->name() +
                              "': its fields make rows of " + std::to_string(schema.row_bytes()) +
                              " bytes, its header says " + std::to_string(shape.row_bytes));
    }
    state.rules = std::move(rules);
    state.strict = strict;
}

py::list fields(const py::object& self) {
    py::list all;
    for (const FieldRule& rule : state_of(self).rules) {
        all.append(py::make_tuple(rule.name, rule.dtype, py::cast(rule.shape)));
    }
    return all;
}

void close(const py::object& self) {
    BufferState* state = buffer_object(self).state;
    if (state == nullptr || !state->core || !state->core->is_open()) return;
    state->core->close();
    state->sample_memory.reset();
}

bool is_open(const py::object& self) {
    const BufferState* state = buffer_object(self).state;
    return state != nullptr && state->core && state->core->is_open();
}

std::string name(const py::object& self) {
    const BufferState* state = buffer_object(self).state;
    if (state == nullptr || !state->core) return state_of(self).core->name();
    return state->core->name();
}

py::dict all_rows(const py::object& self, bool shuffle) {
    BufferState& state = state_of(self);
    std::optional<OutputArrays> output;
    std::size_t room = 0;
    const auto make_room = [&](std::size_t rows) -> std::span<const FieldTarget> {
        room = rows;
        return output.emplace(state, rows).targets;
    };
    const std::size_t rows = state.core->read_all(shuffle, make_room, run_signal_handlers);
    py::dict all = output->to_dict(state);
    if (rows == room) return all;
    const py::slice present(py::int_(0), py::int_(rows), py::none());
    for (const FieldRule& rule : state.rules) all[rule.name] = all[rule.name][present];
    return all;
}

py::dict rows_at(const py::object& self, const py::object& indexes) {
    BufferState& state = state_of(self);
    const ConvertedIndexes converted = convert_indexes(state, "read rows", indexes.ptr());
    const OutputArrays output(state, converted.slots.size());
    const std::vector<std::uint64_t> slots(converted.slots.begin(), converted.slots.end());
    std::optional<std::uint64_t> missing;
    state.core->read_slots(slots, output.targets, run_signal_handlers, &missing);
    if (missing) {
        throw IndexOutOfRange("cannot read slot " + std::to_string(*missing) + " of '" +
                              state.core->name() + "': it holds no complete row");
    }
    return output.to_dict(state);
}

py::object generations(const py::object& self, const py::object& indexes) {
    BufferState& state = state_of(self);
    ConvertedIndexes converted = convert_indexes(state, "get generations", indexes.ptr());
    state.core->find_generations(converted.slots, converted.generations);
    npy_intp dims[1] = {static_cast<npy_intp>(converted.slots.size())};
    const auto result = py::reinterpret_steal<py::object>(PyArray_SimpleNew(1, dims, NPY_UINT64));
    if (!result) throw py::error_already_set();
    auto* values =
        static_cast<std::uint64_t*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(result.ptr())));
    {
        const CoreCall call;
        let_others_copy(converted.generations.size() * sizeof *values);
        std::copy(converted.generations.begin(), converted.generations.end(), values);
    }
    return result;
}

py::object leaves(const py::object& self) {
    const std::vector<float> all = state_of(self).core->leaves();
    npy_intp dims[1] = {static_cast<npy_intp>(all.size())};
    const auto result = py::reinterpret_steal<py::object>(PyArray_SimpleNew(1, dims, NPY_FLOAT32));
    if (!result) throw py::error_already_set();
    std::memcpy(PyArray_DATA(reinterpret_cast<PyArrayObject*>(result.ptr())), all.data(),
                all.size() * sizeof(float));
    return result;
}

py::dict learner_status(const py::object& self) {
    return dict_of_learner(state_of(self).core->learner_status());
}

py::list processes(const py::object& self) {
    py::list all;
    for (const ProcessStatus& each : state_of(self).core->processes()) {
        all.append(py::make_tuple(each.number, each.pid, std::string(1, each.state), each.rows,
                                  each.skips, each.steals));
    }
    return all;
}

py::dict shape(const py::object& self) {
    const RingEntry& entry = state_of(self).core->shape();
    py::dict all;
    all["size"] = entry.capacity;
    all["row_bytes"] = entry.row_bytes;
    all["stride"] = entry.stride;
    all["prioritized"] = entry.prioritized != 0;
    all["alpha"] = entry.alpha;
    all["eps"] = entry.eps;
    return all;
}

// Handles, locks and the learner's role are one process's, whatever its interpreters.
int refuse_subinterpreters(PyObject*) {
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) return 0;
    PyErr_SetString(PyExc_ImportError,
                    "cannot import mpbuffer in a subinterpreter: it works in the main interpreter "
                    "only; use a process instead");
    return -1;
}

}  // namespace

PYBIND11_MODULE_EXEC(_core, module) {
    if (_import_array() < 0) throw py::error_already_set();
    install_program_lock();
    py::register_local_exception_translator([](std::exception_ptr error) {
        if (!error) return;
        try {
            std::rethrow_exception(error);
        } catch (const Error&) {
            set_python_error();
        }
    });
    module.doc() = "The core of mpbuffer: buffers in shared memory. Use mpbuffer instead.";
    module.attr("source_digest") = mpbuffer_source_digest;
    add_buffer_types(module);

    module.def("create", create, py::arg("buffer"), py::arg("name"), py::arg("size"),
               py::arg("fields"), py::arg("prioritized"), py::arg("alpha"), py::arg("eps"),
               py::arg("seed"), py::arg("strict"), py::arg("description"),
               py::arg("interleave_nodes"), py::arg("nameless"), py::arg("overwrite"),
               py::arg("progress"));
    module.def("largest_size", largest_size, py::arg("fields"), py::arg("prioritized"),
               py::arg("description"), py::arg("share"), py::arg("nameless"));
    module.def("attach", attach, py::arg("buffer"), py::arg("name"), py::arg("descriptor") = -1);
    module.def("move", move, py::arg("source"), py::arg("target"));
    module.def("set_fields", set_fields, py::arg("buffer"), py::arg("fields"), py::arg("strict"));
    module.def("fields", fields, py::arg("buffer"));
    module.def("close", close, py::arg("buffer"));
    module.def("is_open", is_open, py::arg("buffer"));
    module.def("name", name, py::arg("buffer"));
    module.def("shape", shape, py::arg("buffer"));
    module.def(
        "data_descriptor",
        [](const py::object& self) { return state_of(self).core->data_descriptor(); },
        py::arg("buffer"));
    module.def("generate_name", generate_name);
    module.def("converted", converted_to, py::arg("what"), py::arg("value"), py::arg("dtype"));
    module.def(
        "checked_beta", [](const py::object& beta) { return convert_beta(beta.ptr()); },
        py::arg("beta"));
    module.def(
        "clear",
        [](const py::object& self) {
            BufferState& state = state_of(self);
            if (state.steps) state.steps->drop();
            state.core->clear();
            state.episode_length = 0;
        },
        py::arg("buffer"));
    module.def(
        "stored_size", [](const py::object& self) { return state_of(self).core->stored_size(); },
        py::arg("buffer"));
    module.def(
        "next_index", [](const py::object& self) { return state_of(self).core->next_slot(); },
        py::arg("buffer"));
    module.def(
        "max_priority", [](const py::object& self) { return state_of(self).core->max_priority(); },
        py::arg("buffer"));
    module.def(
        "rows_added", [](const py::object& self) { return state_of(self).core->rows_added(); },
        py::arg("buffer"));
    module.def(
        "acquire_learner", [](const py::object& self) { state_of(self).core->take_learner_role(); },
        py::arg("buffer"));
    module.def(
        "release_learner", [](const py::object& self) { state_of(self).core->release_learner(); },
        py::arg("buffer"));
    module.def(
        "tree_total", [](const py::object& self) { return state_of(self).core->total(); },
        py::arg("buffer"));
    module.def(
        "episode_length", [](const py::object& self) { return state_of(self).episode_length; },
        py::arg("buffer"));
    module.def(
        "end_episode",
        [](const py::object& self) {
            BufferState& state = state_of(self);
            state.episode_length = 0;
            if (!state.steps) return;
            state.steps->cut_off_all();
            write_staged(state, *state.steps, nullptr);
        },
        py::arg("buffer"));
    module.def("all_rows", all_rows, py::arg("buffer"), py::arg("shuffle"));
    module.def("rows_at", rows_at, py::arg("buffer"), py::arg("indexes"));
    module.def("generations", generations, py::arg("buffer"), py::arg("indexes"));
    module.def("leaves", leaves, py::arg("buffer"));
    module.def("learner_status", learner_status, py::arg("buffer"));
    module.def("processes", processes, py::arg("buffer"));
    module.def(
        "end_with_learner",
        [](pid_t pid, std::uint64_t start_time, double grace, int status) {
            end_with_learner(pid, start_time, std::chrono::milliseconds(std::lround(grace * 1e3)),
                             status);
        },
        py::arg("pid"), py::arg("start_time"), py::arg("grace"), py::arg("status"));
    module.def("end_by_signal", end_by_signal, py::arg("signal"));
    add_batch_gatherer_type(module);
    add_deferred_signals_type(module);
    add_inspection_calls(module);
    add_step_writer_type(module);
    add_weights_type(module);
}

// In place of pybind11's own, which hangs in a subinterpreter before Python 3.12. Subinterpreters
// are said to be supported, or some would be refused without a reason. Free-threaded builds are
// not: they turn the GIL on.
PYBIND11_PLUGIN_IMPL(_core) {
    static PyModuleDef_Slot slots[] = {
        {Py_mod_exec, reinterpret_cast<void*>(refuse_subinterpreters)},
        {Py_mod_exec, reinterpret_cast<void*>(pybind11_exec__core)},
#ifdef Py_mod_multiple_interpreters
        {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
        {0, nullptr}};
    static PyModuleDef definition{
        PyModuleDef_HEAD_INIT, "_core", nullptr, 0, nullptr, slots, nullptr, nullptr, nullptr};
    return PyModuleDef_Init(&definition);
}

}  // namespace mpbuffer::bindings
