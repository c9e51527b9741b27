#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <thread>

#include "forked_child.hpp"
#include "os/end_with_learner.hpp"
#include "os/process_stat.hpp"

using namespace mpbuffer;

namespace {

constexpr int learner_gone = 7;
constexpr auto grace = std::chrono::milliseconds(50);
constexpr auto longest = grace + std::chrono::milliseconds(200);  // between death and death

std::uint64_t start_time(pid_t pid) { return read_process_stat(pid)->start_time; }

bool lives(const ForkedChild& child) {
    siginfo_t info = {};
    return waitid(P_PID, static_cast<id_t>(child.pid()), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
}

bool lives_on(const ForkedChild& child) {
    std::this_thread::sleep_for(longest);
    return lives(child);
}

bool ends(ForkedChild& child) {
    return comes_true([&] { return !lives(child); }) && child.wait() == learner_gone;
}

// Watches over the process with that pid, and is stuck.
int explore(pid_t pid, std::uint64_t started, const Channel& parent) {
    end_with_learner(pid, started, grace, learner_gone);
    parent.tell();
    return stay_until_killed();
}

}  // namespace

TEST_CASE("an explorer that is stuck ends once its learner has, as a zombie too, and not before") {
    const Watchdog watchdog;
    ForkedChild learner([](const Channel&) { return stay_until_killed(); });
    ForkedChild explorer([&](const Channel& parent) {
        return explore(learner.pid(), start_time(learner.pid()), parent);
    });
    explorer.hear();
    CHECK(lives_on(explorer));
    learner.signal(SIGSTOP);
    CHECK(lives_on(explorer));
    learner.kill_to_zombie();
    const auto before = std::chrono::steady_clock::now();
    CHECK(ends(explorer));
    CHECK(std::chrono::steady_clock::now() - before >= grace);
}

TEST_CASE("another process with the learner's pid is not the learner") {
    const Watchdog watchdog;
    ForkedChild other([](const Channel&) { return stay_until_killed(); });
    ForkedChild explorer([&](const Channel& parent) {
        return explore(other.pid(), start_time(other.pid()) - 1, parent);
    });
    CHECK(ends(explorer));
}

TEST_CASE("a learner whose first thread alone has ended lives") {
    const Watchdog watchdog;
    ForkedChild learner([](const Channel& parent) {
        std::thread([&parent] {
            while (read_process_stat(getpid())->state != 'Z') std::this_thread::yield();
            parent.tell();
            stay_until_killed();
        }).detach();
        syscall(SYS_exit, 0);  // this thread alone
        return 0;
    });
    learner.hear();
    ForkedChild explorer([&](const Channel& parent) {
        return explore(learner.pid(), start_time(learner.pid()), parent);
    });
    explorer.hear();
    CHECK(lives_on(explorer));
    learner.signal(SIGKILL);
    CHECK(ends(explorer));
}

TEST_CASE("without /proc a learner has ended once nobody has its pid") {
    const Watchdog watchdog;
    ForkedChild learner([](const Channel&) { return stay_until_killed(); });
    ForkedChild explorer([&](const Channel& parent) {
        const std::uint64_t started = start_time(learner.pid());
        if (!refuse_system_call(SYS_openat, 0, ~0u, static_cast<std::uint32_t>(AT_FDCWD), EMFILE)) {
            parent.tell(0);
            return 77;
        }
        return explore(learner.pid(), started, parent);
    });
    if (explorer.hear() == 0) {
        MESSAGE("not tested: this kernel has no seccomp filters");
        return;
    }
    CHECK(lives_on(explorer));
    learner.kill_to_zombie();
    CHECK(lives_on(explorer));
    learner.wait();
    CHECK(ends(explorer));
}

TEST_CASE("an explorer that ends is not kept, and a child of its own is not ended") {
    const Watchdog watchdog;
    ForkedChild learner([](const Channel&) { return stay_until_killed(); });
    ForkedChild short_lived([&](const Channel&) {
        end_with_learner(learner.pid(), start_time(learner.pid()), grace, learner_gone);
        return 3;
    });
    CHECK(short_lived.wait() == 3);
    ForkedChild explorer([&](const Channel& parent) {
        end_with_learner(learner.pid(), start_time(learner.pid()), grace, learner_gone);
        if (fork() == 0) {
            for (;;) {
                std::this_thread::sleep_for(longest);
                parent.tell();
            }
        }
        return stay_until_killed();
    });
    learner.kill_to_zombie();
    CHECK(ends(explorer));
    for (int i = 0; i < 2; ++i) CHECK(explorer.hear() == 1);
}

TEST_CASE("any thread ends its process by a signal that the process handles and blocks") {
    const Watchdog watchdog;
    ForkedChild explorer([](const Channel&) {
        signal(SIGTERM, [](int) {});
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, nullptr);
        std::thread([] { end_by_signal(SIGTERM); }).detach();
        return stay_until_killed();
    });
    CHECK(explorer.wait() == 256 + SIGTERM);
}
