#include "os/fork_watch.hpp"

#include <pthread.h>

#include <type_traits>

namespace mpbuffer {

std::atomic<std::uint64_t> fork_generation_counter{1};

namespace {

// Made at load time and never destroyed: a function's static could be in the making, its guard
// held, when another thread forks; and handles may outlive static destructors.
constinit RecursiveMutex list_mutex;
static_assert(std::is_trivially_destructible_v<RecursiveMutex>);

ForkWatched* first_watched = nullptr;

}  // namespace

void notify_fork_watched() noexcept {
    for (ForkWatched* each = first_watched; each != nullptr;) {
        ForkWatched* const next = each->next_;
        each->after_fork_in_child();
        each = next;
    }
}

namespace {

void before_fork() { list_mutex.lock_around_fork(); }
void after_fork_in_parent() { list_mutex.unlock_around_fork(); }
void after_fork_in_child_process() {
    fork_generation_counter.fetch_add(1, std::memory_order_relaxed);
    notify_fork_watched();
    // Unlocking alone would not do, but tools that watch locks want to see it: the mutex knows its
    // owner by a thread id that the child does not have.
    list_mutex.unlock_around_fork();
    list_mutex.renew_in_child();
}

[[maybe_unused]] const int installed =
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child_process);

}  // namespace

ForkPause::ForkPause() : guard_(list_mutex) {}

ForkPauseNow::ForkPauseNow() : held_(list_mutex.try_lock_around_fork()) {}
ForkPauseNow::~ForkPauseNow() {
    if (held_) list_mutex.unlock_around_fork();
}

void ForkWatched::watch() {
    const RecursiveGuard guard(list_mutex);
    if (watched_) return;
    next_ = first_watched;
    if (next_ != nullptr) next_->previous_ = this;
    first_watched = this;
    watched_ = true;
}

void ForkWatched::unwatch() {
    const RecursiveGuard guard(list_mutex);
    take_out();
}

void ForkWatched::take_out() noexcept {
    if (!watched_) return;
    if (previous_ != nullptr) {
        previous_->next_ = next_;
    } else {
        first_watched = next_;
    }
    if (next_ != nullptr) next_->previous_ = previous_;
    previous_ = next_ = nullptr;
    watched_ = false;
}

}  // namespace mpbuffer
