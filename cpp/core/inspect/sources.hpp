// A buffer's source rings, looked at from outside: their counters, each slot word, and when each
// row says that it was born.
#pragma once

#include <chrono>

#include "inspect/file.hpp"

namespace mpbuffer {

// `report.header` is that of a buffer, and right. Does nothing if its rows share nothing.
void inspect_sources(const ReadOnlyFile& file, Scrutiny scrutiny, std::chrono::microseconds pause,
                     Inspection& report);

}  // namespace mpbuffer
