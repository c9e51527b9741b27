// The role that one handle of a segment has at a time: a buffer's learner, or the publisher of
// weights.
//
// It is the exclusive lock on the role's byte, which the kernel drops with the holder's process.
// Who holds it is said beside it, on a line that anyone may read; the line is believed only as far
// as lock and process table agree. No call waits for another process.
//
// Changed by one thread of the handle at a time. A forked child never has its parent's role.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "format/role_line.hpp"
#include "segment/process_table.hpp"

namespace mpbuffer {

enum class RoleKind { learner, publisher };

class Role {
  public:
    // The handle's lock descriptor, or SystemFailure that says: cannot VERB the segment.
    using LockDescriptor = std::function<int(const char* verb)>;

    // `name`: the segment's, for messages.
    Role(RoleKind kind, SharedRoleLine* line, ProcessTable processes, std::string name,
         LockDescriptor lock_descriptor);

    // LearnerBusy or PublisherBusy, at once, if another handle has it. Says so to nobody: that is
    // name_holder()'s, with the handle's process number.
    void take();
    void name_holder(unsigned number, const LearnerFigures& figures = {});
    bool held() const { return held_.load(std::memory_order_relaxed); }

    // Of the holder alone: its latest figures.
    void store_figures(const LearnerFigures& figures) { line_->store({holder_, figures}); }

    // Leaves the line without a holder, and the lock to whoever comes next.
    void release(const LearnerFigures& figures = {});
    // In a forked child: the lock is its parent's.
    void forget() noexcept;

    // What the holder last said; process 0 if nobody has the role, all 0 if the last holder died
    // while it wrote. RoleBusy if the holder was stopped then. Within a CoreCall.
    RoleLine status() const;

  private:
    // "process 3 (pid 12, running) is the learner since 2026-01-01 00:00:00 UTC"
    std::string holder_in_words(int lock_fd) const;
    [[noreturn]] void throw_busy(const char* verb, const std::string& why) const;

    RoleKind kind_;
    SharedRoleLine* line_;
    ProcessTable processes_;
    std::string name_;
    LockDescriptor lock_descriptor_;
    RoleHolder holder_{};
    std::atomic<bool> held_ = false;
};

}  // namespace mpbuffer
