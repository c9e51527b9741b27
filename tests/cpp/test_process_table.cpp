#include <doctest/doctest.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <list>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "error.hpp"
#include "file_locks.hpp"
#include "forked_child.hpp"
#include "process_table.hpp"

using namespace mpbuffer;

namespace {

// A table in memory shared with forked children, its lock file, and an asker's descriptor.
struct SharedTable {
    int data_fd = memfd_create("table", MFD_CLOEXEC);
    void* memory = nullptr;
    ProcessTable table;
    int asker = -1;

    SharedTable() {
        const auto bytes = static_cast<off_t>(ProcessTable::bytes_required());
        REQUIRE(ftruncate(data_fd, bytes) == 0);
        memory = mmap(nullptr, ProcessTable::bytes_required(), PROT_READ | PROT_WRITE, MAP_SHARED,
                      data_fd, 0);
        REQUIRE(memory != MAP_FAILED);
        table = ProcessTable(memory);
        asker = open_lock_descriptor(data_fd);
    }
    ~SharedTable() {
        munmap(memory, ProcessTable::bytes_required());
        ::close(asker);
        ::close(data_fd);
    }
    bool dead(unsigned number) const { return table.dead(number, asker); }
};

struct LockDescriptor {
    int fd;
    explicit LockDescriptor(const SharedTable& shared) : fd(open_lock_descriptor(shared.data_fd)) {}
    LockDescriptor(const LockDescriptor&) = delete;
    ~LockDescriptor() { ::close(fd); }
};

int enrol_and_stay(SharedTable& shared, const Channel& parent) {
    const int lock_fd = open_lock_descriptor(shared.data_fd);
    parent.tell(shared.table.enroll(lock_fd).number);
    return stay_until_killed();
}

}  // namespace

TEST_CASE("the table's size is part of the format") {
    CHECK(ProcessTable::bytes_required() == 64 + 1022 * 576);
    CHECK(sizeof(ProcessRecord) == 576);
    alignas(64) char memory[128] = {};
    CHECK_THROWS_AS(ProcessTable(memory + 8), InvalidArgument);
    CHECK_THROWS_AS(ProcessTable(nullptr), InvalidArgument);
}

TEST_CASE("a process describes itself") {
    SharedTable shared;
    const LockDescriptor lock(shared);
    CHECK(shared.table.high_water() == 0);
    const Identity me = shared.table.enroll(lock.fd);
    CHECK(me.number == 1);
    CHECK(me.epoch == 1);
    CHECK(shared.table.high_water() == 1);
    const ProcessRecord& record = shared.table.record(1);
    CHECK(record.epoch == 1);
    CHECK(record.pid == static_cast<std::uint64_t>(getpid()));
    CHECK(record.start_time == read_process_stat(getpid())->start_time);
    CHECK(record.pid_namespace == own_pid_namespace());
    CHECK(record.registered_at > 1'500'000'000'000'000'000u);
    CHECK_FALSE(shared.dead(1));
    CHECK_FALSE(shared.table.dead(1, 1, 5, shared.asker));
    CHECK(shared.table.state(1, shared.asker) == 'R');
    CHECK(shared.table.state(1, lock.fd) == 'R');
    CHECK(shared.table.state(2, shared.asker) == 'X');
}

TEST_CASE("two handles of one process are two numbers, and leave one by one") {
    SharedTable shared;
    const LockDescriptor first(shared);
    const LockDescriptor second(shared);
    const Identity one = shared.table.enroll(first.fd);
    const Identity two = shared.table.enroll(second.fd);
    CHECK(one.number != two.number);
    shared.table.leave(first.fd, one);
    CHECK(shared.dead(one.number));
    CHECK(shared.table.state(one.number, shared.asker) == 'X');
    CHECK(shared.table.record(one.number).pid == static_cast<std::uint64_t>(getpid()));
    CHECK_FALSE(shared.dead(two.number));
    shared.table.leave(first.fd, Identity{});  // nobody
}

TEST_CASE("numbers go round, so that each comes back as late as possible") {
    SharedTable shared;
    const LockDescriptor lock(shared);
    for (unsigned round = 0; round < 2; ++round) {
        for (unsigned number = 1; number <= max_processes; ++number) {
            const Identity me = shared.table.enroll(lock.fd);
            REQUIRE(me.number == number);
            REQUIRE(me.epoch == round + 1);
            shared.table.leave(lock.fd, me);
        }
    }
    CHECK(shared.table.high_water() == max_processes);
}

TEST_CASE("a full table says so, and takes the next as soon as one has left") {
    const Watchdog watchdog;
    SharedTable shared;
    const LockDescriptor lock(shared);
    std::vector<Identity> all;
    for (unsigned n = 0; n < max_processes; ++n) all.push_back(shared.table.enroll(lock.fd));
    CHECK_THROWS_AS(shared.table.enroll(lock.fd), ProcessTableFull);
    for (const Identity& one : all) REQUIRE_FALSE(shared.dead(one.number));
    ForkedChild child([&](const Channel& parent) {
        ::close(lock.fd);
        const int mine = open_lock_descriptor(shared.data_fd);
        try {
            shared.table.enroll(mine);
            return 1;
        } catch (const ProcessTableFull&) {
        }
        parent.tell();
        parent.hear();
        return shared.table.enroll(mine).number == 500 ? 0 : 2;
    });
    child.hear();
    shared.table.leave(lock.fd, all[499]);
    child.tell();
    CHECK(child.wait() == 0);
}

TEST_CASE("flaw 9: a killed process is dead while it is a zombie") {
    const Watchdog watchdog;
    SharedTable shared;
    ForkedChild child([&](const Channel& parent) { return enrol_and_stay(shared, parent); });
    const auto number = static_cast<unsigned>(child.hear());
    CHECK_FALSE(shared.dead(number));
    child.kill_to_zombie();
    CHECK(comes_true([&] { return shared.dead(number); }));
    CHECK(read_process_stat(child.pid())->state == 'Z');
    CHECK(shared.table.state(number, shared.asker) == 'X');
    child.wait();
    CHECK(shared.dead(number));
}

TEST_CASE("a stopped process is not dead") {
    const Watchdog watchdog;
    SharedTable shared;
    ForkedChild child([&](const Channel& parent) { return enrol_and_stay(shared, parent); });
    const auto number = static_cast<unsigned>(child.hear());
    child.signal(SIGSTOP);
    CHECK(comes_true([&] { return shared.table.state(number, shared.asker) == 'T'; }));
    CHECK_FALSE(shared.dead(number));
    child.signal(SIGKILL);
    CHECK(comes_true([&] { return shared.dead(number); }));
}

TEST_CASE("a process whose first thread has ended is not dead, whatever /proc shows") {
    const Watchdog watchdog;
    SharedTable shared;
    ForkedChild child([&](const Channel& parent) {
        const int lock_fd = open_lock_descriptor(shared.data_fd);
        const unsigned number = shared.table.enroll(lock_fd).number;
        std::thread([&parent, number] {
            while (read_process_stat(getpid())->state != 'Z') std::this_thread::yield();
            parent.tell(number);
            stay_until_killed();
        }).detach();
        syscall(SYS_exit, 0);  // this thread alone
        return 0;
    });
    const auto number = static_cast<unsigned>(child.hear());
    CHECK(read_process_stat(child.pid())->state == 'Z');
    CHECK_FALSE(shared.dead(number));
    child.signal(SIGKILL);
    CHECK(comes_true([&] { return shared.dead(number); }));
}

TEST_CASE("flaw 8: a number is not used again while its holder lives without its lock") {
    const Watchdog watchdog;
    SharedTable shared;
    ForkedChild child([&](const Channel& parent) {
        const int lock_fd = open_lock_descriptor(shared.data_fd);
        const unsigned number = shared.table.enroll(lock_fd).number;
        ::close(lock_fd);  // the program did this, not the process's end
        parent.tell(number);
        return stay_until_killed();
    });
    const auto number = static_cast<unsigned>(child.hear());
    REQUIRE(number == 1);
    CHECK_FALSE(held_elsewhere(shared.asker, lock_byte::first_process));
    CHECK_FALSE(shared.dead(number));
    CHECK(shared.table.state(number, shared.asker) != 'X');
    const LockDescriptor lock(shared);
    for (unsigned n = 1; n < max_processes; ++n) {
        const Identity me = shared.table.enroll(lock.fd);
        REQUIRE(me.number == n + 1);
        shared.table.leave(lock.fd, me);
    }
    CHECK(shared.table.enroll(lock.fd).number == 2);  // round, and past the living
    child.kill_to_zombie();
    CHECK(comes_true([&] { return shared.dead(number); }));
}

TEST_CASE("an epoch that moved on is death, compared in its low bits") {
    SharedTable shared;
    const LockDescriptor lock(shared);
    shared.table.record(1).epoch = 32 + 6;  // as after so many enrolments
    const Identity me = shared.table.enroll(lock.fd);
    REQUIRE(me.number == 1);
    CHECK(me.epoch == 39);
    CHECK_FALSE(shared.table.dead(1, 39 % 32, 5, shared.asker));
    CHECK_FALSE(shared.table.dead(1, 39, 64, shared.asker));
    CHECK(shared.table.dead(1, 38 % 32, 5, shared.asker));
    CHECK(shared.table.dead(1, 39 % 32, 64, shared.asker));
    CHECK(shared.table.dead(1, 39 + 1, 1, shared.asker));
}

TEST_CASE("flaw 5 and 6: a forked child is not its parent and does not keep it alive") {
    const Watchdog watchdog;
    SharedTable shared;
    ForkedChild explorer([&](const Channel& parent) {
        int lock_fd = open_lock_descriptor(shared.data_fd);
        const Identity me = shared.table.enroll(lock_fd);
        const pid_t grandchild = fork();
        if (grandchild == 0) {
            alarm(watchdog_seconds);
            shared.table.leave(lock_fd, me);  // not its to give back
            ::close(lock_fd);
            lock_fd = open_lock_descriptor(shared.data_fd);
            parent.tell(shared.table.enroll(lock_fd).number);
            parent.tell(static_cast<std::uint64_t>(getpid()));
            return stay_until_killed();
        }
        return stay_until_killed();
    });
    const auto child_number = static_cast<unsigned>(explorer.hear());
    const auto grandchild = static_cast<pid_t>(explorer.hear());
    CHECK(child_number == 2);
    CHECK_FALSE(shared.dead(1));
    CHECK(held_elsewhere(shared.asker, lock_byte::first_process));
    explorer.kill_to_zombie();
    CHECK(comes_true([&] { return shared.dead(1); }));
    CHECK_FALSE(shared.dead(child_number));
    kill(grandchild, SIGKILL);
    CHECK(comes_true([&] { return shared.dead(child_number); }));
}

TEST_CASE("who enrols after a death in the middle of a call is told, until it has acted") {
    const Watchdog watchdog;
    SharedTable shared;
    shared.table.record(1).ring[0].rows = 70;
    shared.table.record(1).ring[0].busy = 1;
    shared.table.record(1).ring[3].busy = 1;
    const auto enrol_and_end = [&](const Channel& parent) {
        std::uint64_t left_busy = 0;
        const Identity me = shared.table.enroll(open_lock_descriptor(shared.data_fd), &left_busy);
        parent.tell(left_busy);
        return me.number == 1 ? 0 : 1;
    };
    for (int attempt = 0; attempt < 2; ++attempt) {  // killed before acting: the next is told too
        ForkedChild child(enrol_and_end);
        CHECK(child.hear() == 0b1001);
        CHECK(child.wait() == 0);
        std::memset(shared.memory, 0, 64);  // the hint, so that number 1 is taken again
    }
    std::uint64_t left_busy = 0;
    const LockDescriptor lock(shared);
    const Identity me = shared.table.enroll(lock.fd, &left_busy);
    CHECK(me.epoch == 3);
    CHECK(shared.table.record(1).rows_before == 70);
    shared.table.forget_busy(me, left_busy);
    CHECK(shared.table.record(1).ring[0].busy == 0);
    CHECK(shared.table.record(1).ring[3].busy == 0);
    const Identity other = shared.table.enroll(lock.fd, &left_busy);
    CHECK(other.number == 2);
    CHECK(left_busy == 0);
}

TEST_CASE("many at once get a number each") {
    const Watchdog watchdog;
    SharedTable shared;
    std::list<ForkedChild> children;
    for (int n = 0; n < 24; ++n) {
        children.emplace_back([&](const Channel& parent) {
            parent.hear();
            return enrol_and_stay(shared, parent);
        });
    }
    for (const ForkedChild& child : children) child.tell();
    std::set<std::uint64_t> numbers;
    for (const ForkedChild& child : children) numbers.insert(child.hear());
    CHECK(numbers.size() == 24);
    CHECK(shared.table.high_water() == *numbers.rbegin());
}

TEST_CASE("numbers that nobody can have are dead, and have no record") {
    SharedTable shared;
    for (const unsigned number : {0u, 1023u, 70000u}) {
        CHECK(shared.table.dead(number, 0, 5, shared.asker));
        CHECK(shared.table.dead(number, shared.asker));
        CHECK(shared.table.state(number, shared.asker) == 'X');
        CHECK_THROWS_AS(shared.table.record(number), IndexOutOfRange);
    }
    CHECK(shared.dead(7));  // never taken
}

TEST_CASE("a process of another pid namespace lives as long as its lock") {
    const Watchdog watchdog;
    SharedTable shared;
    ForkedChild outer([&](const Channel& parent) {
        if (unshare(CLONE_NEWPID) != 0) {
            parent.tell(0);
            return 0;
        }
        const pid_t inner = fork();
        if (inner == 0) {  // process 1 of its namespace: no alarm ends it
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            parent.tell(shared.table.enroll(open_lock_descriptor(shared.data_fd)).number);
            sleep(watchdog_seconds);
            return 1;
        }
        parent.hear();
        kill(inner, SIGKILL);
        parent.hear();
        return 0;
    });
    const auto number = static_cast<unsigned>(outer.hear());
    if (number == 0) {
        MESSAGE("skipped: no right to make a pid namespace");
        return;
    }
    CHECK_FALSE(shared.dead(number));
    CHECK(shared.table.state(number, shared.asker) == '?');
    outer.tell();
    CHECK(comes_true([&] { return shared.dead(number); }));
    outer.tell();
}

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
