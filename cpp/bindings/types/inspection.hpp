// Looking at segments, and removing dead ones, without a buffer object.
#pragma once

#include <pybind11/pybind11.h>

namespace mpbuffer::bindings {

// Adds to the module: inspect, segments, sweep, generate_name.
void add_segment_calls(pybind11::module_& module);

}  // namespace mpbuffer::bindings
