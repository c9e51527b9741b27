#include "os/file_locks.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>

#include "base/error.hpp"
#include "os/descriptor.hpp"

namespace mpbuffer {

static_assert(sizeof(off_t) == 8, "lock bytes lie beyond 2^32");

namespace {

struct flock byte_range(std::uint64_t byte, short type) {
    struct flock range = {};
    range.l_type = type;
    range.l_whence = SEEK_SET;
    range.l_start = static_cast<off_t>(lock_byte::origin + byte);
    range.l_len = 1;
    range.l_pid = 0;  // demanded for open-file-description locks
    return range;
}

int retrying_fcntl(int fd, int command, struct flock* range) {
    int result;
    do {
        result = fcntl(fd, command, range);
    } while (result == -1 && errno == EINTR);
    return result;
}

// The type of another description's lock, F_UNLCK if there is none.
short type_elsewhere(int lock_fd, std::uint64_t byte) {
    if (lock_fd == no_file) return F_UNLCK;
    struct flock range = byte_range(byte, F_WRLCK);
    if (retrying_fcntl(lock_fd, F_OFD_GETLK, &range) == -1) {
        throw_system_failure("cannot ask who holds lock byte " + std::to_string(byte), errno);
    }
    return range.l_type;
}

std::string file_system_of(int fd) {
    struct statfs facts;
    if (fstatfs(fd, &facts) == -1) return "an unknown file system";
    switch (static_cast<std::uint32_t>(facts.f_type)) {
        case 0x01021994: return "tmpfs";
        case 0x858458f6: return "ramfs";
        case 0xef53: return "ext2/3/4";
        case 0x58465342: return "xfs";
        case 0x9123683e: return "btrfs";
        case 0x794c7630: return "overlayfs";
        case 0x6969: return "nfs";
        case 0x65735546: return "fuse";
        case 0x01021997: return "9p";
        case 0xff534d42:
        case 0xfe534d42: return "cifs";
        case 0x2fc12fc1: return "zfs";
        case 0x0bd00bd0: return "lustre";
        default: break;
    }
    char type[32];
    std::snprintf(type, sizeof type, "file system type 0x%llx",
                  static_cast<unsigned long long>(facts.f_type));
    return type;
}

}  // namespace

bool try_lock(int lock_fd, std::uint64_t byte, LockKind kind) {
    if (lock_fd == no_file) return true;
    struct flock range = byte_range(byte, kind == LockKind::shared ? F_RDLCK : F_WRLCK);
    if (retrying_fcntl(lock_fd, F_OFD_SETLK, &range) == 0) return true;
    if (errno == EAGAIN || errno == EACCES) return false;
    throw_system_failure("cannot lock byte " + std::to_string(byte), errno);
}

void unlock(int lock_fd, std::uint64_t byte) {
    if (lock_fd == no_file) return;
    struct flock range = byte_range(byte, F_UNLCK);
    if (retrying_fcntl(lock_fd, F_OFD_SETLK, &range) == -1) {
        throw_system_failure("cannot unlock byte " + std::to_string(byte), errno);
    }
}

bool held_elsewhere(int lock_fd, std::uint64_t byte) {
    return type_elsewhere(lock_fd, byte) != F_UNLCK;
}

bool held_shared_elsewhere(int lock_fd, std::uint64_t byte) {
    return type_elsewhere(lock_fd, byte) == F_RDLCK;
}

int open_lock_descriptor(int data_fd) {
    char link[64];
    std::snprintf(link, sizeof link, "/proc/self/fd/%d", data_fd);
    const int fd = open_to_keep(link, O_RDWR);
    if (fd == -1) {
        const int code = errno;
        std::string why = "cannot open a descriptor for locks through " + std::string(link);
        struct stat facts;
        if (code == EACCES && fstat(data_fd, &facts) == 0 && facts.st_uid != geteuid()) {
            why += ", whose file is of user " + std::to_string(facts.st_uid) +
                   ": this process has become user " + std::to_string(geteuid()) +
                   "; expected one that makes its buffers after that";
        }
        throw_system_failure(why, code);
    }
    return fd;
}

void require_ofd_locks(int data_fd) {
    const PassingDescriptor mine([&] { return open_lock_descriptor(data_fd); });
    const PassingDescriptor other([&] { return open_lock_descriptor(data_fd); });
    const std::string refused = "cannot use " + descriptor_path(data_fd) + " on " +
                                file_system_of(data_fd) + ": open-file-description locks ";
    bool granted_twice;
    try {
        const bool granted = try_lock(mine.number(), lock_byte::guard, LockKind::exclusive);
        granted_twice = granted && try_lock(other.number(), lock_byte::guard, LockKind::exclusive);
        unlock(other.number(), lock_byte::guard);
        unlock(mine.number(), lock_byte::guard);
    } catch (const SystemFailure& failure) {
        throw SystemFailure(refused + "are refused: " + errno_sentence(failure.code) +
                                "; expected a file system that has them, such as tmpfs",
                            failure.code);
    }
    if (granted_twice) {
        throw SystemFailure(refused +
                                "do not exclude one another; expected a file system on "
                                "which they do, such as tmpfs",
                            ENOLCK);
    }
}

}  // namespace mpbuffer
