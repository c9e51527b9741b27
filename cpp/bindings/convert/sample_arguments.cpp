#include "convert/sample_arguments.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "base/guard.hpp"
#include "base/words.hpp"
#include "convert/generations.hpp"
#include "errors.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

// Whole numbers of another dtype, or not laid out for direct use, as a fresh int64 array.
py::object to_int64(const std::string& what, PyArrayObject* raw) {
    const int type_number = PyArray_TYPE(raw);
    if (PyTypeNum_ISFLOAT(type_number)) {
        const py::object doubles = native_array(raw, NPY_DOUBLE);
        const auto* first = values_of<double>(doubles);
        for (npy_intp i = 0; i < PyArray_SIZE(array_of(doubles)); ++i) {
            if (!(std::abs(first[i]) < 0x1p53 && first[i] == std::floor(first[i]))) {
                throw_python(PyExc_TypeError, what + ": index " + std::to_string(i) + " is " +
                                                  number_in_words(first[i]) +
                                                  ", expected a whole number");
            }
        }
        return native_array(array_of(doubles), NPY_INT64);
    }
    if (!PyTypeNum_ISINTEGER(type_number)) {
        throw_python(PyExc_TypeError, what + " have dtype " + text_of(dtype_of(raw).ptr()) +
                                          ", expected whole numbers");
    }
    return native_array(raw, NPY_INT64);
}

}  // namespace

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

double convert_beta(PyObject* value) {
    const double beta = running_python([value] { return PyFloat_AsDouble(value); });
    if (beta == -1.0 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (!(beta >= 0) || !std::isfinite(beta)) {
        throw_python(PyExc_ValueError, "cannot sample: beta is " + number_in_words(beta) +
                                           ", expected a finite number of at least 0");
    }
    return beta;
}

WeightNorm convert_weight_norm(PyObject* value) {
    if (value == nullptr) return WeightNorm::buffer;
    if (value == Py_None) return WeightNorm::none;
    if (PyUnicode_Check(value) != 0) {
        if (PyUnicode_CompareWithASCIIString(value, "buffer") == 0) return WeightNorm::buffer;
        if (PyUnicode_CompareWithASCIIString(value, "batch") == 0) return WeightNorm::batch;
    }
    const std::string given =
        running_python([value] { return py::repr(value).cast<std::string>(); });
    throw_python(PyExc_ValueError,
                 "cannot sample: weight_norm is " + given + ", expected 'buffer', 'batch' or None");
}

ConvertedIndexes convert_indexes(const BufferState& state, const char* verb, PyObject* value,
                                 bool from_end) {
    const std::string what = std::string("cannot ") + verb + ": indexes";
    py::object source = as_array(what, value);
    PyArrayObject* raw = array_of(source);
    // Unsigned indexes beyond int64 come out negative, and so out of range.
    const bool shared = (PyArray_EquivTypenums(PyArray_TYPE(raw), NPY_INT64) != 0 ||
                         PyArray_EquivTypenums(PyArray_TYPE(raw), NPY_UINT64) != 0) &&
                        PyArray_ISNOTSWAPPED(raw) && PyArray_ISALIGNED(raw);
    const auto count = static_cast<std::size_t>(PyArray_SIZE(raw));
    if (!shared) {
        source = to_int64(what, raw);
        raw = array_of(source);
    }
    py::object iterator;  // where one stride does not reach all
    if (PyArray_NDIM(raw) > 1) {
        iterator = owned(PyArray_IterNew(reinterpret_cast<PyObject*>(raw)));
    }
    const auto* const first = reinterpret_cast<const std::int64_t*>(PyArray_BYTES(raw));
    const GenerationsBeside beside =
        shared ? GenerationsBeside(first, state.handle) : GenerationsBeside();
    const std::uint64_t capacity = state.core->capacity();
    ConvertedIndexes converted;
    std::optional<std::pair<std::size_t, std::int64_t>> outside;
    const auto take = [&](std::size_t i, const std::int64_t* address) {
        std::int64_t slot = *address;
        if (from_end && slot < 0) slot += static_cast<std::int64_t>(capacity);
        if (slot < 0 || static_cast<std::uint64_t>(slot) >= capacity) {
            outside = {i, *address};
            return false;
        }
        converted.slots[i] = slot;
        converted.generations[i] = beside.of(address);
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
                                           std::to_string(outside->second) + ", expected one in [" +
                                           (from_end ? "-" + std::to_string(capacity) : "0") +
                                           ", " + std::to_string(capacity) + ")");
    }
    return converted;
}

void convert_generations(PyObject* value, ConvertedIndexes& indexes) {
    const std::size_t n = indexes.slots.size();
    const char* const what = "cannot update priorities: generations";
    const py::object source = as_array(what, value);
    PyArrayObject* const raw = array_of(source);
    if (!PyTypeNum_ISINTEGER(PyArray_TYPE(raw)) ||
        static_cast<std::size_t>(PyArray_SIZE(raw)) != n) {
        throw_python(PyExc_ValueError, std::string(what) + " are " +
                                           std::to_string(PyArray_SIZE(raw)) + " values of dtype " +
                                           text_of(dtype_of(raw).ptr()) + ", expected " +
                                           std::to_string(n) + " integers");
    }
    const py::object cast = native_array(raw, NPY_UINT64);
    const auto* first = values_of<std::uint64_t>(cast);
    const CoreCall call;
    let_others_scan(n);
    std::copy_n(first, n, indexes.generations.begin());
}

}  // namespace mpbuffer::bindings
