// What the kernel tells of processes, mostly through /proc.
//
// "Unknown" is never taken for "no": a /proc of another pid namespace, a hidden process, a refused
// or empty file prove nothing.
//
// Nothing here allocates or takes a lock of this process, so a child may call it straight after
// fork.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>

namespace mpbuffer {

struct ProcessStat {
    char state;
    std::uint64_t threads;  // a zombie of more than one: its first thread alone has ended
    std::uint64_t start_time;
};

// From /proc/PID/stat, or /proc/self/stat if pid is 0; nothing if it cannot be read.
std::optional<ProcessStat> read_process_stat(pid_t pid);

// The inodes of the caller's pid and time namespaces; 0 if /proc does not tell. A pid is of the
// one, a start time as /proc shows it of the other.
std::uint64_t own_pid_namespace();
std::uint64_t own_time_namespace();

// Whether /proc/PID is the process that the caller knows as PID: /proc may have been mounted for
// another pid namespace.
bool proc_is_of_own_namespace();

// True only if the process of the caller's own namespaces that had this pid and start time has
// ended, all its threads with it.
bool has_ended(pid_t pid, std::uint64_t start_time);

// Which byte of which file a process has mapped at an address.
struct MappedByte {
    std::uint64_t device;  // as /proc/PID/maps tells it, which need not be what stat() tells
    std::uint64_t inode;   // 0: no file is mapped there
    std::uint64_t offset;
    bool operator==(const MappedByte&) const = default;
};

// Of a process of the caller's own pid namespace; of the caller if pid is 0. Nothing if it cannot
// be found out.
std::optional<MappedByte> mapped_byte(pid_t pid, std::uint64_t address);

}  // namespace mpbuffer
