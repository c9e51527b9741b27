// A descriptor of ours, told from whatever has its number later.
//
// A program can close descriptors that are not its own (os.closerange when it becomes a daemon),
// and then open a file that gets such a number. From then on the number is the program's: it is
// neither closed nor locked here. ours() compares the file with the one that was taken over, and
// whether another OwnedDescriptor of this process took the number over since. Between the question
// and the call that follows it another thread of the program may still do the same.
//
// Everything but the constructor's caller and require() may run in a child straight after fork.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace mpbuffer {

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
