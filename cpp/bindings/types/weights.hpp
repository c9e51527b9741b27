// The type behind mpbuffer.SharedWeights. It takes arrays as lists, in the order of their
// description, and checks their lengths. Python checks names, dtypes and shapes.
#pragma once

#include <pybind11/pybind11.h>

namespace mpbuffer::bindings {

void add_weights_type(pybind11::module_& module);

}  // namespace mpbuffer::bindings
