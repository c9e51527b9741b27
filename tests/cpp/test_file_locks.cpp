#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "base/error.hpp"
#include "forked_child.hpp"
#include "os/file_locks.hpp"

using namespace mpbuffer;

namespace {

struct LockedFile {
    int data_fd = memfd_create("locks", MFD_CLOEXEC);
    int mine = open_lock_descriptor(data_fd);
    int other = open_lock_descriptor(data_fd);
    ~LockedFile() {
        ::close(other);
        ::close(mine);
        ::close(data_fd);
    }
};

constexpr std::uint64_t byte = lock_byte::role;

}  // namespace

TEST_CASE("an exclusive lock excludes other descriptions until it is released") {
    LockedFile file;
    CHECK(try_lock(file.mine, byte, LockKind::exclusive));
    CHECK(try_lock(file.mine, byte, LockKind::exclusive));
    CHECK_FALSE(try_lock(file.other, byte, LockKind::exclusive));
    CHECK_FALSE(try_lock(file.other, byte, LockKind::shared));
    CHECK(try_lock(file.other, byte + 1, LockKind::exclusive));
    CHECK(held_elsewhere(file.other, byte));
    CHECK_FALSE(held_shared_elsewhere(file.other, byte));
    CHECK_FALSE(held_elsewhere(file.mine, byte));  // nobody can ask about himself
    unlock(file.mine, byte);
    CHECK_FALSE(held_elsewhere(file.other, byte));
    CHECK(try_lock(file.other, byte, LockKind::exclusive));
}

TEST_CASE("shared locks go together, and the last holder may convert") {
    LockedFile file;
    CHECK(try_lock(file.mine, lock_byte::presence, LockKind::shared));
    CHECK(try_lock(file.other, lock_byte::presence, LockKind::shared));
    CHECK(held_elsewhere(file.data_fd, lock_byte::presence));
    CHECK(held_shared_elsewhere(file.data_fd, lock_byte::presence));
    CHECK_FALSE(try_lock(file.mine, lock_byte::presence, LockKind::exclusive));
    unlock(file.other, lock_byte::presence);
    CHECK(try_lock(file.mine, lock_byte::presence, LockKind::exclusive));
    CHECK_FALSE(try_lock(file.other, lock_byte::presence, LockKind::shared));
}

TEST_CASE("the bytes of the map do not touch one another") {
    LockedFile file;
    CHECK(try_lock(file.mine, lock_byte::last_process, LockKind::exclusive));
    CHECK(try_lock(file.other, lock_byte::guard, LockKind::exclusive));
    CHECK(try_lock(file.other, lock_byte::last_process - 1, LockKind::exclusive));
    CHECK(lock_byte::last_further_role < lock_byte::presence);
}

TEST_CASE("the lock of a killed process is gone while it is still a zombie") {
    const Watchdog watchdog;
    LockedFile file;
    ForkedChild child([&](const Channel& parent) {
        const int mine = open_lock_descriptor(file.data_fd);
        parent.tell(try_lock(mine, byte, LockKind::exclusive));
        return stay_until_killed();
    });
    CHECK(child.hear() == 1);
    CHECK(held_elsewhere(file.other, byte));
    child.kill_to_zombie();
    CHECK(comes_true([&] { return !held_elsewhere(file.other, byte); }));
}

TEST_CASE("flaw 6: a forked child keeps the lock by its copy of the descriptor") {
    const Watchdog watchdog;
    LockedFile file;
    int mine = open_lock_descriptor(file.data_fd);
    REQUIRE(try_lock(mine, byte, LockKind::exclusive));
    ForkedChild child([&](const Channel& parent) {
        parent.hear();
        ::close(mine);  // what the atfork handler has to do
        parent.tell();
        return stay_until_killed();
    });
    ::close(mine);
    CHECK(held_elsewhere(file.other, byte));
    child.tell();
    child.hear();
    CHECK_FALSE(held_elsewhere(file.other, byte));
}

TEST_CASE("flaw 6: a mapping keeps the lock of the description that it was made from") {
    LockedFile file;
    REQUIRE(ftruncate(file.data_fd, 4096) == 0);
    int mine = open_lock_descriptor(file.data_fd);
    REQUIRE(try_lock(mine, byte, LockKind::exclusive));
    void* mapping = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, mine, 0);
    REQUIRE(mapping != MAP_FAILED);
    ::close(mine);
    CHECK(held_elsewhere(file.other, byte));
    munmap(mapping, 4096);
    CHECK_FALSE(held_elsewhere(file.other, byte));
}

TEST_CASE("flaw 7: closing another descriptor of the file drops nothing") {
    LockedFile file;
    REQUIRE(try_lock(file.mine, byte, LockKind::exclusive));
    const int passing = open_lock_descriptor(file.data_fd);
    ::close(passing);
    CHECK(held_elsewhere(file.other, byte));
}

TEST_CASE("a lock descriptor is fresh, close-on-exec, and works for a file without a name") {
    char path[] = "/dev/shm/mpbuffer-test-XXXXXX";
    const int original = mkstemp(path);
    REQUIRE(original >= 0);
    unlink(path);
    const int fresh = open_lock_descriptor(original);
    CHECK((fcntl(fresh, F_GETFD) & FD_CLOEXEC) != 0);
    CHECK((fcntl(fresh, F_GETFL) & O_ACCMODE) == O_RDWR);
    REQUIRE(try_lock(fresh, byte, LockKind::exclusive));
    CHECK(held_elsewhere(original, byte));
    ::close(fresh);
    ::close(original);
}

TEST_CASE("no descriptor takes the place of a closed standard stream") {
    const Watchdog watchdog;
    LockedFile file;
    ForkedChild child([&](const Channel&) {
        ::close(0);
        ::close(1);
        return open_lock_descriptor(file.data_fd) > 2 && fcntl(0, F_GETFD) == -1 ? 0 : 1;
    });
    CHECK(child.wait() == 0);
}

TEST_CASE("a bad descriptor is a system failure") {
    CHECK_THROWS_AS(try_lock(-1, byte, LockKind::shared), SystemFailure);
    CHECK_THROWS_AS(unlock(-1, byte), SystemFailure);
    CHECK_THROWS_AS((void)held_elsewhere(-1, byte), SystemFailure);
    CHECK_THROWS_AS((void)open_lock_descriptor(-1), SystemFailure);
}

TEST_CASE("a file system with the locks passes, one that refuses them is named") {
    const Watchdog watchdog;
    LockedFile file;
    CHECK_NOTHROW(require_ofd_locks(file.data_fd));
    CHECK_FALSE(held_elsewhere(file.other, lock_byte::guard));

    ForkedChild child([&](const Channel&) {
        if (!refuse_system_call(SYS_fcntl, 1, ~0u, F_OFD_SETLK, EINVAL)) return 77;
        try {
            require_ofd_locks(file.data_fd);
        } catch (const SystemFailure& failure) {
            const std::string text = failure.what();
            return failure.code == EINVAL && text.find("tmpfs") != std::string::npos &&
                           text.find("memfd:locks") != std::string::npos
                       ? 0
                       : 2;
        }
        return 1;
    });
    const int status = child.wait();
    if (status == 77) {
        MESSAGE("skipped: the kernel has no system call filters");
    } else {
        CHECK(status == 0);
    }
}
