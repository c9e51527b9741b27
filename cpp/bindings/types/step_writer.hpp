// The type behind mpbuffer.StepWriter, whose add is a hot call.
#pragma once

#include <pybind11/pybind11.h>

namespace mpbuffer::bindings {

void add_step_writer_type(pybind11::module_& module);

}  // namespace mpbuffer::bindings
