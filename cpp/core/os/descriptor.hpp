// File descriptors, by how long they are ours and who else may have them.
//
//   Descriptor         closed at the end of its block; a child of a fork keeps its copy
//   PassingDescriptor  the same, but a child closes its copy: else the file, and the locks taken
//                      through it, would live as long as that child, who knows nothing of them
//   OwnedDescriptor    kept for long, and told from whatever has its number later
//
// A program can close descriptors that are not its own (os.closerange when it becomes a daemon),
// and then open a file that gets such a number. From then on the number is the program's: an
// OwnedDescriptor neither closes nor locks it. ours() compares the file with the one that was taken
// over, and whether another OwnedDescriptor of this process took the number over since. Between the
// question and the call that follows it another thread of the program may still do the same.
//
// Descriptor, and all of OwnedDescriptor but its making and require(), may be used in a child
// straight after fork.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>

#include "os/fork_watch.hpp"

namespace mpbuffer {

// As open(2), close-on-exec, again where a signal came; -1 and errno.
int open_retrying(const char* path, int flags, mode_t mode = 0);

// The same for what is kept: never 0, 1 or 2, where a program that closed them would print into it.
// SystemFailure if there is no other number.
int open_to_keep(const char* path, int flags, mode_t mode = 0);

// Moves a descriptor off 0, 1 and 2. Takes fd over, also when it throws.
int move_above_standard_streams(int fd);

// What the descriptor is open on, as /proc tells it; "descriptor 7" if it does not.
std::string descriptor_path(int fd);

class Descriptor {
  public:
    explicit Descriptor(int fd) noexcept : fd_(fd) {}  // takes it over; a negative one is none
    ~Descriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;

    int number() const { return fd_; }

  private:
    int fd_;
};

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

class OwnedDescriptor {
  public:
    OwnedDescriptor() = default;
    explicit OwnedDescriptor(int fd) noexcept;  // takes it over; a negative one is none
    OwnedDescriptor(OwnedDescriptor&& other) noexcept;
    OwnedDescriptor& operator=(OwnedDescriptor&& other) noexcept;
    OwnedDescriptor(const OwnedDescriptor&) = delete;
    OwnedDescriptor& operator=(const OwnedDescriptor&) = delete;
    ~OwnedDescriptor() { close(); }

    int number() const { return fd_; }  // -1: none; whether or not it is still ours
    bool present() const { return fd_ >= 0; }
    bool ours() const noexcept;

    // Whether `fd` is of the file that this one was opened on.
    bool same_file(int fd) const noexcept;

    // The number, if it is still ours. SystemFailure (EBADF) with `verb` in front, if it is not.
    int require(const std::string& verb) const;

    // Closes it if it is still ours, and forgets it. Twice is once.
    void close() noexcept;

  private:
    int fd_ = -1;
    std::uint32_t ticket_ = 0;
    dev_t device_ = 0;
    ino_t inode_ = 0;
};

}  // namespace mpbuffer
