// The type behind mpbuffer.Staging, whose add is a hot call.
#pragma once

#include <pybind11/pybind11.h>

namespace mpbuffer::bindings {

void add_staging_type(pybind11::module_& module);

}  // namespace mpbuffer::bindings
