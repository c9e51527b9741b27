// Looking at segments, and removing dead ones, without a buffer object.
#pragma once

#include <pybind11/pybind11.h>

namespace mpbuffer::bindings {

// Adds inspect, segments and sweep to the module.
void add_inspection_calls(pybind11::module_& module);

}  // namespace mpbuffer::bindings
