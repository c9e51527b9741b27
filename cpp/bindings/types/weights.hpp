// The type behind mpbuffer.SharedWeights: arrays as lists, in the order of their description. What
// the arrays are called and what may be in them is Python's affair; lengths are checked here.
#pragma once

#include <pybind11/pybind11.h>

namespace mpbuffer::bindings {

void add_weights_type(pybind11::module_& module);

}  // namespace mpbuffer::bindings
