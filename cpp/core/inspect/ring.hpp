// A buffer's ring, looked at from outside: its figures, and each slot word and leaf.
#pragma once

#include <chrono>

#include "inspect/file.hpp"

namespace mpbuffer {

// `report.header` is that of a buffer, and right.
void inspect_ring(const ReadOnlyFile& file, Scrutiny scrutiny, std::chrono::microseconds pause,
                  Inspection& report);

}  // namespace mpbuffer
