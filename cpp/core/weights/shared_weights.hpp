// The composition: the versions of one set of arrays in one segment, as one handle of one process
// sees them. What readers and the publisher promise one another is in version_slots.hpp; here are
// the processes behind them.
//
// One handle at a time has the publisher's role (role.hpp); the first publish() takes it. A reader
// is a handle's number in the process table: a slot that a dead or stopped process was reading may
// be written again, where no other is left.
//
// A handle may be used by several threads: calls lock by themselves, publish by one mutex and read
// by another. No call waits for another process.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/guard.hpp"
#include "format/header.hpp"
#include "segment/handle.hpp"
#include "segment/segment_file.hpp"
#include "weights/version_slots.hpp"

namespace mpbuffer {

struct WeightsSettings {
    std::string name;
    std::vector<std::uint64_t> part_bytes;  // of each array, in their order
    unsigned slots;
    std::string description;
    SegmentOptions segment;
    unsigned max_handles = 1022;  // that may be open at once
};

class SharedWeights final : public Attachable<SharedWeights, SegmentKind::weights> {
  public:
    // Publishes `first` as version 1 before anybody can see the name. Has the role then.
    static std::unique_ptr<SharedWeights> create(const WeightsSettings& settings,
                                                 std::span<const std::byte* const> first);
    ~SharedWeights() override;

    // Gives up the role, leaves the process table, unmaps; removes the segment's name if nobody
    // else is left. Waits for calls of other threads. Twice is once.
    void close() noexcept;

    std::uint64_t bytes() const { return header_.weights.bytes; }
    unsigned slot_count() const { return static_cast<unsigned>(header_.weights.slots); }

    // After attach: how long each array is, by the description. SegmentMismatch if the segment's
    // versions are of another length.
    void set_parts(const std::vector<std::uint64_t>& part_bytes);
    const std::vector<std::uint64_t>& part_bytes() const { return part_bytes_; }

    // One pointer for each part, part_bytes() long. Takes the role, or throws PublisherBusy at
    // once. Returns the version.
    std::uint64_t publish(std::span<const std::byte* const> parts);
    void release_publisher();
    bool is_publisher() const { return role_.held(); }

    // Copies the latest version into the parts, if it is newer. As publish() and latest():
    // SegmentMismatch if somebody wrote over the segment.
    Publication read(std::span<std::byte* const> parts, std::uint64_t newer_than);

    Publication latest() const;
    // One load: no read can give a later one. Beside another thread's close() only where the
    // program's lock is held from before either call until newest() returns.
    std::uint64_t newest() const;
    RoleHolder publisher() const;          // as Role::status()
    std::uint64_t repeated_reads() const;  // of this handle: copies that were overwritten

  private:
    friend Attachable;
    SharedWeights(SharedSegment segment, const SegmentHeader& header, std::string description);
    void enroll() const override;
    void release_role() override;
    void forget_parent() noexcept override;
    bool gone(unsigned number, std::uint64_t mark) const;

    std::vector<std::uint64_t> part_bytes_;
    std::vector<std::uint64_t> part_offsets_;
    VersionSlots slots_;

    std::atomic<bool> accepting_ = true;  // false: close() has begun
    Mutex publish_mutex_;
    Mutex read_mutex_;
    mutable SharedMutex asking_;  // by many: threads that read under no other mutex
};

}  // namespace mpbuffer
