#include <doctest/doctest.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <list>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "forked_child.hpp"
#include "os/file_locks.hpp"
#include "os/process_stat.hpp"
#include "segment/process_table.hpp"

using namespace mpbuffer;

namespace {

// A table in memory shared with forked children, its lock file, and an asker's descriptor.
struct SharedTable {
    unsigned size;
    std::size_t bytes;
    int data_fd = memfd_create("table", MFD_CLOEXEC);
    void* memory = nullptr;
    ProcessTable table;
    int asker = -1;

    explicit SharedTable(unsigned numbers = max_processes)
        : size(numbers), bytes(process_table_bytes(numbers)) {
        REQUIRE(ftruncate(data_fd, static_cast<off_t>(bytes)) == 0);
        memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, data_fd, 0);
        REQUIRE(memory != MAP_FAILED);
        table = ProcessTable(memory, size);
        asker = open_lock_descriptor(data_fd);
    }
    ~SharedTable() {
        munmap(memory, bytes);
        ::close(asker);
        ::close(data_fd);
    }
    bool dead(unsigned number) const { return table.dead(number, asker); }
};

// What every handle has for itself: a mapping of the table and a lock descriptor.
class Handle {
  public:
    explicit Handle(const SharedTable& shared) : Handle(shared.data_fd, shared.size) {}
    explicit Handle(int data_fd, unsigned size = max_processes)
        : bytes_(process_table_bytes(size)),
          memory_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, data_fd, 0)),
          table_(memory_, size),
          lock_fd_(open_lock_descriptor(data_fd)) {}
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    ~Handle() {
        munmap(memory_, bytes_);
        ::close(lock_fd_);
    }
    const Identity& enroll(std::uint64_t* left_busy = nullptr) {
        return identity_ = table_.enroll(lock_fd_, left_busy);
    }
    void leave() { table_.leave(lock_fd_, std::exchange(identity_, {})); }
    int lock_fd() const { return lock_fd_; }
    const Identity& identity() const { return identity_; }
    std::uint64_t address() const { return reinterpret_cast<std::uintptr_t>(memory_); }

  private:
    std::size_t bytes_;
    void* memory_;
    ProcessTable table_;
    int lock_fd_;
    Identity identity_;
};

int enrol_and_stay(SharedTable& shared, const Channel& parent) {
    const int lock_fd = open_lock_descriptor(shared.data_fd);
    parent.tell(shared.table.enroll(lock_fd).number);
    return stay_until_killed();
}

}  // namespace

TEST_CASE("the table's size is part of the format") {
    CHECK(process_table_bytes(1022) == 64 + 1022 * 576);
    CHECK(process_table_bytes(1) == 64 + 576);
    CHECK(sizeof(ProcessRecord) == 576);
    alignas(64) char memory[128] = {};
    CHECK_THROWS_AS(ProcessTable(memory + 8, 1), InvalidArgument);
    CHECK_THROWS_AS(ProcessTable(nullptr, 1), InvalidArgument);
    CHECK_THROWS_AS(ProcessTable(memory, 0), InvalidArgument);
    CHECK_THROWS_AS(ProcessTable(memory, 1023), InvalidArgument);
}

TEST_CASE("a process describes itself") {
    SharedTable shared;
    Handle handle(shared);
    CHECK(shared.table.high_water() == 0);
    const Identity me = handle.enroll();
    CHECK(me.number == 1);
    CHECK(me.epoch == 1);
    CHECK(shared.table.high_water() == 1);
    const ProcessRecord& record = shared.table.record(1);
    CHECK(record.epoch == 1);
    CHECK(record.pid == static_cast<std::uint64_t>(getpid()));
    CHECK(record.start_time == read_process_stat(getpid())->start_time);
    CHECK(record.pid_namespace == own_pid_namespace());
    CHECK(record.time_namespace == own_time_namespace());
    CHECK(record.mapped_at == handle.address());
    CHECK(record.registered_at > 1'500'000'000'000'000'000u);
    CHECK_FALSE(shared.dead(1));
    CHECK_FALSE(shared.table.dead(1, 1, 5, shared.asker));
    CHECK(shared.table.state(1, shared.asker) == 'R');
    CHECK(shared.table.state(1, handle.lock_fd()) == 'R');
    CHECK(shared.table.state(2, shared.asker) == 'X');
}

TEST_CASE("two handles of one process are two numbers, and leave one by one") {
    SharedTable shared;
    Handle first(shared);
    Handle second(shared);
    const Identity one = first.enroll();
    const Identity two = second.enroll();
    CHECK(one.number != two.number);
    first.leave();
    CHECK(shared.dead(one.number));
    CHECK(shared.table.state(one.number, shared.asker) == 'X');
    CHECK(shared.table.record(one.number).pid == static_cast<std::uint64_t>(getpid()));
    CHECK_FALSE(shared.dead(two.number));
    first.leave();  // nobody
    CHECK_FALSE(shared.dead(two.number));
}

TEST_CASE("the lowest free number is taken") {
    SharedTable shared;
    Handle stays(shared);
    REQUIRE(stays.enroll().number == 1);
    for (unsigned epoch = 1; epoch <= 1100; ++epoch) {
        Handle handle(shared);
        const Identity me = handle.enroll();
        REQUIRE(me.number == 2);
        REQUIRE(me.epoch == epoch);
        handle.leave();
    }
    CHECK(shared.table.high_water() == 2);
    Handle second(shared);
    Handle third(shared);
    CHECK(second.enroll().number == 2);
    CHECK(third.enroll().number == 3);
    stays.leave();
    Handle first(shared);
    CHECK(first.enroll().number == 1);
}

TEST_CASE("a table has as many numbers as it was made with, and tells how many when it is full") {
    SharedTable shared(3);
    std::list<Handle> all;
    for (unsigned n = 1; n <= 3; ++n) CHECK(all.emplace_back(shared).enroll().number == n);
    Handle more(shared);
    try {
        more.enroll();
        FAIL("a fourth number of three");
    } catch (const ProcessTableFull& full) {
        const std::string text = full.what();
        CHECK(text.find("got 3 open handles") != std::string::npos);
        CHECK(text.find("max_handles=") != std::string::npos);
    }
    CHECK_THROWS_AS((void)shared.table.record(4), IndexOutOfRange);
    CHECK(shared.dead(4));
    CHECK(shared.table.dead(4, 0, 5, shared.asker));
    CHECK(shared.table.state(4, shared.asker) == 'X');
    all.front().leave();
    CHECK(more.enroll().number == 1);
}

TEST_CASE("a full table says so, and takes the next as soon as one has left") {
    const Watchdog watchdog;
    SharedTable shared;
    rlimit limit;
    REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    std::list<Handle> all;
    for (unsigned n = 0; n < max_processes; ++n) all.emplace_back(shared).enroll();
    Handle more(shared);
    CHECK_THROWS_AS(more.enroll(), ProcessTableFull);
    for (const Handle& one : all) REQUIRE_FALSE(shared.dead(one.identity().number));
    ForkedChild child([&](const Channel& parent) {
        for (const Handle& one : all) ::close(one.lock_fd());
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
    std::next(all.begin(), 499)->leave();
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

TEST_CASE("a process whose first thread has ended is not dead, with its lock or without") {
    const Watchdog watchdog;
    for (const bool closes : {false, true}) {
        CAPTURE(closes);
        SharedTable shared;
        ForkedChild child([&](const Channel& parent) {
            const int lock_fd = open_lock_descriptor(shared.data_fd);
            const unsigned number = shared.table.enroll(lock_fd).number;
            if (closes) ::close(lock_fd);
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
}

TEST_CASE("flaw 8: a number is not used again while its holder lives without its descriptors") {
    const Watchdog watchdog;
    SharedTable shared;
    ForkedChild child([&](const Channel& parent) {
        const unsigned number = shared.table.enroll(open_lock_descriptor(shared.data_fd)).number;
        close_all_descriptors_but({parent.in(), parent.out()});  // as a program may do
        parent.tell(number);
        return stay_until_killed();
    });
    const auto number = static_cast<unsigned>(child.hear());
    REQUIRE(number == 1);
    CHECK_FALSE(held_elsewhere(shared.asker, lock_byte::first_process));
    CHECK_FALSE(shared.dead(number));
    CHECK(shared.table.state(number, shared.asker) != 'X');
    for (unsigned n = 1; n < 100; ++n) {
        Handle handle(shared);
        REQUIRE(handle.enroll().number == 2);
        handle.leave();
    }
    child.kill_to_zombie();
    CHECK(comes_true([&] { return shared.dead(number); }));
    Handle handle(shared);
    CHECK(handle.enroll().number == number);
}

TEST_CASE("an epoch that moved on is death, compared in its low bits") {
    SharedTable shared;
    Handle handle(shared);
    shared.table.record(1).epoch = 32 + 6;  // as after so many enrolments
    const Identity me = handle.enroll();
    REQUIRE(me.number == 1);
    CHECK(me.epoch == 39);
    CHECK_FALSE(shared.table.dead(1, 39 % 32, 5, shared.asker));
    CHECK_FALSE(shared.table.dead(1, 39, 64, shared.asker));
    CHECK(shared.table.dead(1, 38 % 32, 5, shared.asker));
    CHECK(shared.table.dead(1, 39 % 32, 64, shared.asker));
    CHECK(shared.table.dead(1, 39 + 1, 1, shared.asker));
}

TEST_CASE("the low bits of an epoch whose owner was killed do not come again") {
    const Watchdog watchdog;
    SharedTable shared;
    const auto one_is_killed = [&] {
        ForkedChild child([&](const Channel& parent) { return enrol_and_stay(shared, parent); });
        CHECK(child.hear() == 1);
        child.signal(SIGKILL);
        child.wait();
        return shared.table.record(1).epoch.load();
    };
    const auto one_leaves = [&] {
        Handle handle(shared);
        handle.enroll();
        CHECK_FALSE(shared.dead(1));
        handle.leave();
        return shared.table.record(1).epoch.load();
    };
    CHECK(one_leaves() == 1);
    CHECK(one_is_killed() == 2);
    CHECK(one_leaves() == 3);
    CHECK(one_is_killed() == 4);
    for (std::uint64_t epoch = 5; epoch <= 33; ++epoch) REQUIRE(one_leaves() == epoch);
    CHECK(one_leaves() == 35);  // 34 and 36 would pass for 2 and 4
    CHECK(one_leaves() == 37);
    // With no others left, they all come again.
    shared.table.record(1).epochs_not_left = 0xffffffff;
    CHECK(one_leaves() == 38);
    CHECK(one_leaves() == 39);
}

TEST_CASE("a process that has replaced itself by another program is dead") {
    const Watchdog watchdog;
    SharedTable shared;
    ForkedChild child([&](const Channel& parent) {
        parent.tell(shared.table.enroll(open_lock_descriptor(shared.data_fd)).number);
        parent.hear();
        execl("/bin/sleep", "sleep", "1000", nullptr);
        return 1;
    });
    const auto number = static_cast<unsigned>(child.hear());
    const std::uint64_t started = shared.table.record(number).start_time;
    CHECK_FALSE(shared.dead(number));
    child.tell();
    CHECK(comes_true([&] { return shared.dead(number); }));
    CHECK(read_process_stat(child.pid())->start_time == started);
    CHECK(kill(child.pid(), 0) == 0);
    CHECK(shared.table.state(number, shared.asker) == 'X');
    Handle handle(shared);
    CHECK(handle.enroll().number == number);
}

// The programs of the next test case: it runs this one by exec.
TEST_CASE("a program that enrols and is replaced by the next one" * doctest::skip()) {
    const Channel parent(std::atoi(std::getenv("MPBUFFER_IN")),
                         std::atoi(std::getenv("MPBUFFER_OUT")));
    const int data_fd = std::atoi(std::getenv("MPBUFFER_TABLE"));
    const unsigned handles = parent.hear() & 0xff;
    std::list<Handle> all;
    for (unsigned n = 0; n < handles; ++n) {
        const Handle& handle = all.emplace_back(data_fd);
        parent.tell(all.back().enroll().number);
        parent.tell(handle.address());
    }
    if (parent.hear() == 0) _exit(0);
    execl("/proc/self/exe", "mpbuffer_tests", "--no-skip",
          "--test-case=a program that enrols and is replaced by the next one", nullptr);
    _exit(1);
}

TEST_CASE("a program that replaces itself and enrols again leaves no handles behind") {
    const Watchdog watchdog;
    for (const bool random_addresses : {true, false}) {
        CAPTURE(random_addresses);
        SharedTable shared;
        ForkedChild child([&](const Channel& parent) {
            if (!random_addresses) personality(ADDR_NO_RANDOMIZE);
            setenv("MPBUFFER_IN", std::to_string(parent.in()).c_str(), 1);
            setenv("MPBUFFER_OUT", std::to_string(parent.out()).c_str(), 1);
            setenv("MPBUFFER_TABLE", std::to_string(dup(shared.data_fd)).c_str(), 1);
            execl("/proc/self/exe", "mpbuffer_tests", "--no-skip",
                  "--test-case=a program that enrols and is replaced by the next one", nullptr);
            return 1;
        });
        std::set<std::uint64_t> addresses;
        const auto runs = [&](unsigned handles) {
            std::set<std::uint64_t> numbers;
            child.tell(handles);
            for (unsigned n = 0; n < handles; ++n) {
                numbers.insert(child.hear());
                addresses.insert(child.hear());
            }
            return numbers;
        };
        const auto living = [&] {
            std::set<std::uint64_t> numbers;
            for (unsigned number = 1; number <= shared.table.high_water(); ++number) {
                if (!shared.dead(number)) numbers.insert(number);
            }
            return numbers;
        };
        for (int program = 0; program < 4; ++program) {
            CAPTURE(program);
            CHECK(runs(3) == std::set<std::uint64_t>{1, 2, 3});
            CHECK(living() == std::set<std::uint64_t>{1, 2, 3});
            child.tell(1);
            CHECK(runs(1) == std::set<std::uint64_t>{1});
            if (random_addresses) CHECK(living() == std::set<std::uint64_t>{1});
            child.tell(1);
        }
        CHECK(shared.table.high_water() == 3);
        runs(0);
        child.tell(0);
        CHECK(child.wait() == 0);
        CHECK(living().empty());
        if (!random_addresses) CHECK(addresses.size() == 3);
    }
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
    }
    std::uint64_t left_busy = 0;
    Handle handle(shared);
    Handle another(shared);
    const Identity me = handle.enroll(&left_busy);
    CHECK(me.epoch == 3);
    CHECK(shared.table.record(1).ring[0].rows_before == 70);
    shared.table.forget_busy(me, left_busy);
    CHECK(shared.table.record(1).ring[0].busy == 0);
    CHECK(shared.table.record(1).ring[3].busy == 0);
    const Identity other = another.enroll(&left_busy);
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

TEST_CASE("a process of another pid namespace is never proved dead from outside") {
    const Watchdog watchdog;
    SharedTable shared;
    InAnotherPidNamespace child([&](const Channel& parent) {
        const unsigned number = shared.table.enroll(open_lock_descriptor(shared.data_fd)).number;
        close_all_descriptors_but({parent.out()});
        parent.tell(number);
        sleep(watchdog_seconds);
        return 1;
    });
    if (!child.allowed()) return;
    const auto number = static_cast<unsigned>(child.hear());
    CHECK(shared.table.record(number).pid == 1);
    CHECK_FALSE(held_elsewhere(shared.asker, lock_byte::first_process + number - 1));
    CHECK_FALSE(shared.dead(number));
    CHECK(shared.table.state(number, shared.asker) == '?');
    Handle handle(shared);
    CHECK(handle.enroll().number == number + 1);
    child.kill_and_reap();
    CHECK_FALSE(shared.dead(number));  // which cannot be told from here
}

TEST_CASE("from inside another pid namespace its own dead are told, with the /proc of outside") {
    const Watchdog watchdog;
    SharedTable shared;
    InAnotherPidNamespace inside([&](const Channel& parent) {
        CHECK_FALSE(proc_is_of_own_namespace());
        const pid_t other = fork();
        if (other == 0) {
            shared.table.enroll(open_lock_descriptor(shared.data_fd));
            close_all_descriptors_but({});
            pause();
        }
        while (shared.table.record(1).mapped_at == 0) std::this_thread::yield();
        while (held_elsewhere(shared.asker, lock_byte::first_process)) std::this_thread::yield();
        bool right = !shared.dead(1) && shared.table.state(1, shared.asker) == '?';
        kill(other, SIGKILL);
        siginfo_t info;
        waitid(P_PID, static_cast<id_t>(other), &info, WEXITED | WNOWAIT);
        right = right && !shared.dead(1);  // a zombie cannot be told without /proc
        waitpid(other, nullptr, 0);
        parent.tell(right && shared.dead(1) ? 1 : 0);
        return 0;
    });
    if (!inside.allowed()) return;
    CHECK(inside.hear() == 1);
    CHECK_FALSE(shared.dead(1));
}

TEST_CASE("without a /proc nobody is proved dead who may live") {
    const Watchdog watchdog;
    SharedTable shared;
    ForkedChild ghost([&](const Channel& parent) {
        parent.tell(shared.table.enroll(open_lock_descriptor(shared.data_fd)).number);
        execl("/bin/sleep", "sleep", "1000", nullptr);
        return 1;
    });
    CHECK(ghost.hear() == 1);
    CHECK(comes_true([&] { return shared.dead(1); }));
    ForkedChild asker([&](const Channel& parent) {
        if (unshare(CLONE_NEWNS) != 0 ||
            mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) ||
            mount("none", "/proc", "tmpfs", 0, nullptr) != 0) {
            parent.tell(2);
            return 0;
        }
        parent.tell(shared.dead(1) || shared.table.state(1, shared.asker) != '?' ? 1 : 0);
        parent.hear();
        parent.tell(shared.dead(1) ? 1 : 0);
        return 0;
    });
    const std::uint64_t answer = asker.hear();
    if (answer == 2) {
        MESSAGE("skipped: no right to mount over /proc");
        return;
    }
    CHECK(answer == 0);
    ghost.signal(SIGKILL);
    ghost.wait();
    asker.tell();
    CHECK(asker.hear() == 0);  // its own namespace is not known: its pid means nothing
}

TEST_CASE("who may not look into a process does not prove it dead") {
    const Watchdog watchdog;
    for (const bool hidden : {false, true}) {
        CAPTURE(hidden);
        SharedTable shared;
        ForkedChild ghost([&](const Channel& parent) {
            parent.tell(shared.table.enroll(open_lock_descriptor(shared.data_fd)).number);
            execl("/bin/sleep", "sleep", "1000", nullptr);
            return 1;
        });
        CHECK(ghost.hear() == 1);
        CHECK(comes_true([&] { return shared.dead(1); }));
        ForkedChild asker([&](const Channel& parent) {
            const auto hide = [] {
                return unshare(CLONE_NEWNS) == 0 &&
                       mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                       mount("proc", "/proc", "proc", 0, "hidepid=2") == 0;
            };
            const auto become_another_user = [] {
                return geteuid() == 0 && setresgid(65534, 65534, 65534) == 0 &&
                       setresuid(65534, 65534, 65534) == 0;
            };
            if ((hidden && !hide()) || !become_another_user()) {
                parent.tell(2);
                return 0;
            }
            if (hidden && read_process_stat(ghost.pid())) return 1;
            parent.tell(shared.dead(1) ? 1 : 0);
            parent.hear();
            parent.tell(shared.dead(1) ? 1 : 0);
            return 0;
        });
        const std::uint64_t answer = asker.hear();
        if (answer == 2) {
            MESSAGE("skipped: no right to become another user, or to mount /proc");
            continue;
        }
        CHECK(answer == 0);
        ghost.signal(SIGKILL);
        ghost.wait();
        asker.tell();
        CHECK(asker.hear() == 1);  // there is no such process any more, whoever asks
    }
}

TEST_CASE("a start time of another time namespace proves nothing") {
    const Watchdog watchdog;
    SharedTable shared;
    ForkedChild outer([&](const Channel& parent) {
        if (unshare(CLONE_NEWTIME) != 0) {
            parent.tell(0);
            return 0;
        }
        const int offsets = open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
        const bool moved = write(offsets, "boottime 1000 0", 15) == 15;
        ::close(offsets);
        const pid_t inner = fork();
        if (inner == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            alarm(watchdog_seconds);
            const unsigned number =
                shared.table.enroll(open_lock_descriptor(shared.data_fd)).number;
            close_all_descriptors_but({parent.out()});
            parent.tell(moved ? number : 0);
            stay_until_killed();
        }
        return stay_until_killed();
    });
    const auto number = static_cast<unsigned>(outer.hear());
    if (number == 0) {
        MESSAGE("skipped: no right to make a time namespace");
        return;
    }
    const ProcessRecord& record = shared.table.record(number);
    CHECK(record.pid_namespace == own_pid_namespace());
    CHECK(record.start_time !=
          read_process_stat(static_cast<pid_t>(record.pid.load()))->start_time);
    CHECK_FALSE(shared.dead(number));
}
