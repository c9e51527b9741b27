// The clocks that the core reads, each in one place, all of them in nanoseconds.
#pragma once

#include <cstdint>
#include <ctime>

namespace mpbuffer {

inline std::uint64_t nanoseconds_of(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000u +
           static_cast<std::uint64_t>(now.tv_nsec);
}

// Since the epoch.
inline std::uint64_t wall_clock_ns() { return nanoseconds_of(CLOCK_REALTIME); }
// The same, up to some milliseconds old, at less cost.
inline std::uint64_t coarse_wall_clock_ns() { return nanoseconds_of(CLOCK_REALTIME_COARSE); }
// Since some moment that all processes of this machine share.
inline std::uint64_t monotonic_ns() { return nanoseconds_of(CLOCK_MONOTONIC); }

}  // namespace mpbuffer
