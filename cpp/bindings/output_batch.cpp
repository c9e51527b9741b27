#include "output_batch.hpp"

#include <algorithm>
#include <string>

#include "errors.hpp"
#include "hot_calls.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

PyArrayObject* array(const py::object& object) {
    return reinterpret_cast<PyArrayObject*>(object.ptr());
}

void set_item(const py::dict& dict, PyObject* key, const py::object& value) {
    if (PyDict_SetItem(dict.ptr(), key, value.ptr()) < 0) throw py::error_already_set();
}

std::string array_in_words(PyArray_Descr* descr, int ndim, const npy_intp* dims) {
    return "shape " + shape_in_words(ndim, dims) + " and dtype " +
           py::str(py::handle(reinterpret_cast<PyObject*>(descr))).cast<std::string>();
}

// The array out[name], if rows can be written straight into it.
py::object writable_array(const py::dict& out, const char* name, PyArray_Descr* descr, int ndim,
                          const npy_intp* dims) {
    const std::string what = std::string("cannot sample into out['") + name + "']: ";
    PyObject* value = PyDict_GetItemString(out.ptr(), name);
    if (value == nullptr) {
        throw_python(PyExc_KeyError, what + "it is missing, expected an array of " +
                                         array_in_words(descr, ndim, dims));
    }
    if (PyArray_Check(value) == 0) {
        throw_python(PyExc_TypeError, what + "got a " + type_in_words(value) +
                                          ", expected a numpy.ndarray of " +
                                          array_in_words(descr, ndim, dims));
    }
    auto* const given = reinterpret_cast<PyArrayObject*>(value);
    const bool fits =
        PyArray_NDIM(given) == ndim && std::equal(dims, dims + ndim, PyArray_DIMS(given)) &&
        PyArray_EquivTypes(PyArray_DESCR(given), descr) != 0 && PyArray_ISCARRAY(given);
    if (!fits) {
        throw_python(
            PyExc_ValueError,
            what + "got " +
                array_in_words(PyArray_DESCR(given), PyArray_NDIM(given), PyArray_DIMS(given)) +
                (PyArray_ISCARRAY(given)      ? ""
                 : PyArray_ISWRITEABLE(given) ? ", not contiguous or not aligned"
                                              : ", read-only") +
                ", expected a writable C-contiguous array of " + array_in_words(descr, ndim, dims));
    }
    return py::reinterpret_borrow<py::object>(value);
}

py::object descr_of(int type_number) {
    return py::reinterpret_steal<py::object>(
        reinterpret_cast<PyObject*>(PyArray_DescrFromType(type_number)));
}

PyArray_Descr* descr(const py::object& dtype) {
    return reinterpret_cast<PyArray_Descr*>(dtype.ptr());
}

}  // namespace

OutputArrays::OutputArrays(const BufferState& state, std::size_t rows, RecycledMemory* memory) {
    arrays.reserve(state.rules.size());
    targets.reserve(state.rules.size());
    std::vector<npy_intp> dims;
    for (const FieldRule& rule : state.rules) {
        dims = rule.out_shape;
        dims[0] = static_cast<npy_intp>(rows);
        const auto ndim = static_cast<int>(dims.size());
        arrays.push_back(memory == nullptr ? fresh_array(rule.descr(), ndim, dims.data())
                                           : memory->array(rule.descr(), ndim, dims.data()));
        targets.push_back({static_cast<std::byte*>(PyArray_DATA(array(arrays.back()))), rule.offset,
                           rule.row_bytes});
    }
}

py::dict OutputArrays::to_dict(const BufferState& state) const {
    py::dict batch;
    for (std::size_t i = 0; i < arrays.size(); ++i) {
        set_item(batch, state.rules[i].name.ptr(), arrays[i]);
    }
    return batch;
}

OutputBatch::OutputBatch(const BufferState& state, std::size_t rows, BatchParts parts,
                         PyObject* out) {
    if (out == nullptr || out == Py_None) {
        make_fresh(state, rows, parts);
    } else if (PyDict_Check(out) != 0) {
        dict_ = py::reinterpret_borrow<py::dict>(out);
        take_over(state, rows, parts);
    } else {
        throw_python(PyExc_TypeError, "cannot sample into out: got a " + type_in_words(out) +
                                          ", expected a dict of arrays, such as an earlier batch");
    }
    if (indexes_ == nullptr) {
        slots_and_generations_.resize(2 * rows);
        indexes_ = reinterpret_cast<std::int64_t*>(slots_and_generations_.data());
        generations_ = slots_and_generations_.data() + rows;
    } else if (generations_ == nullptr) {
        slots_and_generations_.resize(rows);
        generations_ = slots_and_generations_.data();
    }
}

void OutputBatch::make_fresh(const BufferState& state, std::size_t rows, BatchParts parts) {
    OutputArrays fields(state, rows, state.sample_memory.get());
    std::size_t large = 0;
    for (const FieldRule& rule : state.rules) {
        const std::size_t bytes = rows * rule.row_bytes;
        if (bytes >= RecycledMemory::least_bytes) large += bytes;
    }
    state.sample_memory->keep_at_most(large);
    dict_ = fields.to_dict(state);
    targets_ = std::move(fields.targets);
    const npy_intp dims[1] = {static_cast<npy_intp>(rows)};
    if (parts.weights) {
        const py::object dtype = descr_of(NPY_FLOAT32);
        const py::object weights = fresh_array(descr(dtype), 1, dims);
        weights_ = static_cast<float*>(PyArray_DATA(array(weights)));
        set_item(dict_, py::str("weights").ptr(), weights);
    }
    if (parts.indexes) {
        const SampleBlock block = SampleBlock::allocate(rows, state.handle);
        indexes_ = block.indexes;
        generations_ = block.generations;
        set_item(dict_, py::str("indexes").ptr(), block.to_array(rows));
    }
}

void OutputBatch::take_over(const BufferState& state, std::size_t rows, BatchParts parts) {
    std::vector<npy_intp> dims;
    for (const FieldRule& rule : state.rules) {
        dims = rule.out_shape;
        dims[0] = static_cast<npy_intp>(rows);
        const py::object values =
            writable_array(dict_, rule.name.cast<std::string>().c_str(), rule.descr(),
                           static_cast<int>(dims.size()), dims.data());
        targets_.push_back(
            {static_cast<std::byte*>(PyArray_DATA(array(values))), rule.offset, rule.row_bytes});
        kept_alive_.push_back(values);
    }
    const npy_intp count[1] = {static_cast<npy_intp>(rows)};
    if (parts.weights) {
        const py::object dtype = descr_of(NPY_FLOAT32);
        const py::object weights = writable_array(dict_, "weights", descr(dtype), 1, count);
        weights_ = static_cast<float*>(PyArray_DATA(array(weights)));
        kept_alive_.push_back(weights);
    }
    if (parts.indexes) {
        const py::object dtype = descr_of(NPY_INT64);
        const py::object indexes = writable_array(dict_, "indexes", descr(dtype), 1, count);
        indexes_ = static_cast<std::int64_t*>(PyArray_DATA(array(indexes)));
        generations_ = generations_beside(indexes_, rows, state.handle);
        kept_alive_.push_back(indexes);
    }
}

}  // namespace mpbuffer::bindings
