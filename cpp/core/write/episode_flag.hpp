// The fields of a step that end its episode.
#pragma once

#include <cstddef>
#include <optional>

namespace mpbuffer {

struct EpisodeFlag {
    std::size_t offset;
    std::size_t bytes;  // little-endian
    bool floating;      // then -0.0 is 0
};

// Whether the flag of that step is there, and not 0.
inline bool raised(const std::optional<EpisodeFlag>& flag, const std::byte* step) {
    if (!flag) return false;
    const std::byte* const value = step + flag->offset;
    const std::size_t last = flag->bytes - 1;
    for (std::size_t i = 0; i < last; ++i) {
        if (value[i] != std::byte{0}) return true;
    }
    const std::byte sign{0x80};
    return (flag->floating ? value[last] & ~sign : value[last]) != std::byte{0};
}

// Each of them, unless there is none of that name.
struct EpisodeFlags {
    std::optional<EpisodeFlag> done;
    std::optional<EpisodeFlag> terminated;
    std::optional<EpisodeFlag> truncated;
};

}  // namespace mpbuffer
