// Memory that no directory lists: a memfd, which goes with the last process that has it open or
// mapped, however that ends. No file system bounds it; memory_room.hpp says what there is.
//
// It is found through the descriptors of the processes that have it, as /proc shows them: by the
// label that it was made with, and by its id, which it carries from when it is published. That
// needs the right to look at such a process: the same user's, dumpable, in the caller's pid
// namespace or below.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace mpbuffer {

// Where the id lies: a number that is not 0, or 0 until the memory is published.
constexpr std::size_t nameless_id_offset = 4088;

// A descriptor of empty memory, mode 0600, close-on-exec; -1 and errno if there can be none.
// `label`: at most 240 bytes. Under a ForkPause, until the caller has it watched.
int make_nameless(const std::string& label);

// From here on nobody can change its size, nor keep its users from writing.
void seal_size(int fd) noexcept;

// Where a process has it open.
struct NamelessPlace {
    std::string label;
    std::string path;  // "/proc/PID/fd/N"
};

// Looks at what this user's processes have open, those of `likely` first, until `is_it` says so;
// at what is `wanted` by its label alone. The place may be gone, or be something else, by the time
// that it is opened. Returns whether it was found.
bool find_nameless(pid_t likely, const std::function<bool(const std::string&)>& wanted,
                   const std::function<bool(const NamelessPlace&)>& is_it);

// Whether the descriptor is open on published memory of this user with that label and id.
bool is_nameless(int fd, const std::string& label, std::uint64_t id);

}  // namespace mpbuffer
