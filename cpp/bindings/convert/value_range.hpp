// Which values a dtype can represent, rounding aside, and whether given ones are among them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "numpy_api.hpp"

namespace mpbuffer::bindings {

struct ValueRange {
    bool limited = false;  // else every number fits, or it is a dtype of no numbers
    bool whole = false;
    std::int64_t least = 0;  // if whole
    std::uint64_t most = 0;
    double lowest = 0;  // if not
    double highest = 0;
    bool infinity = false;
    bool nan = false;
    std::string words;  // "whole numbers from 0 to 255 (uint8)"
};

// As mpbuffer/_arguments/value_range.py says.
ValueRange range_of(const pybind11::object& dtype);

enum class NumberKind { none, real, complex };
// Of NumPy's dtypes and of other packages'.
NumberKind number_kind(PyArray_Descr* descr);

// ValueError that names the value, if `source` holds one that `to` cannot represent, whose range is
// `range`: a number outside of it, a text that is too long, a time between two of `to`'s. What only
// has to be rounded fits.
void require_values_fit(const std::string& what, const pybind11::object& source, PyArray_Descr* to,
                        const ValueRange& range);

[[noreturn]] void throw_unfit(const std::string& what, const std::string& value,
                              const std::string& expected);

}  // namespace mpbuffer::bindings
