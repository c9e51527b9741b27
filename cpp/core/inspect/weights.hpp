// A segment of weights, looked at from outside. Its versions' bytes are not judged: all are
// possible.
#pragma once

#include <chrono>

#include "inspect/file.hpp"

namespace mpbuffer {

// `report.header` is that of weights, and right.
void inspect_weights(const ReadOnlyFile& file, std::chrono::microseconds pause, Inspection& report);

}  // namespace mpbuffer
