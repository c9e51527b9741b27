// Is there room for so many bytes of shared memory? Asked before anything is allocated, because
// allocating past a cgroup's limit is no error code but a SIGKILL.
//
// Three kinds of limit, the smallest counts: free space of the file system; and, where the file
// system lives in memory (tmpfs, ramfs), /proc/meminfo's MemAvailable and what each ancestor
// cgroup (v1 and v2) still allows: limit - usage + its page cache that can be reclaimed, of which
// what is active is taken for half of it: it comes slowly, and the kernel rather kills. Limits
// that are absent, unreadable, "max" or absurdly large are none. An answer about this moment
// only: the caller still allocates every page before it uses one, and asks again meanwhile.
//
// An empty directory stands for memory without a name, which lies in no file system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mpbuffer {

struct MemoryRoots {
    std::string proc = "/proc";
    std::string cgroup = "/sys/fs/cgroup";
};

struct RoomLimit {
    std::uint64_t bytes;  // what is left
    std::string where;    // "/dev/shm has", which reads on: "64.0 MB free"
    bool memory;          // a limit on memory, which also has to hold the kernel's page tables
};

// Every limit that applies to a new file in directory. Throws SystemFailure if there is no such
// directory.
std::vector<RoomLimit> room_limits(const std::string& directory, const MemoryRoots& roots = {});

// what: verb and object, such as "create 'apex'". Throws NotEnoughMemory, which says how much is
// needed, how much there is, and where the limit stands.
void require_room(std::size_t bytes, const std::string& what, const std::string& directory,
                  const MemoryRoots& roots = {});

// How many bytes more than those require_room() lets pass; none if not even those.
std::optional<std::uint64_t> spare_room(std::size_t bytes, const std::string& directory,
                                        const MemoryRoots& roots = {});

// The most bytes that require_room() lets pass.
std::uint64_t largest_room(const std::string& directory, const MemoryRoots& roots = {});

// What page tables and the kernel's index of the file take beside the bytes themselves.
std::uint64_t kernel_overhead(std::uint64_t bytes);

// "64.0 MB": powers of 1024, as df -h and docker's --shm-size count.
std::string readable_bytes(std::uint64_t bytes);

}  // namespace mpbuffer
