// Who is here, and who is provably gone. Lives in borrowed, zero-initialised shared memory.
//
// A process enrols once per handle: it takes the exclusive lock on a free byte of the lock map
// (its number, 1..size), raises that record's epoch and describes itself in the record. The lock
// is the proof of life: the kernel drops it however the process ends, also while it is a zombie.
// /proc is asked only when the byte is free, for a byte is freed by other things than an end: a
// program closes descriptors that are not its own, and an exec closes them all while pid and start
// time stay. Then, and within the caller's own pid and time namespaces only, an owner is dead
//   - if the process with its pid and start time has ended, or
//   - if that process no longer has the segment mapped at the address where it enrolled: an exec
//     drops a mapping, and closing descriptors leaves it.
// What cannot be found out is alive. No clock and no heartbeat decides anything.
//
// The lowest number is taken that is provably free, so that whoever looks at all of them looks at
// few.
//
// Everything here takes no lock of this process and allocates nothing unless it throws, so a child
// may call it straight after fork. One thread at a time per lock_fd in enroll() and leave();
// all the rest from any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "format/process_records.hpp"

namespace mpbuffer {

struct Identity {
    unsigned number = 0;  // 0: nobody
    std::uint64_t epoch = 0;
};

class ProcessTable {
  public:
    ProcessTable() = default;

    // memory: process_table_bytes(size), aligned to 64, zero when the segment is made.
    ProcessTable(void* memory, std::uint64_t size);

    // How many numbers there are: so many handles may be open at once.
    unsigned size() const { return size_; }

    // Takes a number for the caller. lock_fd must be the handle's own description (opened by
    // open_lock_descriptor, neither mapped nor inherited), and the mapping that the table lies in
    // the handle's own too: what this process has enrolled at the same address before, and not
    // left, is of before an exec, or of a mapping that is gone, and dead from here on.
    //
    // left_busy: bit r is set if the number's former owner died inside a claiming call on ring r.
    // The flags stay set in the record until forget_busy(), so that an enroller killed before it
    // has acted on them does not lose them.
    //
    // With no_file for lock_fd, the table is in memory of this process alone: whoever it names is
    // gone, for it is a copy of that one's.
    //
    // Throws ProcessTableFull, SystemFailure.
    Identity enroll(int lock_fd, std::uint64_t* left_busy = nullptr);

    // Clears the busy flags that enroll() reported, once they have been acted on.
    void forget_busy(Identity identity, std::uint64_t left_busy);

    // Releases the number; the record stays for its counts. Does nothing in a forked child of the
    // enroller, and for nobody's identity. Throws SystemFailure.
    void leave(int lock_fd, Identity identity);

    // The highest number ever taken.
    unsigned high_water() const;

    // number: 1..size(). Throws IndexOutOfRange.
    ProcessRecord& record(unsigned number) const;

    // True only with proof that the process that was `number` in that epoch is gone: the number
    // was taken again, or its lock byte is free and the record's process has left, has ended or has
    // no longer mapped the segment where it enrolled. lock_fd is the asker's; about its own
    // identity the answer means nothing. A number that nobody can have is dead. epoch_low_bits: the
    // low epoch_bits (1..64) bits of the epoch.
    bool dead(unsigned number, std::uint64_t epoch_low_bits, unsigned epoch_bits,
              int lock_fd) const;

    // The same for whoever has the number now.
    bool dead(unsigned number, int lock_fd) const;

    // The state letter of /proc/PID/stat; 'X' if dead or never there; '?' if the process holds its
    // byte but cannot be looked at (another pid namespace).
    char state(unsigned number, int lock_fd) const;

  private:
    struct Self;
    bool names_living_process(const ProcessRecord& record) const;
    bool can_be_inspected(const ProcessRecord& record) const;
    void leave_for_earlier_selves(int lock_fd, const Self& self);
    std::uint64_t address() const;

    ProcessTableHead* head_ = nullptr;
    ProcessRecord* records_ = nullptr;
    unsigned size_ = 0;
};

}  // namespace mpbuffer
