// The least multiple of a unit that is not below a number; for sizes and offsets.
#pragma once

#include <cstdint>

namespace mpbuffer {

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) {
    return (value + unit - 1) / unit * unit;
}

}  // namespace mpbuffer
