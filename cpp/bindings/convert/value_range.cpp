#include "convert/value_range.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#include "base/guard.hpp"
#include "errors.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

py::object dtype_object(PyArray_Descr* descr) {
    return py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(descr));
}

bool is_plain_number(int type_number) {
    return PyTypeNum_ISNUMBER(type_number) || PyTypeNum_ISBOOL(type_number);
}

bool casts_safely(PyArray_Descr* from, PyArray_Descr* to) {
    if (is_plain_number(from->type_num) && is_plain_number(to->type_num)) {
        return PyArray_CanCastSafely(from->type_num, to->type_num) != 0;
    }
    return PyArray_CanCastTypeTo(from, to, NPY_SAFE_CASTING) != 0;
}

bool casts_safely(PyArray_Descr* from, int type_number) {
    PyArray_Descr* to = PyArray_DescrFromType(type_number);
    const bool safe = casts_safely(from, to);
    Py_DECREF(to);
    return safe;
}

// The least and the largest finite numbers of a type that a range contains.
template <class Number>
std::pair<Number, Number> limits(const ValueRange& range) {
    using Own = std::numeric_limits<Number>;
    if constexpr (std::is_floating_point_v<Number>) {
        if (range.whole) {
            const Number beyond = static_cast<Number>(range.most) + 1;  // a power of two
            return {static_cast<Number>(range.least), std::nextafter(beyond, Number{0})};
        }
        auto lowest = static_cast<Number>(range.lowest);
        auto highest = static_cast<Number>(range.highest);
        if (lowest < range.lowest) lowest = std::nextafter(lowest, Own::max());
        if (highest > range.highest) highest = std::nextafter(highest, Own::lowest());
        return {lowest, highest};
    } else if (range.whole) {
        return {
            std::cmp_less(range.least, Own::min()) ? Own::min() : static_cast<Number>(range.least),
            std::cmp_greater(range.most, Own::max()) ? Own::max()
                                                     : static_cast<Number>(range.most)};
    } else {
        const auto least = static_cast<double>(Own::min());
        const auto most = static_cast<double>(Own::max());
        return {
            range.lowest <= least ? Own::min() : static_cast<Number>(std::ceil(range.lowest)),
            range.highest >= most ? Own::max() : static_cast<Number>(std::floor(range.highest))};
    }
}

// Whether none is below or above; NaN is neither.
template <class Number>
bool in_bounds(const Number* values, npy_intp count, Number lowest, Number highest) {
    constexpr npy_intp lanes = 8;  // side by side, for the compiler to vectorize
    std::array<Number, lanes> least{};
    std::array<Number, lanes> most{};
    least.fill(lowest);
    most.fill(highest);
    const auto take = [&](std::size_t lane, Number value) {
        least[lane] = value < least[lane] ? value : least[lane];
        most[lane] = value > most[lane] ? value : most[lane];
    };
    npy_intp i = 0;
    for (; i + lanes <= count; i += lanes) {
        for (npy_intp lane = 0; lane < lanes; ++lane) {
            take(static_cast<std::size_t>(lane), values[i + lane]);
        }
    }
    for (; i < count; ++i) take(0, values[i]);
    return std::all_of(least.begin(), least.end(),
                       [lowest](Number each) { return each >= lowest; }) &&
           std::all_of(most.begin(), most.end(),
                       [highest](Number each) { return each <= highest; });
}

// The place of the first number that is not in the range.
template <class Number>
std::optional<npy_intp> first_outside(const void* numbers, npy_intp count,
                                      const ValueRange& range) {
    const auto* const values = static_cast<const Number*>(numbers);
    const auto [lowest, highest] = limits<Number>(range);
    const auto outside = [lowest = lowest, highest = highest, &range](Number value) {
        if constexpr (std::is_floating_point_v<Number>) {
            if (std::isnan(value)) return !range.nan;
            if (std::isinf(value)) return !range.infinity;
            if (range.whole && value != std::floor(value)) return true;
        }
        return value < lowest || value > highest;
    };
    const bool bounds_say_all = !std::is_floating_point_v<Number> || (!range.whole && range.nan);
    constexpr npy_intp block = 256;
    for (npy_intp begin = 0; begin < count; begin += block) {
        const npy_intp end = std::min(count, begin + block);
        if (bounds_say_all && in_bounds(values + begin, end - begin, lowest, highest)) continue;
        for (npy_intp i = begin; i < end; ++i) {
            if (outside(values[i])) return i;
        }
    }
    return std::nullopt;
}

std::optional<npy_intp> first_outside(int type_number, const void* numbers, npy_intp count,
                                      const ValueRange& range) {
    switch (type_number) {
        case NPY_BOOL: return first_outside<npy_ubyte>(numbers, count, range);
        case NPY_BYTE: return first_outside<npy_byte>(numbers, count, range);
        case NPY_UBYTE: return first_outside<npy_ubyte>(numbers, count, range);
        case NPY_SHORT: return first_outside<npy_short>(numbers, count, range);
        case NPY_USHORT: return first_outside<npy_ushort>(numbers, count, range);
        case NPY_INT: return first_outside<npy_int>(numbers, count, range);
        case NPY_UINT: return first_outside<npy_uint>(numbers, count, range);
        case NPY_LONG: return first_outside<npy_long>(numbers, count, range);
        case NPY_ULONG: return first_outside<npy_ulong>(numbers, count, range);
        case NPY_LONGLONG: return first_outside<npy_longlong>(numbers, count, range);
        case NPY_ULONGLONG: return first_outside<npy_ulonglong>(numbers, count, range);
        case NPY_FLOAT: return first_outside<npy_float>(numbers, count, range);
        case NPY_LONGDOUBLE: return first_outside<npy_longdouble>(numbers, count, range);
        default: return first_outside<npy_double>(numbers, count, range);
    }
}

// What holds all numbers of a dtype, and is one that first_outside() knows, or a pair of those.
int loop_type(PyArray_Descr* from) {
    if (PyTypeNum_ISUSERDEF(from->type_num)) {
        return number_kind(from) == NumberKind::complex ? NPY_CDOUBLE : NPY_DOUBLE;
    }
    return from->type_num == NPY_HALF ? NPY_FLOAT : from->type_num;
}

int part_of(int type_number) {
    switch (type_number) {
        case NPY_CFLOAT: return NPY_FLOAT;
        case NPY_CDOUBLE: return NPY_DOUBLE;
        case NPY_CLONGDOUBLE: return NPY_LONGDOUBLE;
        default: return type_number;
    }
}

[[noreturn]] void throw_unfit_at(const std::string& what, const py::object& source, npy_intp place,
                                 const std::string& expected) {
    const py::object value = source.attr("flat")[py::int_(place)];
    std::string text = (py::isinstance<py::str>(value) || py::isinstance<py::bytes>(value)
                            ? py::repr(value.attr("__getitem__")(py::slice(0, 40, 1)))
                            : py::str(value))
                           .cast<std::string>();
    if (PyArray_SIZE(array_of(source)) > 1) text += " (number " + std::to_string(place) + ")";
    throw_unfit(what, text, expected);
}

void require_in_range(const std::string& what, const py::object& source, const ValueRange& range) {
    const int type_number = loop_type(PyArray_DESCR(array_of(source)));
    const bool direct =
        type_number == PyArray_TYPE(array_of(source)) && PyArray_ISCARRAY_RO(array_of(source));
    const py::object numbers = direct ? source : native_array(array_of(source), type_number, 0);
    const npy_intp parts = PyTypeNum_ISCOMPLEX(type_number) ? 2 : 1;
    const npy_intp count = PyArray_SIZE(array_of(numbers)) * parts;
    std::optional<npy_intp> outside;
    {
        const CoreCall call;
        let_others_scan(static_cast<std::size_t>(count));
        outside =
            first_outside(part_of(type_number), PyArray_DATA(array_of(numbers)), count, range);
    }
    if (outside) throw_unfit_at(what, source, *outside / parts, range.words);
}

// Of texts, which must not be cut short, and of times, which must be as they were when cast back.
void require_unchanged(const std::string& what, const py::object& source, PyArray_Descr* to) {
    const py::object dtype = dtype_object(to);
    const bool text = PyTypeNum_ISSTRING(to->type_num);
    const std::optional<npy_intp> changed = running_python([&]() -> std::optional<npy_intp> {
        const py::object numpy = py::module_::import("numpy");
        const auto cast = [](const py::object& values, const py::object& to_dtype) {
            return py::object(values.attr("astype")(to_dtype));
        };
        const py::object became = cast(source, dtype);
        // NumPy finds out how long a text must be, but for texts of no fixed length.
        const bool sized = text && PyArray_TYPE(array_of(source)) != NPY_VSTRING;
        py::object same = sized ? numpy.attr("equal")(became, cast(source, dtype.attr("char")))
                                : numpy.attr("equal")(cast(became, source.attr("dtype")), source);
        if (!text) same = numpy.attr("logical_or")(same, numpy.attr("isnat")(source));
        if (numpy.attr("all")(same).cast<bool>()) return std::nullopt;
        return numpy.attr("argmin")(same).cast<npy_intp>();
    });
    if (!changed) return;
    const std::string name = py::str(dtype).cast<std::string>();
    if (!text) throw_unfit_at(what, source, *changed, "what " + name + " represents exactly");
    const npy_intp length =
        to->type_num == NPY_UNICODE ? PyDataType_ELSIZE(to) / 4 : PyDataType_ELSIZE(to);
    throw_unfit_at(what, source, *changed,
                   "at most " + std::to_string(length) + " characters (" + name + ")");
}

void require_fields_fit(const std::string& what, const py::object& source, PyArray_Descr* to) {
    const py::object target = dtype_object(to);
    const py::sequence names = target.attr("names");
    const py::object source_names = source.attr("dtype").attr("names");
    for (std::size_t i = 0; i < names.size(); ++i) {
        const py::object part =
            source_names.is_none() ? source : py::object(source[py::sequence(source_names)[i]]);
        const py::object dtype = target[names[i]].attr("base");
        require_values_fit(what + ", " + py::repr(names[i]).cast<std::string>() + " of it", part,
                           descr_of(dtype), range_of(dtype));
    }
}

}  // namespace

ValueRange range_of(const py::object& dtype) {
    const py::object said = running_python([&dtype] {
        return py::module_::import("mpbuffer._arguments.value_range").attr("value_range")(dtype);
    });
    ValueRange range;
    if (said.is_none()) return range;
    range.limited = true;
    range.whole = said.attr("whole").cast<bool>();
    if (range.whole) {
        range.least = said.attr("lowest").cast<std::int64_t>();
        range.most = said.attr("highest").cast<std::uint64_t>();
    } else {
        range.lowest = said.attr("lowest").cast<double>();
        range.highest = said.attr("highest").cast<double>();
    }
    range.infinity = said.attr("infinity").cast<bool>();
    range.nan = said.attr("nan").cast<bool>();
    range.words = said.attr("words").cast<std::string>();
    return range;
}

NumberKind number_kind(PyArray_Descr* descr) {
    const int type_number = descr->type_num;
    if (PyTypeNum_ISCOMPLEX(type_number)) return NumberKind::complex;
    if (is_plain_number(type_number)) return NumberKind::real;
    if (!PyTypeNum_ISUSERDEF(type_number)) return NumberKind::none;
    if (casts_safely(descr, NPY_DOUBLE)) return NumberKind::real;
    return casts_safely(descr, NPY_CDOUBLE) ? NumberKind::complex : NumberKind::none;
}

void require_values_fit(const std::string& what, const py::object& source, PyArray_Descr* to,
                        const ValueRange& range) {
    PyArray_Descr* const from = PyArray_DESCR(array_of(source));
    // Casts of other packages, and from one unit of time to another, are called safe and are not.
    const bool may_lie = PyTypeNum_ISUSERDEF(to->type_num) ||
                         (PyTypeNum_ISDATETIME(to->type_num) && from->type_num == to->type_num);
    if (may_lie ? PyArray_EquivTypes(from, to) != 0 : casts_safely(from, to)) return;
    if (PyDataType_HASFIELDS(to)) return require_fields_fit(what, source, to);
    if (number_kind(from) != NumberKind::none && number_kind(to) != NumberKind::none) {
        if (range.limited) require_in_range(what, source, range);
    } else if (PyTypeNum_ISSTRING(to->type_num) || PyTypeNum_ISDATETIME(to->type_num)) {
        require_unchanged(what, source, to);
    }
}

void throw_unfit(const std::string& what, const std::string& value, const std::string& expected) {
    constexpr std::size_t longest = 60;
    const std::string shown = value.size() > longest ? value.substr(0, longest) + "..." : value;
    throw_python(PyExc_ValueError, what + ": got " + shown + ", expected " + expected);
}

}  // namespace mpbuffer::bindings
