// The process table as it lies in a segment: who is here, a record for each process number, behind
// a head. The segment's header says how many numbers there are. process_table.hpp says who writes
// what when.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace mpbuffer {

constexpr unsigned max_processes = 1022;  // of any segment
constexpr unsigned max_rings = 8;

// Written by the record's owner alone (and by whoever enrols after its death). The counters count
// all epochs of the record and are never reset.
struct alignas(64) RingState {
    std::atomic<std::uint64_t> rows;         // rows committed
    std::atomic<std::uint64_t> skips;        // claims given up because a slot's owner lived
    std::atomic<std::uint64_t> steals;       // claims of dead owners taken over
    std::atomic<std::uint64_t> busy;         // not 0: inside a call that claims
    std::atomic<std::uint64_t> rows_before;  // the counters when this epoch began
    std::atomic<std::uint64_t> skips_before;
    std::atomic<std::uint64_t> steals_before;
    std::atomic<std::uint64_t> reserved;
};

struct alignas(64) ProcessRecord {
    std::atomic<std::uint64_t> epoch;  // raised by each enrolment; 0: never taken
    std::atomic<std::uint64_t> pid;
    std::atomic<std::uint64_t> start_time;      // clock ticks since boot
    std::atomic<std::uint64_t> pid_namespace;   // inodes; 0: not known
    std::atomic<std::uint64_t> time_namespace;  // that start_time is of
    std::atomic<std::uint64_t> mapped_at;       // its own address of the table; 0: has left
    std::atomic<std::uint64_t> registered_at;   // CLOCK_REALTIME, ns
    // Bit e: the owner of the last epoch with those low bits did not leave, and may have left
    // claims. So many epochs are told apart by a slot's word.
    std::atomic<std::uint64_t> epochs_not_left;
    RingState ring[max_rings];
};

static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<std::uint64_t>) == 8);
static_assert(sizeof(RingState) == 64);
static_assert(sizeof(ProcessRecord) == 64 + max_rings * 64);
static_assert(offsetof(ProcessRecord, ring) == 64);

struct alignas(64) ProcessTableHead {
    std::atomic<std::uint64_t> high_water;  // the highest number ever taken
    std::atomic<std::uint64_t> reserved[7];
};
static_assert(sizeof(ProcessTableHead) == 64);

constexpr std::size_t process_table_bytes(std::uint64_t numbers) {
    return sizeof(ProcessTableHead) + numbers * sizeof(ProcessRecord);
}

}  // namespace mpbuffer
