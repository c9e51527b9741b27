// Segments whose creation Ctrl-C interrupts, for callers that have released the GIL or not.
#pragma once

#include <pybind11/pybind11.h>

#include "shared_segment.hpp"

namespace mpbuffer::bindings {

inline SegmentOptions interruptible_options() {
    SegmentOptions options;
    options.progress = [](std::size_t) {
        const pybind11::gil_scoped_acquire held;
        if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    };
    return options;
}

}  // namespace mpbuffer::bindings
