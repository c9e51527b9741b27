// Segments whose creation Ctrl-C interrupts.
#pragma once

#include "errors.hpp"
#include "segment/segment_file.hpp"

namespace mpbuffer::bindings {

inline SegmentOptions interruptible_options() {
    SegmentOptions options;
    options.progress = [](std::size_t) { run_signal_handlers(); };
    return options;
}

}  // namespace mpbuffer::bindings
