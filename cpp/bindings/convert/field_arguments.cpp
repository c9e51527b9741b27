#include "convert/field_arguments.hpp"

#include <algorithm>
#include <cmath>

#include "base/guard.hpp"
#include "base/words.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

PyObject* interned(const char* text) {
    return owned(PyUnicode_InternFromString(text)).release().ptr();
}

const Names& names() {
    static const auto* all = new Names;
    return *all;
}

bool same_name(PyObject* one, PyObject* other) {
    if (one == other) return true;
    if (PyUnicode_GET_LENGTH(one) != PyUnicode_GET_LENGTH(other)) return false;
    const int order = PyUnicode_Compare(one, other);
    if (order == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return order == 0;
}

namespace {

void warn(const std::string& message) {
    if (running_python([&] { return PyErr_WarnEx(PyExc_UserWarning, message.c_str(), 1); }) < 0) {
        throw py::error_already_set();
    }
}

}  // namespace

void handle_unknown_field(BufferState& state, PyObject* name) {
    const std::string field = text_of(name);
    std::string known;
    for (const FieldRule& rule : state.rules) known += (known.empty() ? "" : ", ") + rule.text();
    const std::string message =
        "'" + state.core->name() + "' has no field '" + field + "'; its fields are " + known;
    if (state.strict) throw_python(PyExc_TypeError, "cannot add: " + message);
    if (state.warned.contains(field)) return;
    warn("ignored on add: " + message);
    state.warned.insert(field);
}

void warn_if_nothing_is_shared(BufferState& state) {
    if (state.warned_of_frames || !state.core->shares_nothing()) return;
    state.warned_of_frames = true;
    warn("next_of and stack_compress save nothing in '" + state.core->name() +
         "': hardly any frame is equal to one that was added lately; add steps in their order, "
         "name the axis of stacks, or leave these arguments away");
}

void convert_row_numbers(const char* what, const char* noun, PyObject* value, std::size_t n,
                         RowNumbers& converted) {
    convert_numbers(what, value, converted.numbers);
    const ConvertedNumbers& numbers = converted.numbers;
    if (numbers.scalar) {
        if (n != 1) converted.broadcast.assign(n, *numbers.values);
    } else if (static_cast<std::size_t>(numbers.count) != n) {
        throw_python(PyExc_ValueError, std::string(what) + ": got " +
                                           std::to_string(numbers.count) + " " + noun +
                                           ", expected 1 scalar or " + std::to_string(n));
    }
}

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

bool SequenceArguments::take(const BufferState& state, PyObject* name, PyObject* value) {
    if (!state.core->prioritized()) return false;
    if (same_name(names().priorities, name)) {
        if (value == Py_None) return true;
        throw_python(PyExc_TypeError,
                     "cannot add priorities to '" + state.core->name() +
                         "': they belong to sequences, not to steps; expected td=, the "
                         "temporal-difference errors from which they are computed, or nothing");
    }
    if (!same_name(names().td, name)) return false;
    td = value;
    return true;
}

const double* SequenceArguments::convert(std::size_t n, RowNumbers& converted) const {
    if (td == nullptr || td == Py_None) return nullptr;
    convert_values("td", td, n, true, converted);
    return converted.first();
}

void convert_priorities(const BufferState& state, const char* what, PyObject* value, std::size_t n,
                        ConvertedPriorities& converted) {
    convert_row_numbers(what, "priorities", value, n, converted);
    const PriorityRule rule = state.core->priority_rule();
    converted.leaves.resize(n);
    const std::span<const double> all = converted.all(n);
    std::size_t right = 0;
    {
        const CoreCall call;
        let_others_scan(n);
        rule.leaves(all, converted.leaves.data());
        for (; right < n; ++right) {
            const double priority = all[right];
            if (!(priority >= 0) || !std::isfinite(priority)) break;
            if (!std::isfinite(converted.leaves[right])) break;
            converted.largest = std::max(converted.largest, priority);
        }
    }
    if (right == n) return;
    throw_python(PyExc_ValueError, std::string(what) + ": priority " + std::to_string(right) +
                                       " is " + number_in_words(all[right]) +
                                       ", expected a finite number that is not negative and whose "
                                       "(priority + eps)^alpha fits into float32");
}

void throw_positional(Py_ssize_t nargs) {
    throw_python(PyExc_TypeError, "add() takes fields by name only, got " + std::to_string(nargs) +
                                      " positional arguments");
}

void throw_missing(const FieldRule& rule) {
    throw_python(PyExc_KeyError, "cannot add: field " + rule.text() + " is missing");
}

void throw_computed(const FieldRule& rule) {
    throw_python(PyExc_TypeError, "cannot add: field " + rule.text() +
                                      " is the discount of n-step rows, which is computed; "
                                      "expected the other fields only");
}

void throw_rows_differ(const FieldRule& rule, npy_intp rows, const FieldRule& first,
                       npy_intp expected) {
    throw_python(PyExc_ValueError, "cannot add: field " + rule.text() + " has " +
                                       std::to_string(rows) + " rows, expected " +
                                       std::to_string(expected) + " as in field " + first.text());
}

FieldArguments fields_of(BufferState& state, const py::dict& rows) {
    std::vector<PyObject*> values;
    py::tuple names(rows.size());
    for (const auto& [name, value] : rows) {
        names[values.size()] = name;
        values.push_back(value.ptr());
    }
    return FieldArguments(state, no_field, values.data(), 0, names.ptr(),
                          [](PyObject*, PyObject*) { return false; });
}

}  // namespace mpbuffer::bindings
