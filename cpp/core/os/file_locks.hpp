// The byte map of open-file-description (OFD) locks: one lock per byte, at 2^40 + byte, on the
// segment's file. The bytes need not exist in the file.
//
// The kernel drops such a lock when the last descriptor of the open file description is gone,
// however the process ended. Three rules follow from that:
//   - a descriptor that is locked for one process is never mapped and never shared: a mapping or
//     an inherited descriptor in a forked child would keep the lock alive. A child closes its copy
//     and opens its own; it never calls unlock() through the copy, for that frees its parent's
//     lock;
//   - the exception is the presence byte, locked through the mapped descriptor on purpose: a
//     forked child that still has the mapping keeps the segment in use;
//   - locks of one description never conflict with one another: nobody can ask about himself.
// Memory without a file is one process's own, and has no locks: nobody else could hold them. There
// `no_file` stands for the descriptor.
// Classic (fcntl F_SETLK) locks are not used: any close of the file in the process drops them.
#pragma once

#include <cstdint>
#include <string>

namespace mpbuffer {

namespace lock_byte {
constexpr std::uint64_t role = 0;  // a buffer's learner, the publisher of weights
constexpr std::uint64_t first_process = 1;
constexpr std::uint64_t last_process = 1022;
constexpr std::uint64_t guard = 1023;
constexpr std::uint64_t first_further_role = 1024;
constexpr std::uint64_t last_further_role = 1087;
constexpr std::uint64_t presence = 1088;
constexpr std::uint64_t origin = std::uint64_t{1} << 40;  // file offset of byte 0
}  // namespace lock_byte

// In place of a lock descriptor: each lock is to be had, and nobody else holds one.
constexpr int no_file = -2;

enum class LockKind { shared, exclusive };

// True if the lock is held now (or was already); false if another description's lock conflicts.
// Never waits. A lock held in the other kind is converted. Throws SystemFailure.
bool try_lock(int lock_fd, std::uint64_t byte, LockKind kind);

// Releases what this description holds there, if anything. Throws SystemFailure.
void unlock(int lock_fd, std::uint64_t byte);

// True if another description holds the byte, in any mode. Throws SystemFailure.
bool held_elsewhere(int lock_fd, std::uint64_t byte);

// True if another description holds the byte shared. Throws SystemFailure.
bool held_shared_elsewhere(int lock_fd, std::uint64_t byte);

// A fresh open file description of the same file (also of one without a name), close-on-exec,
// never 0, 1 or 2. The caller closes it. Throws SystemFailure.
int open_lock_descriptor(int data_fd);

// Throws SystemFailure, naming the file and its file system, if OFD locks are refused or do not
// exclude one another there. Takes the guard byte for a moment.
void require_ofd_locks(int data_fd);

}  // namespace mpbuffer
