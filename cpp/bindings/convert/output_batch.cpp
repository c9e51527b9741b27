#include "convert/output_batch.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "convert/field_arguments.hpp"
#include "convert/generations.hpp"
#include "errors.hpp"
#include "state.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

void set_item(const py::dict& dict, PyObject* key, const py::object& value) {
    if (PyDict_SetItem(dict.ptr(), key, value.ptr()) < 0) throw py::error_already_set();
}

std::string array_in_words(PyArray_Descr* descr, int ndim, const npy_intp* dims) {
    return "shape " + shape_in_words(ndim, dims) + " and dtype " +
           text_of(reinterpret_cast<PyObject*>(descr));
}

// What the dict has by that name, or nothing. Comparing keys may run Python code.
py::object find(const py::dict& dict, PyObject* name) {
    PyObject* value = running_python([&] { return PyDict_GetItemWithError(dict.ptr(), name); });
    if (value == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return py::reinterpret_borrow<py::object>(value);
}

// The array out[name], if rows can be written straight into it.
py::object writable_array(const py::dict& out, PyObject* name, PyArray_Descr* descr, int ndim,
                          const npy_intp* dims) {
    const py::object value = find(out, name);
    const auto what = [name] { return "cannot sample into out['" + text_of(name) + "']: "; };
    if (!value) {
        throw_python(PyExc_KeyError, what() + "it is missing, expected an array of " +
                                         array_in_words(descr, ndim, dims));
    }
    if (PyArray_Check(value.ptr()) == 0) {
        throw_python(PyExc_TypeError, what() + "got a " + type_in_words(value.ptr()) +
                                          ", expected a numpy.ndarray of " +
                                          array_in_words(descr, ndim, dims));
    }
    auto* const given = array_of(value);
    const bool fits =
        PyArray_NDIM(given) == ndim && std::equal(dims, dims + ndim, PyArray_DIMS(given)) &&
        PyArray_EquivTypes(PyArray_DESCR(given), descr) != 0 && PyArray_ISCARRAY(given);
    if (!fits) {
        throw_python(
            PyExc_ValueError,
            what() + "got " +
                array_in_words(PyArray_DESCR(given), PyArray_NDIM(given), PyArray_DIMS(given)) +
                (PyArray_ISCARRAY(given)      ? ""
                 : PyArray_ISWRITEABLE(given) ? ", not contiguous or not aligned"
                                              : ", read-only") +
                ", expected a writable C-contiguous array of " + array_in_words(descr, ndim, dims));
    }
    return value;
}

// Where an array of a batch lies, and its name.
struct Place {
    const std::byte* first;
    const std::byte* last;
    PyObject* name;
};

Place place_of(const py::object& values, PyObject* name) {
    const auto* first = values_of<const std::byte>(values);
    return {first, first + PyArray_NBYTES(array_of(values)), name};
}

void require_apart(std::vector<Place>& places) {
    std::erase_if(places, [](const Place& each) { return each.first == each.last; });
    std::sort(places.begin(), places.end(),
              [](const Place& one, const Place& other) { return one.first < other.first; });
    const auto shared = std::adjacent_find(
        places.begin(), places.end(),
        [](const Place& one, const Place& other) { return other.first < one.last; });
    if (shared == places.end()) return;
    throw_python(PyExc_ValueError, "cannot sample into out['" + text_of(shared[1].name) +
                                       "']: it shares memory with out['" + text_of(shared->name) +
                                       "'], expected arrays that are apart");
}

bool has_field(const BufferState& state, PyObject* name) {
    const std::vector<FieldRule>& sampled = state.sampled();
    return std::any_of(sampled.begin(), sampled.end(),
                       [name](const FieldRule& rule) { return same_name(rule.name.ptr(), name); });
}

void require_no_field(const BufferState& state, PyObject* name) {
    if (!has_field(state, name)) return;
    throw_python(PyExc_ValueError, "cannot sample: a field has the name '" + text_of(name) +
                                       "', which the batch needs");
}

// The shape of the field's array for so many rows; returns whether the steps come first.
bool shape_of(const FieldRule& rule, std::size_t rows, bool time_major,
              std::vector<npy_intp>& dims) {
    dims = rule.out_shape;
    dims[0] = static_cast<npy_intp>(rows);
    const bool across = time_major && rule.steps != 0;
    if (across) std::swap(dims[0], dims[1]);
    return across;
}

void require_suitable(const BufferState& state, BatchParts parts) {
    if (parts.probabilities) require_no_field(state, names().probabilities);
    if (!parts.time_major || state.sequences) return;
    throw_python(PyExc_ValueError,
                 "cannot sample from '" + state.core->name() +
                     "' with time_major=True: its rows are single steps, expected a buffer made "
                     "with sequence=");
}

py::object array_from(RecycledMemory* memory, PyArray_Descr* descr, int ndim,
                      const npy_intp* dims) {
    return memory == nullptr ? fresh_array(descr, ndim, dims) : memory->array(descr, ndim, dims);
}

}  // namespace

std::size_t batch_bytes(const BufferState& state, std::size_t rows) {
    return rows * (state.core->given_bytes() + 2 * sizeof(float));
}

OutputArrays::OutputArrays(const BufferState& state, std::size_t rows, RecycledMemory* memory,
                           bool time_major) {
    const std::vector<FieldRule>& sampled = state.sampled();
    arrays.reserve(sampled.size());
    targets.reserve(sampled.size());
    std::vector<npy_intp> dims;
    for (const FieldRule& rule : sampled) {
        const bool across = shape_of(rule, rows, time_major, dims);
        const auto ndim = static_cast<int>(dims.size());
        arrays.push_back(array_from(memory, rule.descr(), ndim, dims.data()));
        targets.push_back(
            {values_of<std::byte>(arrays.back()), rule.offset, rule.row_bytes, across ? rows : 0});
    }
}

py::dict OutputArrays::to_dict(const BufferState& state) const {
    py::dict batch;
    for (std::size_t i = 0; i < arrays.size(); ++i) {
        set_item(batch, state.sampled()[i].name.ptr(), arrays[i]);
    }
    return batch;
}

OutputBatch::OutputBatch(const BufferState& state, std::size_t rows, BatchParts parts,
                         PyObject* out) {
    require_suitable(state, parts);
    if (out == nullptr || out == Py_None) {
        const std::shared_ptr<RecycledMemory> memory = state.sample_memory;
        if (memory) memory->keep_at_most(batch_bytes(state, rows));
        make_fresh(state, rows, parts, memory.get());
    } else if (PyDict_Check(out) != 0) {
        dict_ = py::reinterpret_borrow<py::dict>(out);
        take_over(state, rows, parts);
    } else {
        throw_python(PyExc_TypeError, "cannot sample into out: got a " + type_in_words(out) +
                                          ", expected a dict of arrays, such as an earlier batch");
    }
    add_scratch(rows);
}

OutputBatch::OutputBatch(const BufferState& state, std::size_t rows, BatchParts parts,
                         RecycledMemory& memory) {
    require_suitable(state, parts);
    make_fresh(state, rows, parts, &memory);
    add_scratch(rows);
}

void OutputBatch::add_scratch(std::size_t rows) {
    if (indexes_ == nullptr) {
        slots_and_generations_.resize(2 * rows);
        indexes_ = reinterpret_cast<std::int64_t*>(slots_and_generations_.data());
        generations_ = slots_and_generations_.data() + rows;
    } else if (generations_ == nullptr) {
        slots_and_generations_.resize(rows);
        generations_ = slots_and_generations_.data();
    }
}

void OutputBatch::make_fresh(const BufferState& state, std::size_t rows, BatchParts parts,
                             RecycledMemory* memory) {
    OutputArrays fields(state, rows, memory, parts.time_major);
    dict_ = fields.to_dict(state);
    if (state.sequences && state.sequences->of_episodes()) {
        ragged_ = &state.sampled();
        time_ = parts.time_major ? 0 : 1;
    }
    targets_ = std::move(fields.targets);
    const npy_intp dims[1] = {static_cast<npy_intp>(rows)};
    const auto add_floats = [&](PyObject* name) {
        const py::object dtype = owned(PyArray_DescrFromType(NPY_FLOAT32));
        const py::object values = array_from(memory, descr_of(dtype), 1, dims);
        set_item(dict_, name, values);
        return values_of<float>(values);
    };
    if (parts.weights) weights_ = add_floats(names().weights);
    if (parts.probabilities) probabilities_ = add_floats(names().probabilities);
    if (parts.indexes) {
        const SampleBlock block = SampleBlock::allocate(rows, state.handle);
        indexes_ = block.indexes;
        generations_ = block.generations;
        set_item(dict_, names().indexes, block.to_array(rows));
    }
}

void OutputBatch::take_over(const BufferState& state, std::size_t rows, BatchParts parts) {
    std::vector<npy_intp> dims;
    std::vector<Place> places;
    const auto take = [&](PyObject* name, PyArray_Descr* descr) {
        py::object values =
            writable_array(dict_, name, descr, static_cast<int>(dims.size()), dims.data());
        places.push_back(place_of(values, name));
        kept_alive_.push_back(values);
        return PyArray_DATA(array_of(values));
    };
    if (state.sequences && state.sequences->of_episodes()) {
        throw_python(PyExc_ValueError,
                     "cannot sample from '" + state.core->name() +
                         "' into out: each batch is as long as its longest episode; expected no "
                         "out=");
    }
    for (const FieldRule& rule : state.sampled()) {
        const bool across = shape_of(rule, rows, parts.time_major, dims);
        targets_.push_back({static_cast<std::byte*>(take(rule.name.ptr(), rule.descr())),
                            rule.offset, rule.row_bytes, across ? rows : 0});
    }
    dims = {static_cast<npy_intp>(rows)};
    const auto take_floats = [&](PyObject* name, bool wanted) -> float* {
        if (!wanted) {
            if (!has_field(state, name)) outdated_.push_back(name);
            return nullptr;
        }
        const py::object dtype = owned(PyArray_DescrFromType(NPY_FLOAT32));
        return static_cast<float*>(take(name, descr_of(dtype)));
    };
    weights_ = take_floats(names().weights, parts.weights);
    probabilities_ = take_floats(names().probabilities, parts.probabilities);
    if (parts.indexes || (find(dict_, names().indexes) && !has_field(state, names().indexes))) {
        const py::object dtype = owned(PyArray_DescrFromType(NPY_INT64));
        indexes_ = static_cast<std::int64_t*>(take(names().indexes, descr_of(dtype)));
        generations_ = generations_beside(indexes_, rows, state.handle);
    }
    require_apart(places);
}

PyObject* OutputBatch::take_dict() {
    for (PyObject* const name : outdated_) {
        if (find(dict_, name) &&
            running_python([&] { return PyDict_DelItem(dict_.ptr(), name); }) < 0) {
            throw py::error_already_set();
        }
    }
    if (ragged_ != nullptr) cut_to_longest(dict_, *ragged_, time_);
    return dict_.release().ptr();
}

}  // namespace mpbuffer::bindings
