#include "convert/field_rules.hpp"

#include <cmath>
#include <concepts>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "errors.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

std::string dtype_in_words(PyArray_Descr* descr) {
    return text_of(reinterpret_cast<PyObject*>(descr));
}

// How many rows an array of this shape holds; -1 if it does not fit the field.
npy_intp rows_in(const FieldRule& rule, int ndim, const npy_intp* dims) {
    const auto inner = static_cast<int>(rule.shape.size());
    const auto ends_in_shape = [&](int from) {
        for (int i = 0; i < inner; ++i) {
            if (dims[from + i] != rule.shape[static_cast<std::size_t>(i)]) return false;
        }
        return true;
    };
    if (ndim == inner && ends_in_shape(0)) return 1;
    if (ndim == inner + 1 && ends_in_shape(1)) return dims[0];
    if (!rule.one_element) return -1;
    for (int i = 1; i < ndim; ++i) {
        if (dims[i] != 1) return -1;
    }
    return ndim == 0 ? 1 : dims[0];
}

npy_intp require_rows(const FieldRule& rule, PyArrayObject* values) {
    const npy_intp rows = rows_in(rule, PyArray_NDIM(values), PyArray_DIMS(values));
    if (rows < 0) {
        throw_python(PyExc_ValueError,
                     "cannot add field " + rule.text() + ": got shape " +
                         shape_in_words(PyArray_NDIM(values), PyArray_DIMS(values)) +
                         ", expected " + rule.shape_text() + " for one row or (n, ...) + " +
                         rule.shape_text() + " for n rows");
    }
    return rows;
}

enum class Storing { done, does_not_fit, needs_array };

template <class Number>
Storing store(double value, std::byte* to) {
    Number number;
    if constexpr (std::is_floating_point_v<Number>) {
        number = static_cast<Number>(value);
        if (std::isinf(number) && !std::isinf(value)) return Storing::does_not_fit;
    } else {
        const double limit = std::ldexp(1.0, std::numeric_limits<Number>::digits);
        const double lowest = std::is_signed_v<Number> ? -limit : 0.0;
        if (!(value >= lowest && value < limit)) return Storing::does_not_fit;
        number = static_cast<Number>(value);
        if (static_cast<double>(number) != value) return Storing::does_not_fit;
    }
    std::memcpy(to, &number, sizeof number);
    return Storing::done;
}

template <class Number, std::integral Value>
Storing store(Value value, std::byte* to) {
    if constexpr (!std::is_floating_point_v<Number>) {
        if (!std::in_range<Number>(value)) return Storing::does_not_fit;
    }
    const auto number = static_cast<Number>(value);
    std::memcpy(to, &number, sizeof number);
    return Storing::done;
}

template <class Value>
Storing store_as(int type_number, Value value, std::byte* to) {
    switch (type_number) {
        case NPY_BOOL: {
            if (value != 0 && value != 1) return Storing::does_not_fit;
            const npy_bool truth = value != 0 ? 1 : 0;
            std::memcpy(to, &truth, sizeof truth);
            return Storing::done;
        }
        case NPY_FLOAT: return store<float>(value, to);
        case NPY_DOUBLE: return store<double>(value, to);
        case NPY_BYTE: return store<signed char>(value, to);
        case NPY_UBYTE: return store<unsigned char>(value, to);
        case NPY_SHORT: return store<short>(value, to);
        case NPY_USHORT: return store<unsigned short>(value, to);
        case NPY_INT: return store<int>(value, to);
        case NPY_UINT: return store<unsigned>(value, to);
        case NPY_LONG: return store<long>(value, to);
        case NPY_ULONG: return store<unsigned long>(value, to);
        case NPY_LONGLONG: return store<long long>(value, to);
        case NPY_ULONGLONG: return store<unsigned long long>(value, to);
        default: return Storing::needs_array;
    }
}

// An int that is no long long.
Storing store_large_int(int type_number, PyObject* value, std::byte* to) {
    const unsigned long long number = PyLong_AsUnsignedLongLong(value);
    if (number != static_cast<unsigned long long>(-1) || PyErr_Occurred() == nullptr) {
        return store_as(type_number, number, to);
    }
    PyErr_Clear();
    if (PyTypeNum_ISINTEGER(type_number) || PyTypeNum_ISBOOL(type_number)) {
        return Storing::does_not_fit;
    }
    const double rounded = PyLong_AsDouble(value);
    if (rounded != -1.0 || PyErr_Occurred() == nullptr) return store_as(type_number, rounded, to);
    PyErr_Clear();
    return type_number == NPY_FLOAT || type_number == NPY_DOUBLE ? Storing::does_not_fit
                                                                 : Storing::needs_array;
}

// Scalars that environments return, without an array in between.
Storing convert_scalar(const FieldRule& rule, PyObject* value, std::byte* to) {
    if (PyFloat_Check(value)) return store_as(rule.type_number, PyFloat_AS_DOUBLE(value), to);
    if (PyBool_Check(value)) return store_as(rule.type_number, value == Py_True ? 1LL : 0LL, to);
    if (PyLong_CheckExact(value)) {
        int overflow = 0;
        const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        return overflow == 0 ? store_as(rule.type_number, number, to)
                             : store_large_int(rule.type_number, value, to);
    }
    if (PyArray_IsScalar(value, Long)) {
        return store_as(rule.type_number, static_cast<long long>(PyArrayScalar_VAL(value, Long)),
                        to);
    }
    if (PyArray_IsScalar(value, Float)) {
        return store_as(rule.type_number, static_cast<double>(PyArrayScalar_VAL(value, Float)), to);
    }
    if (PyArray_IsScalar(value, Bool)) {
        return store_as(rule.type_number, PyArrayScalar_VAL(value, Bool) == NPY_FALSE ? 0LL : 1LL,
                        to);
    }
    if (PyArray_IsScalar(value, Int)) {
        return store_as(rule.type_number, static_cast<long long>(PyArrayScalar_VAL(value, Int)),
                        to);
    }
    return Storing::needs_array;
}

// Raises the Python error that is set as one that names the object.
[[noreturn]] void rethrow_about(const std::string& what) {
    PyObject* type = PyErr_ExceptionMatches(PyExc_OverflowError) ? PyExc_OverflowError
                     : PyErr_ExceptionMatches(PyExc_ValueError)  ? PyExc_ValueError
                                                                 : PyExc_TypeError;
    if (PyErr_ExceptionMatches(PyExc_MemoryError) || !PyErr_ExceptionMatches(PyExc_Exception)) {
        throw py::error_already_set();
    }
    PyObject* kind = nullptr;
    PyObject* value = nullptr;
    PyObject* trace = nullptr;
    PyErr_Fetch(&kind, &value, &trace);
    std::string cause = "an exception";
    if (value != nullptr) {
        PyObject* text = PyObject_Str(value);
        if (text != nullptr) {
            cause = py::reinterpret_steal<py::str>(text).cast<std::string>();
        } else {
            PyErr_Clear();
        }
    }
    PyErr_Restore(kind, value, trace);
    throw_python_from(type, what + ": " + cause);
}

// Any number may be stored as any other, except complex as real; other dtypes if NumPy calls the
// cast one of the same kind. Whether the values fit is checked elsewhere.
void require_castable(const std::string& what, PyArray_Descr* from, PyArray_Descr* to) {
    bool fits = false;
    const NumberKind given = number_kind(from);
    const NumberKind wanted = number_kind(to);
    if (given != NumberKind::none && wanted != NumberKind::none) {
        fits = given == NumberKind::real || wanted == NumberKind::complex;
    } else {
        fits = PyArray_CanCastTypeTo(from, to, NPY_SAME_KIND_CASTING) != 0;
        if (to->type_num == NPY_VOID && from->type_num == NPY_VOID &&
            PyDataType_ELSIZE(from) > PyDataType_ELSIZE(to) && !PyDataType_HASFIELDS(to)) {
            fits = false;
        }
    }
    if (!fits) {
        throw_python(PyExc_TypeError, what + ": got dtype " + dtype_in_words(from) + ", expected " +
                                          dtype_in_words(to) + " or what converts to it");
    }
}

py::object cast_array(const std::string& what, const py::object& source, PyArray_Descr* to,
                      const ValueRange& range) {
    require_castable(what, PyArray_DESCR(array_of(source)), to);
    try {
        require_values_fit(what, source, to, range);
    } catch (py::error_already_set& error) {
        if (error.matches(PyExc_ValueError)) throw;
        error.restore();
        rethrow_about(what);
    }
    Py_INCREF(to);
    PyObject* cast = native_array(array_of(source), to);
    if (cast == nullptr) rethrow_about(what);
    return py::reinterpret_steal<py::object>(cast);
}

[[noreturn]] void throw_unfit_scalar(const FieldRule& rule, PyObject* value) {
    throw_unfit("cannot add field " + rule.text(), text_of(value), rule.range->words);
}

// A tensor of floats that NumPy has no dtype for, as float32, which holds them all; else nothing.
py::object widened_tensor(PyObject* value) {
    const py::handle tensor(value);
    const py::object dtype = py::getattr(tensor, "dtype", py::none());
    if (!py::getattr(dtype, "is_floating_point", py::bool_(false)).cast<bool>()) return {};
    if (tensor.attr("element_size")().cast<int>() >= 4) return {};
    return tensor.attr("float")();
}

}  // namespace

std::vector<FieldRule> make_rules(const std::vector<FieldDescription>& descriptions) {
    std::vector<FieldRule> rules;
    for (const auto& [name, dtype, shape] : descriptions) {
        if (PyArray_DescrCheck(dtype.ptr()) == 0) {
            throw py::type_error("a field's dtype is no numpy.dtype");
        }
        PyArray_Descr* descr = descr_of(dtype);
        FieldRule rule{};
        rule.name = owned(PyUnicode_InternFromString(name.c_str()));
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

std::string shape_in_words(int ndim, const npy_intp* dims) {
    std::string text = "(";
    for (int i = 0; i < ndim; ++i) {
        text += std::to_string(dims[i]) + (i + 1 < ndim ? ", " : ndim == 1 ? "," : "");
    }
    return text + ")";
}

py::object converted_to(const std::string& what, const py::object& value, const py::object& dtype) {
    if (!PyArray_DescrCheck(dtype.ptr())) throw py::type_error("expected a numpy.dtype");
    const py::object native = dtype.attr("newbyteorder")("=");
    return cast_array(what, as_array(what, value.ptr()), descr_of(native), range_of(native));
}

std::string type_in_words(PyObject* value) {
    return value == nullptr ? "nothing" : std::string(Py_TYPE(value)->tp_name);
}

std::string text_of(PyObject* object) {
    return running_python([object] { return py::str(py::handle(object)).cast<std::string>(); });
}

std::string FieldRule::text() const { return "'" + name.cast<std::string>() + "'"; }

std::string FieldRule::shape_text() const {
    return shape_in_words(static_cast<int>(shape.size()), shape.data());
}

py::object as_array(const std::string& what, PyObject* value) {
    if (PyArray_Check(value)) return py::reinterpret_borrow<py::object>(value);
    PyObject* converted = running_python([value]() -> PyObject* {
        if (!PyArray_CheckAnyScalar(value) && !PySequence_Check(value) &&
            PyObject_HasAttrString(value, "__array__") == 0 &&
            PyObject_HasAttrString(value, "__dlpack__") != 0) {
            const py::object from_dlpack = py::module_::import("numpy").attr("from_dlpack");
            return PyObject_CallOneArg(from_dlpack.ptr(), value);
        }
        PyObject* const array = PyArray_FromAny(value, nullptr, 0, 0, 0, nullptr);
        if (array != nullptr || !PyErr_ExceptionMatches(PyExc_TypeError)) return array;
        py::error_already_set error;
        const py::object widened = widened_tensor(value);
        if (!widened) {
            error.restore();
            return nullptr;
        }
        return PyArray_FromAny(widened.ptr(), nullptr, 0, 0, 0, nullptr);
    });
    if (converted == nullptr) rethrow_about(what);
    py::object result = py::reinterpret_steal<py::object>(converted);
    if (PyArray_TYPE(array_of(result)) == NPY_OBJECT) {
        throw_python(PyExc_TypeError, what + ": got a " + type_in_words(value) +
                                          " that NumPy can only hold as an object, expected an "
                                          "array, a number or nested lists of one length");
    }
    return result;
}

void convert_field(const FieldRule& rule, PyObject* value, ConvertedField& converted) {
    if (PyArray_CheckExact(value)) [[likely]] {
        auto* const values = reinterpret_cast<PyArrayObject*>(value);
        if (rule.plain && PyArray_TYPE(values) == rule.type_number &&
            PyArray_IS_C_CONTIGUOUS(values) && PyArray_ISNOTSWAPPED(values)) [[likely]] {
            converted.rows = require_rows(rule, values);
            converted.is_scalar = PyArray_NDIM(values) == 0;
            converted.values = static_cast<const std::byte*>(PyArray_DATA(values));
            // The caller's arguments keep the array alive, but not its memory while the GIL is
            // released: ndarray.resize refuses only if somebody else refers to it.
            converted.owner = py::reinterpret_borrow<py::object>(value);
            return;
        }
    } else if (rule.one_element) {
        const Storing storing = convert_scalar(rule, value, converted.scalar.data());
        if (storing == Storing::done) [[likely]] {
            converted.rows = 1;
            converted.is_scalar = true;
            converted.values = converted.scalar.data();
            return;
        }
        if (storing == Storing::does_not_fit) throw_unfit_scalar(rule, value);
    }
    const std::string what = "cannot add field " + rule.text();
    const py::object source = as_array(what, value);
    (void)require_rows(rule, array_of(source));  // before its values are looked at
    converted.is_scalar = PyArray_NDIM(array_of(source)) == 0;
    converted.owner = cast_array(what, source, rule.descr(), *rule.range);
    converted.rows = require_rows(rule, array_of(converted.owner));
    converted.values = values_of<const std::byte>(converted.owner);
}

void convert_numbers(const char* what, PyObject* value, ConvertedNumbers& converted) {
    const auto one = [&converted](double number) {
        converted.one = number;
        converted.values = &converted.one;
        converted.count = 1;
        converted.scalar = true;
    };
    if (PyFloat_Check(value)) return one(PyFloat_AS_DOUBLE(value));
    if (PyLong_CheckExact(value)) {
        const double number = PyLong_AsDouble(value);
        if (number == -1.0 && PyErr_Occurred() != nullptr) rethrow_about(what);
        return one(number);
    }
    const py::object source = as_array(what, value);
    const py::object doubles = owned(PyArray_DescrFromType(NPY_DOUBLE));
    const py::object numbers = cast_array(what, source, descr_of(doubles), ValueRange());
    converted.values = values_of<const double>(numbers);
    converted.count = PyArray_SIZE(array_of(numbers));
    converted.scalar = PyArray_NDIM(array_of(numbers)) == 0;
    converted.owner = numbers;
}

}  // namespace mpbuffer::bindings
