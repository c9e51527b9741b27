// One process's handle on a segment, of whatever kind: its place in the process table, its own lock
// descriptor, what becomes of both in a forked child, and its end.
//
// A child's copy of a handle is a handle of its own: at its first call it opens its own lock
// descriptor and enrolls; it never has its parent's role. Every call throws BufferClosed after
// close().
//
// Of memory without a file the child has a copy as well, as it would be found if the parent had
// been killed at the fork. The first call there puts it in order as after any death.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "base/guard.hpp"
#include "format/header.hpp"
#include "os/descriptor.hpp"
#include "os/fork_watch.hpp"
#include "segment/process_table.hpp"
#include "segment/role.hpp"
#include "segment/segment_file.hpp"

namespace mpbuffer {

class SegmentHandle : private ForkWatched {
  public:
    bool is_open() const { return open_; }
    const std::string& name() const { return name_; }
    const std::string& description() const { return description_; }
    int data_descriptor() const;
    // How many handles of the segment may be open at once.
    unsigned max_handles() const { return processes_.size(); }
    // False of memory without a file: no other process has it, and a child's copy is its own.
    bool is_shared() const { return shared_; }

  protected:
    SegmentHandle(SharedSegment segment, const SegmentHeader& header, std::string description,
                  RoleKind role);
    // close() and unwatch() are the derived destructor's, while the object is whole.
    ~SegmentHandle() override = default;

    // What `make` returns, which only from here on a forked child has too: no child has a handle
    // that its parent's thread has not got yet, for this is done with the program's lock, which
    // who forks has too. One that is not visible yet no child has.
    template <class Make>
    static auto made_by(Make&& make) {
        auto handle = [&make] {
            const CoreCall call;
            let_others_run();
            return make();
        }();
        if (handle->segment_.is_visible()) {
            change_before_any_fork([&handle] { handle->segment_.keep_in_children(); });
        }
        return handle;
    }
    // Lets a segment that was made without it be found, and children have it.
    void make_visible();
    // The first step of destruction: a child that is forked from here on has nothing of it, for
    // nobody there could destroy it.
    void leave_children() noexcept;
    // The second half of construction: what needs the object to be whole.
    void start();
    // Gives up the role, leaves the process table, unmaps; removes the segment's name if nobody
    // else is left. Twice is once.
    void leave() noexcept;
    using ForkWatched::unwatch;

    // Every call's first step: open, and in the process it was made for.
    void ready() const;
    bool here() const;
    // The lock descriptor, if the program has left it alone; else SystemFailure says what cannot be
    // done.
    int locks(const char* verb) const;

    template <class T>
    T* at(std::uint64_t offset) const {
        return reinterpret_cast<T*>(segment_.data() + offset);
    }

    SharedSegment segment_;
    SegmentHeader header_;
    std::string name_;
    mutable ProcessTable processes_;  // a view: enrolling changes the segment, not the view
    Role role_;
    mutable Identity identity_;

  private:
    // What each kind does besides: as it takes an identity (enroll() is to set it), leaves the role
    // that it may have, forgets its own memory before the segment's goes, and, by
    // async-signal-safe calls only, forgets in a child what was its parent's.
    virtual void enroll() const = 0;
    virtual void release_role() = 0;
    virtual void forget() noexcept {}
    virtual void forget_parent() noexcept = 0;

    void after_fork_in_child() noexcept final;
    void open_locks() const;
    void adopt() const;

    std::string description_;
    bool shared_;
    std::atomic<bool> open_ = true;
    mutable Mutex identity_mutex_;
    mutable std::atomic<std::uint64_t> here_;  // the fork generation this handle is set up for
    mutable OwnedDescriptor lock_fd_;
};

// A handle that can be made on a segment which is there: Handle has a constructor of segment,
// header and description, and calls this class its friend.
template <class Handle, SegmentKind kind>
class Attachable : public SegmentHandle {
  public:
    static std::unique_ptr<Handle> attach(const std::string& name,
                                          const SegmentOptions& options = {}) {
        return open([&] { return SharedSegment::attach(name, options); });
    }
    static std::unique_ptr<Handle> attach_descriptor(int fd, const std::string& name,
                                                     const SegmentOptions& options = {}) {
        return open([&] { return SharedSegment::attach_descriptor(fd, name, options); });
    }

  protected:
    using SegmentHandle::SegmentHandle;

  private:
    template <class Find>
    static std::unique_ptr<Handle> open(Find&& find) {
        return Attachable::made_by([&find] {
            SharedSegment segment = find();
            std::string description;
            const SegmentHeader header =
                read_header(segment.data(), segment.size(), segment.name(), description, kind);
            std::unique_ptr<Handle> handle(
                new Handle(std::move(segment), header, std::move(description)));
            handle->start();
            return handle;
        });
    }
};

}  // namespace mpbuffer
