// Files of large arrays that have to be on the disk before the program goes on. Both functions
// share their work with some threads, none of which runs the program's code, and block as long as
// the disk takes. SystemFailure tells the first thing that went wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace mpbuffer {

struct NewFile {
    std::string path;
    std::span<const std::byte> head;
    std::span<const std::byte> values;  // behind the head
    int descriptor = -1;                // once it is written; the caller's to close
    std::uint32_t crc32 = 0;            // of both
};

// Makes these files, whose paths are free, and starts their way to the disk. If one cannot be made,
// none is open afterwards.
void write_files(std::span<NewFile> files);

// Waits until what was written through these descriptors is on the disk, the files' sizes included:
// for many at once, since a file system does that in about the time of one. Then the memory that
// the kernel kept of it is free for others.
void sync_files(std::span<const int> descriptors);

}  // namespace mpbuffer
