// The two buffer types: heap types whose hot calls are add, sample, sample_uniform and
// update_priorities. The public Python classes inherit all methods and override none of these four.
#pragma once

#include <pybind11/pybind11.h>

namespace mpbuffer::bindings {

// Creates the types and adds them to the module.
void add_buffer_types(pybind11::module_& module);

// Adds all methods but the hot calls, bound by pybind11: to the type of uniform buffers, which
// prioritized ones inherit, and to that of prioritized buffers. Adds to the module what needs no
// buffer yet.
void add_buffer_methods(pybind11::module_& module, pybind11::handle uniform,
                        pybind11::handle prioritized);

}  // namespace mpbuffer::bindings
