#include "segment/role.hpp"

#include <unistd.h>

#include <utility>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/stop_points.hpp"
#include "base/words.hpp"
#include "os/file_locks.hpp"

namespace mpbuffer {

namespace {

struct Words {
    const char* title;
    const char* to_take;
    const char* to_ask;
    const char* to_release;
    const char* release_call;
};

constexpr Words words_of_learner = {"the learner", "take the learner's role of",
                                    "ask for the learner of", "release the learner's role of",
                                    "release_learner()"};
constexpr Words words_of_publisher = {"the publisher", "publish to", "ask for the publisher of",
                                      "release the publisher's role of", "release_publisher()"};

constexpr const Words& words_of(RoleKind kind) {
    return kind == RoleKind::learner ? words_of_learner : words_of_publisher;
}

}  // namespace

Role::Role(RoleKind kind, SharedRoleLine* line, ProcessTable processes, std::string name,
           LockDescriptor lock_descriptor)
    : kind_(kind),
      line_(line),
      processes_(processes),
      name_(std::move(name)),
      lock_descriptor_(std::move(lock_descriptor)) {}

void Role::take() {
    const Words& words = words_of(kind_);
    const int lock_fd = lock_descriptor_(words.to_take);
    if (!try_lock(lock_fd, lock_byte::role, LockKind::exclusive)) {
        throw_busy(words.to_take, holder_in_words(lock_fd) + "; close it or call " +
                                      words.release_call + " there");
    }
    held_ = true;
    stop_point(StopPoint::role_taken);
}

void Role::name_holder(unsigned number, const LearnerFigures& figures) {
    holder_ = {number, static_cast<std::uint64_t>(getpid()), wall_clock_ns()};
    store_figures(figures);
}

void Role::release(const LearnerFigures& figures) {
    held_ = false;
    holder_ = {};
    store_figures(figures);
    unlock(lock_descriptor_(words_of(kind_).to_release), lock_byte::role);
}

void Role::forget() noexcept {
    held_ = false;
    holder_ = {};
}

RoleLine Role::status() const {
    const Words& words = words_of(kind_);
    const auto line = line_->load_patiently();
    const bool nobody = line && line->holder.process == 0;
    if (!nobody && !held()) {
        const int lock_fd = lock_descriptor_(words.to_ask);
        if (!held_elsewhere(lock_fd, lock_byte::role)) {
            return line ? RoleLine{{}, line->figures} : RoleLine{};
        }
        if (!line) {
            throw_busy(words.to_ask, holder_in_words(lock_fd) +
                                         ", and stands still in the middle of saying so; "
                                         "continue that process");
        }
    }
    return line.value_or(RoleLine{});
}

std::string Role::holder_in_words(int lock_fd) const {
    const char* const title = words_of(kind_).title;
    const RoleHolder holder = line_->load_torn().holder;
    const auto number = static_cast<unsigned>(holder.process);
    // Until the holder has named itself the line may still name a predecessor that was killed.
    if (holder.process == 0 || holder.process > processes_.size() ||
        processes_.record(number).pid.load() != holder.pid || processes_.dead(number, lock_fd)) {
        return std::string("another process is just becoming ") + title;
    }
    return process_in_words(number, holder.pid, processes_.state(number, lock_fd)) + " is " +
           title + " since " + time_in_words(holder.since);
}

void Role::throw_busy(const char* verb, const std::string& why) const {
    const std::string message = std::string("cannot ") + verb + " '" + name_ + "': " + why;
    if (kind_ == RoleKind::learner) throw LearnerBusy(message);
    throw PublisherBusy(message);
}

}  // namespace mpbuffer
