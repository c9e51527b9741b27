#include "segment/handle.hpp"

#include <exception>
#include <utility>

#include "base/error.hpp"
#include "base/stop_points.hpp"
#include "os/file_locks.hpp"

namespace mpbuffer {

SegmentHandle::SegmentHandle(SharedSegment segment, const SegmentHeader& header,
                             std::string description, RoleKind role)
    : segment_(std::move(segment)),
      header_(header),
      name_(segment_.name()),
      processes_(segment_.data() + header.process_table_offset, header.max_handles),
      role_(role, at<SharedRoleLine>(header.role_line_offset), processes_, name_,
            [this](const char* verb) { return locks(verb); }),
      description_(std::move(description)),
      shared_(segment_.has_file()),
      here_(fork_generation()) {}

void SegmentHandle::start() {
    watch();
    open_locks();
    enroll();
}

// A child forked between the opening and the assignment would keep the description, and with it
// this handle's locks.
void SegmentHandle::open_locks() const {
    if (!shared_ && segment_.is_open()) return;
    const ForkPause pause;
    if (!lock_fd_.present()) lock_fd_ = segment_.open_lock_descriptor();
}

void SegmentHandle::make_visible() {
    {
        const CoreCall call;
        let_others_run();
        segment_.make_visible();
    }
    change_before_any_fork([this] { segment_.keep_in_children(); });
}

void SegmentHandle::leave_children() noexcept {
    change_before_any_fork([this] { segment_.leave_children(); });
}

void SegmentHandle::leave() noexcept {
    // A child forked half-way would close descriptors and unmap memory that are no longer its, or
    // have what is closed and never unmapped.
    const ForkPause pause;
    if (!open_) return;
    open_ = false;
    // Where the program closed ours, the locks are gone with it; a fresh one does to ask and leave.
    OwnedDescriptor fresh;
    const bool lost = lock_fd_.present() && !lock_fd_.ours();
    if (lost) {
        try {
            fresh = segment_.open_lock_descriptor();
        } catch (const std::exception&) {  // the next sweep removes what we cannot
        }
    }
    const int lock_fd = lost ? fresh.number() : lock_fd_.number();
    if (here_.load(std::memory_order_relaxed) == fork_generation() && lock_fd >= 0) {
        try {
            if (!lost) release_role();
            processes_.leave(lock_fd, identity_);
            stop_point(StopPoint::handle_left);
        } catch (const std::exception&) {
            // The locks go with the descriptor below, whatever the program did to it before.
        }
    }
    forget();
    segment_.close(lock_fd);
    lock_fd_.close();
}

void SegmentHandle::after_fork_in_child() noexcept {
    // Not unlocked: the description is still the parent's. Closing the copy keeps it so.
    lock_fd_.close();
    identity_ = {};
    role_.forget();
    identity_mutex_.renew_in_child();
    forget_parent();
}

void SegmentHandle::ready() const {
    if (!open_) [[unlikely]] {
        throw BufferClosed("cannot use '" + name_ + "': this handle was closed");
    }
    if (!here()) [[unlikely]]
        adopt();
}

bool SegmentHandle::here() const {
    return here_.load(std::memory_order_acquire) == fork_generation();
}

void SegmentHandle::adopt() const {
    const Guard guard(identity_mutex_);
    if (here_.load(std::memory_order_relaxed) == fork_generation()) return;
    open_locks();
    enroll();
    // Release: pairs with the acquire in here(), for the identity and all else set here.
    here_.store(fork_generation(), std::memory_order_release);
}

int SegmentHandle::locks(const char* verb) const {
    if (lock_fd_.ours()) [[likely]]
        return lock_fd_.number();
    if (!shared_) return no_file;
    return lock_fd_.require(std::string("cannot ") + verb + " '" + name_ + "'");
}

int SegmentHandle::data_descriptor() const {
    ready();
    return segment_.data_descriptor();
}

}  // namespace mpbuffer
