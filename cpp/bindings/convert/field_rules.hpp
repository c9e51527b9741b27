// How a Python value becomes rows of a field, and a field becomes an array. Built once, when the
// buffer is opened; hot calls only follow it.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "base/shared_copy.hpp"
#include "convert/value_range.hpp"
#include "numpy_api.hpp"

namespace mpbuffer::bindings {

struct FieldRule {
    pybind11::object name;            // an interned str
    pybind11::object dtype;           // native byte order
    int type_number;                  // NumPy's
    bool plain;                       // a number: type number and byte order identify the dtype
    std::vector<npy_intp> shape;      // of one row
    std::vector<npy_intp> out_shape;  // the same behind a place for the batch size
    std::size_t item_bytes;
    std::size_t row_bytes;
    std::size_t offset;
    std::size_t steps;  // for how many of them a sample has values; 0: for none, but for the row
    bool one_element;
    std::unique_ptr<const ValueRange> range;  // not inline: values of the field's dtype skip it

    PyArray_Descr* descr() const { return descr_of(dtype); }
    std::string text() const;        // "'obs'"
    std::string shape_text() const;  // "(4,)"
};

// A field's name, dtype in native byte order, and shape.
using FieldDescription = std::tuple<std::string, pybind11::object, std::vector<npy_intp>>;
// The rules of a row's fields, without their offsets. Raises TypeError, ValueError.
std::vector<FieldRule> make_rules(const std::vector<FieldDescription>& descriptions);

// One field's rows for one add: where they lie, and what keeps them alive. A scalar lies in the
// object itself, which therefore must not move.
struct ConvertedField {
    const std::byte* values = nullptr;
    npy_intp rows = 0;
    bool is_scalar = false;  // one number, for all rows of the other fields
    pybind11::object owner;
    alignas(16) std::array<std::byte, 32> scalar;
};

// KeyError, TypeError or ValueError, naming the field, what came and what was expected. A value
// that the field cannot represent is an error; one that is rounded is not. Keeps a reference to
// `value` only if it is C-contiguous in the field's dtype.
void convert_field(const FieldRule& rule, PyObject* value, ConvertedField& converted);

// A scalar or an array of numbers as doubles. `scalar` tells which.
struct ConvertedNumbers {
    const double* values = nullptr;
    npy_intp count = 0;
    bool scalar = false;
    double one = 0;
    pybind11::object owner;
};
void convert_numbers(const char* what, PyObject* value, ConvertedNumbers& converted);

// A NumPy array of an array, a tensor or a list; shares the value's memory where possible.
pybind11::object as_array(const std::string& what, PyObject* value);

// An array of that dtype, by the rules of fields.
pybind11::object converted_to(const std::string& what, const pybind11::object& value,
                              const pybind11::object& dtype);

std::string text_of(PyObject* object);  // str(object)
std::string shape_in_words(int ndim, const npy_intp* dims);
std::string type_in_words(PyObject* value);

}  // namespace mpbuffer::bindings
