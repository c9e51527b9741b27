// The core's exceptions as those of mpbuffer.errors.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "gil.hpp"

namespace mpbuffer::bindings {

// Runs the handlers of pending signals, which may call anything. Throws what they raise, such as
// KeyboardInterrupt.
void run_signal_handlers();

// Has pybind11 raise the core's exceptions as those of mpbuffer.errors.
void translate_core_errors();

// Sets the Python error for the exception being handled; for a catch (...) block.
void set_python_error();

// Runs `call`, which returns a new reference or throws; nullptr with the Python error set if so.
template <class Call>
PyObject* guarded(Call&& call) noexcept {
    try {
        return running_python(call);
    } catch (...) {
        set_python_error();
        return nullptr;
    }
}

[[noreturn]] void throw_python(PyObject* type, const std::string& message);

// As above, with the Python error that is set as its cause.
[[noreturn]] void throw_python_from(PyObject* type, const std::string& message);

}  // namespace mpbuffer::bindings
