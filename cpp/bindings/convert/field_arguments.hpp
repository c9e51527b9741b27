// The arguments of add(), of buffers and of step writers: fields by name, and numbers beside them,
// one for each row.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/shared_copy.hpp"
#include "convert/field_rules.hpp"
#include "errors.hpp"
#include "state.hpp"

namespace mpbuffer::bindings {

// Names of arguments, interned.
PyObject* interned(const char* text);
struct Names {
    PyObject* priorities = interned("priorities");
    PyObject* weights = interned("weights");
    PyObject* indexes = interned("indexes");
    PyObject* batch_size = interned("batch_size");
    PyObject* beta = interned("beta");
    PyObject* return_indexes = interned("return_indexes");
    PyObject* generations = interned("generations");
    PyObject* out = interned("out");
    PyObject* weight_norm = interned("weight_norm");
    PyObject* return_probabilities = interned("return_probabilities");
    PyObject* probabilities = interned("probabilities");
    PyObject* envs = interned("envs");
    PyObject* q = interned("q");
    PyObject* v = interned("v");
    PyObject* next_v = interned("next_v");
    PyObject* td = interned("td");
    PyObject* time_major = interned("time_major");
};
const Names& names();

// Keyword names written in source are interned: equal text is nearly always the same object.
bool same_name(PyObject* one, PyObject* other);

// Numbers for n rows: one for each, or one for all. Not to be moved.
struct RowNumbers {
    ConvertedNumbers numbers;
    std::vector<double> broadcast;  // of one value, where `n` were needed
    const double* first() const { return broadcast.empty() ? numbers.values : broadcast.data(); }
    std::span<const double> all(std::size_t n) const { return {first(), n}; }
};
// ValueError if there are neither n nor one; `what` in "`what`: got 3 `noun`, expected ...".
void convert_row_numbers(const char* what, const char* noun, PyObject* value, std::size_t n,
                         RowNumbers& converted);

// Values that priorities are computed from: finite, or NaN where one may be.
void convert_values(const char* name, PyObject* value, std::size_t n, bool may_be_nan,
                    RowNumbers& converted);

struct ConvertedPriorities : RowNumbers {
    std::vector<float> leaves;
    double largest = 0;
};
// Priorities for n rows, checked: finite, not negative, and with a leaf that float32 can hold.
void convert_priorities(const BufferState& state, const char* what, PyObject* value, std::size_t n,
                        ConvertedPriorities& converted);

// What is given beside the steps of sequences: td, in a prioritized buffer. Priorities are refused.
struct SequenceArguments {
    PyObject* td = nullptr;
    bool take(const BufferState& state, PyObject* name, PyObject* value);
    // The values for n steps, into `converted`; null if none were given.
    const double* convert(std::size_t n, RowNumbers& converted) const;
};

// An unknown field's name: TypeError if the buffer is strict, else a warning, once per name.
void handle_unknown_field(BufferState& state, PyObject* name);

// Once, when many frames have been added and all were stored.
void warn_if_nothing_is_shared(BufferState& state);

[[noreturn]] void throw_positional(Py_ssize_t nargs);
[[noreturn]] void throw_missing(const FieldRule& rule);
[[noreturn]] void throw_computed(const FieldRule& rule);
[[noreturn]] void throw_rows_differ(const FieldRule& rule, npy_intp rows, const FieldRule& first,
                                    npy_intp expected);

// All fields of a buffer but the `computed` one, converted, each with as many rows as the others; a
// scalar counts as that many.
class FieldArguments {
  public:
    // `take_other(name, value)` gets arguments that are no fields; returns whether it took them.
    template <class TakeOther>
    FieldArguments(BufferState& state, std::size_t computed, PyObject* const* args,
                   Py_ssize_t nargs, PyObject* kwnames, TakeOther&& take_other) {
        if (nargs != 0) throw_positional(nargs);
        warn_if_nothing_is_shared(state);
        const std::size_t field_count = state.rules.size();
        std::array<PyObject*, 32> few{};
        std::vector<PyObject*> many;
        if (field_count > few.size()) many.resize(field_count);
        PyObject** const values = many.empty() ? few.data() : many.data();

        const Py_ssize_t named = kwnames == nullptr ? 0 : PyTuple_GET_SIZE(kwnames);
        for (Py_ssize_t i = 0; i < named; ++i) {
            PyObject* name = PyTuple_GET_ITEM(kwnames, i);
            const auto expected = static_cast<std::size_t>(i);
            std::size_t place = expected;
            if (!(expected < field_count && state.rules[expected].name.ptr() == name)) {
                place = 0;
                while (place < field_count && state.rules[place].name.ptr() != name) ++place;
                if (place == field_count) {
                    place = 0;
                    while (place < field_count && !same_name(state.rules[place].name.ptr(), name)) {
                        ++place;
                    }
                }
            }
            if (place < field_count) {
                values[place] = args[i];
            } else if (!take_other(name, args[i])) {
                handle_unknown_field(state, name);
            }
        }

        if (field_count > few_converted_.size()) {
            many_converted_.resize(field_count);
            many_sources_.resize(field_count);
        }
        ConvertedField* const converted =
            many_converted_.empty() ? few_converted_.data() : many_converted_.data();
        FieldSource* const sources =
            many_sources_.empty() ? few_sources_.data() : many_sources_.data();
        std::size_t first = field_count;  // the first field that is no scalar
        for (std::size_t i = 0; i < field_count; ++i) {
            const FieldRule& rule = state.rules[i];
            if (i == computed) [[unlikely]] {
                if (values[i] != nullptr) throw_computed(rule);
                continue;
            }
            if (values[i] == nullptr) throw_missing(rule);
            convert_field(rule, values[i], converted[i]);
            const bool is_scalar = converted[i].is_scalar;
            if (!is_scalar && first == field_count) first = i;
            if (!is_scalar && converted[i].rows != converted[first].rows) {
                throw_rows_differ(rule, converted[i].rows, state.rules[first],
                                  converted[first].rows);
            }
            sources[count_++] = {converted[i].values, is_scalar ? 0 : rule.row_bytes, rule.offset,
                                 rule.row_bytes};
        }
        rows_ = first == field_count ? 1 : static_cast<std::uint64_t>(converted[first].rows);
    }
    FieldArguments(const FieldArguments&) = delete;
    FieldArguments& operator=(const FieldArguments&) = delete;

    std::uint64_t rows() const { return rows_; }
    std::span<const FieldSource> sources() const {
        return {many_sources_.empty() ? few_sources_.data() : many_sources_.data(), count_};
    }

  private:
    std::array<ConvertedField, 8> few_converted_;
    std::vector<ConvertedField> many_converted_;
    std::array<FieldSource, 8> few_sources_;
    std::vector<FieldSource> many_sources_;
    std::size_t count_ = 0;
    std::uint64_t rows_ = 0;
};

// Of rows that are given as a dict, which has to live as long.
FieldArguments fields_of(BufferState& state, const pybind11::dict& rows);

}  // namespace mpbuffer::bindings
