// A descriptor that ends with the call that opened it.
//
// A child that another thread forks meanwhile closes its copy: else the file, and the locks taken
// through it, would live as long as that child, who knows nothing of them.
#pragma once

#include <unistd.h>

#include <utility>

#include "os/fork_watch.hpp"

namespace mpbuffer {

class PassingDescriptor final : private ForkWatched {
  public:
    // `open` returns a descriptor, or a negative number, and may throw. It does nothing that waits.
    template <class Open>
    explicit PassingDescriptor(Open&& open) {
        const ForkPause pause;
        fd_ = std::forward<Open>(open)();
        if (fd_ >= 0) watch();
    }
    ~PassingDescriptor() override {
        if (fd_ < 0) return;
        const ForkPause pause;
        unwatch();
        ::close(fd_);
    }

    int number() const { return fd_; }  // negative: none
    // The descriptor is the caller's, who has it watched before the pause ends.
    int release(const ForkPause&) {
        unwatch();
        return std::exchange(fd_, -1);
    }

  private:
    void after_fork_in_child() noexcept override {
        ::close(std::exchange(fd_, -1));
        unwatch_in_child();
    }

    int fd_ = -1;
};

}  // namespace mpbuffer
