// Tells what must not survive a fork that the process has forked.
//
// In the child of a fork the C library calls `after_fork_in_child` of every watched object, before
// any other code of the child runs. `fork_generation` tells, at the price of one load, whether the
// caller still is in the process in which it was last asked.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/guard.hpp"

namespace mpbuffer {

class ForkWatched {
  public:
    // The child has one thread, and whatever its parent's other threads were doing stands still for
    // ever: only async-signal-safe calls are allowed here.
    virtual void after_fork_in_child() noexcept = 0;

  protected:
    ForkWatched() = default;
    virtual ~ForkWatched() = default;
    ForkWatched(const ForkWatched&) = delete;
    ForkWatched& operator=(const ForkWatched&) = delete;

    // First when the object is whole, last before it stops being so: another thread may fork at any
    // time between the two.
    void watch();
    void unwatch();
    bool is_watched() const { return watched_; }
    // unwatch() for after_fork_in_child() alone. An object that may be on another thread's stack
    // has to: the child uses that memory again.
    void unwatch_in_child() noexcept { take_out(); }

  private:
    friend void notify_fork_watched() noexcept;
    void take_out() noexcept;
    ForkWatched* previous_ = nullptr;
    ForkWatched* next_ = nullptr;
    bool watched_ = false;
};

// While one lives no other thread of this process forks: for opening a descriptor or a mapping and
// having it watched. Pauses nest. Never held while a callback runs, nor while something is waited
// for: os.fork() waits for the end of the pause and keeps the GIL meanwhile.
class ForkPause {
  public:
    ForkPause();

  private:
    const RecursiveGuard guard_;
};

// A pause that may be had at once.
class ForkPauseNow {
  public:
    ForkPauseNow();
    ~ForkPauseNow();
    ForkPauseNow(const ForkPauseNow&) = delete;
    ForkPauseNow& operator=(const ForkPauseNow&) = delete;
    bool held() const { return held_; }

  private:
    bool held_;
};

// Calls `change` in a pause and with the program's lock, if the thread has it: so no thread of the
// program forks between the change and what the caller does next with that lock. Outside of any
// other call into the core.
template <class Change>
void change_before_any_fork(Change&& change) {
    for (;;) {
        {
            const ForkPauseNow pause;
            if (pause.held()) return change();
        }
        const ForkPause wait;  // without the program's lock, which is back afterwards
    }
}

extern std::atomic<std::uint64_t> fork_generation_counter;
inline std::uint64_t fork_generation() {
    return fork_generation_counter.load(std::memory_order_relaxed);
}

}  // namespace mpbuffer
