// Every page of a new segment, before the first is touched: where the kernel can, straight into the
// creator's page table. Too little room is NotEnoughMemory, never a bus error. Since no file system
// bounds what is nameless, and a cgroup's limit kills, there has to be room for the rest all the
// while.
#pragma once

#include <cstddef>
#include <string>

#include "os/memory_room.hpp"
#include "os/pages.hpp"

namespace mpbuffer {

struct SegmentOptions {
    std::string directory = "/dev/shm";
    Progress progress;  // called often in create(), with the bytes allocated; may throw to give up
    bool interleave_nodes = false;  // spread the pages over NUMA nodes, in create()
    bool nameless = false;          // created by a name of generate_name(); at least 4096 bytes
    bool without_file = false;      // nameless, and this process's alone; a forked child has a copy
    bool overwrite = false;  // take the name from a segment of this user, whose users keep it
    bool force_named_creation = false;  // as where O_TMPFILE is refused
    MemoryRoots memory_roots;
};

// `verb`, here and below: "cannot create 'apex'".
// NotEnoughMemory if there is not so much room for a segment with these options.
void require_room_for(std::size_t bytes, const std::string& verb, const SegmentOptions& options);

// Of a file that is as long and mapped as a whole; fd: -1 if there is none. Throws NotEnoughMemory,
// SystemFailure, and what progress throws.
void allocate_pages(int fd, std::byte* mapped, std::size_t bytes, const std::string& verb,
                    const SegmentOptions& options);

// NotEnoughMemory: says which room there is, or what the kernel said.
[[noreturn]] void throw_no_room(std::size_t bytes, std::size_t done, const std::string& verb,
                                const SegmentOptions& options, int code);

}  // namespace mpbuffer
