#include <doctest/doctest.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>

#include "forked_child.hpp"
#include "os/process_stat.hpp"

using namespace mpbuffer;

namespace {

std::uint64_t address_of(const void* memory) { return reinterpret_cast<std::uintptr_t>(memory); }

// Two pages of a file without a name, from its second page on.
struct Mapped {
    int fd = memfd_create("mapped", MFD_CLOEXEC);
    std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* memory = nullptr;

    Mapped() {
        REQUIRE(ftruncate(fd, static_cast<off_t>(3 * page)) == 0);
        memory = mmap(nullptr, 2 * page, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(page));
        REQUIRE(memory != MAP_FAILED);
    }
    ~Mapped() {
        if (memory != nullptr) munmap(memory, 2 * page);
        ::close(fd);
    }
};

}  // namespace

TEST_CASE("the state of a process with a hostile name is read past the last parenthesis") {
    const Watchdog watchdog;
    ForkedChild child([](const Channel& parent) {
        prctl(PR_SET_NAME, ") Z 1 (2) X");
        parent.tell();
        return stay_until_killed();
    });
    child.hear();
    CHECK(comes_true([&] { return read_process_stat(child.pid())->state == 'S'; }));
    CHECK(read_process_stat(child.pid())->start_time >= read_process_stat(0)->start_time);
    const pid_t pid = child.pid();
    child.signal(SIGKILL);
    child.wait();
    CHECK_FALSE(read_process_stat(pid).has_value());
}

TEST_CASE("a process has ended when it is a zombie, or its pid is another's") {
    const Watchdog watchdog;
    ForkedChild child([](const Channel&) { return stay_until_killed(); });
    const std::uint64_t started = read_process_stat(child.pid())->start_time;
    CHECK_FALSE(has_ended(child.pid(), started));
    CHECK(has_ended(child.pid(), started + 1));
    child.kill_to_zombie();
    CHECK(has_ended(child.pid(), started));
    child.wait();
    CHECK(has_ended(child.pid(), started));
    CHECK_FALSE(has_ended(getpid(), read_process_stat(0)->start_time));
}

TEST_CASE("a byte that is mapped is told by its file and its place there") {
    const Mapped mapped;
    const std::uint64_t start = address_of(mapped.memory);
    const auto first = mapped_byte(0, start);
    REQUIRE(first.has_value());
    CHECK(first->inode != 0);
    CHECK(first->offset == mapped.page);
    const auto last = mapped_byte(0, start + 2 * mapped.page - 1);
    REQUIRE(last.has_value());
    CHECK(last->inode == first->inode);
    CHECK(last->device == first->device);
    CHECK(last->offset == 3 * mapped.page - 1);
    // In pieces of different protection it is the same.
    mprotect(static_cast<std::byte*>(mapped.memory) + mapped.page, mapped.page, PROT_NONE);
    CHECK(mapped_byte(0, start + 2 * mapped.page - 1) == last);
    CHECK(mapped_byte(getpid(), start) == first);
    const Mapped another;
    CHECK(mapped_byte(0, address_of(another.memory)) != first);
}

TEST_CASE("where no file is mapped there is none") {
    const int local = 0;
    Mapped mapped;
    const std::uint64_t start = address_of(mapped.memory);
    munmap(mapped.memory, 2 * mapped.page);
    mapped.memory = nullptr;
    for (const std::uint64_t address :
         {address_of(&local), start, std::uint64_t{1}, ~std::uint64_t{0}}) {
        CAPTURE(address);
        const auto byte = mapped_byte(0, address);
        REQUIRE(byte.has_value());
        CHECK(byte->inode == 0);
    }
}

TEST_CASE("of a process without memory it is not known what it has mapped") {
    const Watchdog watchdog;
    const Mapped mapped;
    const std::uint64_t start = address_of(mapped.memory);
    ForkedChild child([](const Channel&) { return stay_until_killed(); });
    CHECK(mapped_byte(child.pid(), start) == mapped_byte(0, start));
    child.kill_to_zombie();
    CHECK_FALSE(mapped_byte(child.pid(), start).has_value());
    child.wait();
    CHECK_FALSE(mapped_byte(child.pid(), start).has_value());
}

TEST_CASE("/proc of another pid namespace is told") {
    const Watchdog watchdog;
    CHECK(proc_is_of_own_namespace());
    ForkedChild child([](const Channel& parent) {
        if (unshare(CLONE_NEWPID) != 0) {
            parent.tell(2);
            return 0;
        }
        if (fork() == 0) {
            parent.tell(proc_is_of_own_namespace() || mapped_byte(1, 1) ? 1 : 0);
            _exit(0);
        }
        return stay_until_killed();
    });
    const std::uint64_t answer = child.hear();
    if (answer == 2) {
        MESSAGE("skipped: no right to make a pid namespace");
    } else {
        CHECK(answer == 0);
    }
}
