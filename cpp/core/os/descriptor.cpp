#include "os/descriptor.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "base/error.hpp"

namespace mpbuffer {

namespace {

// Which ticket took each number over last: two handles of one buffer have the same file. Of larger
// numbers only the file is compared. Atomics, so that a fork at any moment leaves a child a table
// that it can use.
constexpr int numbers_told_apart = 1 << 16;
constinit std::array<std::atomic<std::uint32_t>, numbers_told_apart> newest_ticket{};
constinit std::atomic<std::uint32_t> tickets{0};

}  // namespace

int open_retrying(const char* path, int flags, mode_t mode) {
    int fd;
    do {
        fd = open(path, flags | O_CLOEXEC, mode);
    } while (fd == -1 && errno == EINTR);
    return fd;
}

int open_to_keep(const char* path, int flags, mode_t mode) {
    const int fd = open_retrying(path, flags, mode);
    return fd < 0 ? fd : move_above_standard_streams(fd);
}

int move_above_standard_streams(int fd) {
    if (fd > STDERR_FILENO) return fd;
    const int moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    const int code = errno;
    ::close(fd);
    if (moved == -1) throw_system_failure("cannot duplicate a descriptor", code);
    return moved;
}

std::string descriptor_path(int fd) {
    char link[64];
    char path[512];
    std::snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(link, path, sizeof path);
    return length > 0 ? std::string(path, static_cast<std::size_t>(length))
                      : "descriptor " + std::to_string(fd);
}

OwnedDescriptor::OwnedDescriptor(int fd) noexcept : fd_(fd) {
    struct stat facts;
    if (fd < 0) return;
    if (fstat(fd, &facts) == 0) {
        device_ = facts.st_dev;
        inode_ = facts.st_ino;
    }
    ticket_ = tickets.fetch_add(1, std::memory_order_relaxed) + 1;
    if (fd < numbers_told_apart) {
        newest_ticket[static_cast<std::size_t>(fd)].store(ticket_, std::memory_order_relaxed);
    }
}

OwnedDescriptor::OwnedDescriptor(OwnedDescriptor&& other) noexcept { *this = std::move(other); }

OwnedDescriptor& OwnedDescriptor::operator=(OwnedDescriptor&& other) noexcept {
    if (this == &other) return *this;
    close();
    fd_ = std::exchange(other.fd_, -1);
    ticket_ = other.ticket_;
    device_ = other.device_;
    inode_ = other.inode_;
    return *this;
}

bool OwnedDescriptor::same_file(int fd) const noexcept {
    struct stat facts;
    return fstat(fd, &facts) == 0 && facts.st_dev == device_ && facts.st_ino == inode_;
}

bool OwnedDescriptor::ours() const noexcept {
    if (fd_ < 0 || !same_file(fd_)) return false;
    return fd_ >= numbers_told_apart ||
           newest_ticket[static_cast<std::size_t>(fd_)].load(std::memory_order_relaxed) == ticket_;
}

int OwnedDescriptor::require(const std::string& verb) const {
    if (ours()) return fd_;
    struct stat facts;
    std::string now = "was closed by this program";
    if (fstat(fd_, &facts) == 0) {
        now += same_file(fd_) ? " and belongs to another handle now"
                              : " and is " + descriptor_path(fd_) + " now";
    }
    throw SystemFailure(verb + ": descriptor " + std::to_string(fd_) + " " + now +
                            ", expected the buffer's file as this handle opened it; close this "
                            "handle, attach the buffer again, and leave its descriptors open",
                        EBADF);
}

void OwnedDescriptor::close() noexcept {
    if (ours()) ::close(fd_);
    fd_ = -1;
}

}  // namespace mpbuffer
