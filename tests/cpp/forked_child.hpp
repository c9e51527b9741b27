// A real process for one test case: forked, spoken to through pipes, killed and reaped at the end.
// Nobody waits without a deadline: child and test each have a watchdog.
#pragma once

#include <doctest/doctest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <thread>

#include "sanitizer_slowdown.hpp"

constexpr unsigned watchdog_seconds = 20 * sanitizer_slowdown;

// Ends this process, with the name of its test case, where that takes longer than it ever should.
class Watchdog {
  public:
    Watchdog() {
        test_case_ = doctest::getContextOptions()->currentTest->m_name;
        ::signal(SIGALRM, [](int) {
            for (const char* text : {"the watchdog ends test case: ", test_case_, "\n"}) {
                if (write(STDERR_FILENO, text, std::strlen(text)) < 0) break;
            }
            ::signal(SIGALRM, SIG_DFL);
            raise(SIGALRM);
        });
        alarm(watchdog_seconds);
    }
    ~Watchdog() {
        alarm(0);
        ::signal(SIGALRM, SIG_DFL);
    }
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;

  private:
    static inline const char* test_case_ = "";
};

class Channel {
  public:
    Channel(int in, int out) : in_(in), out_(out) {}

    void tell(std::uint64_t value = 1) const {
        if (write(out_, &value, sizeof value) != sizeof value) {
            throw std::runtime_error("the other end is gone");
        }
    }

    std::uint64_t hear() const {
        pollfd ready = {in_, POLLIN, 0};
        std::uint64_t value = 0;
        int result;
        do {
            result = poll(&ready, 1, watchdog_seconds * 500);
        } while (result == -1 && errno == EINTR);
        if (result != 1 || read(in_, &value, sizeof value) != sizeof value) {
            throw std::runtime_error("nothing heard from the other end");
        }
        return value;
    }

    int in() const { return in_; }
    int out() const { return out_; }

  private:
    int in_;
    int out_;
};

// The last words of a child that the test will kill.
inline int stay_until_killed() {
    for (;;) pause();
}

class ForkedChild {
  public:
    // body's result is the exit status; it leaves by _exit, so that no destructor of the test's
    // objects runs in the child.
    explicit ForkedChild(const std::function<int(const Channel&)>& body) {
        if (pipe(down_) != 0 || pipe(up_) != 0) throw std::runtime_error("no pipe");
        std::fflush(nullptr);
        pid_ = fork();
        if (pid_ == -1) throw std::runtime_error("no fork");
        if (pid_ == 0) {
            alarm(watchdog_seconds);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            ::close(down_[1]);
            ::close(up_[0]);
            int status = 99;
            try {
                status = body(Channel(down_[0], up_[1]));
            } catch (const std::exception& error) {
                std::fprintf(stderr, "in a forked child: %s\n", error.what());
            }
            _exit(status);
        }
        ::close(down_[0]);
        ::close(up_[1]);
    }
    ForkedChild(const ForkedChild&) = delete;
    ForkedChild& operator=(const ForkedChild&) = delete;

    ~ForkedChild() {
        signal(SIGKILL);
        wait();
        ::close(down_[1]);
        ::close(up_[0]);
    }

    pid_t pid() const { return pid_; }
    std::uint64_t hear() const { return Channel(up_[0], down_[1]).hear(); }
    void tell(std::uint64_t value = 1) const { Channel(up_[0], down_[1]).tell(value); }

    void signal(int number) const {
        if (!reaped_) ::kill(pid_, number);
    }

    // The exit status, or 256 + the signal that ended it.
    int wait() {
        if (!reaped_) {
            while (waitpid(pid_, &status_, 0) == -1 && errno == EINTR) {
            }
            reaped_ = true;
        }
        return WIFEXITED(status_) ? WEXITSTATUS(status_) : 256 + WTERMSIG(status_);
    }

    // Dead and not reaped.
    void kill_to_zombie() const {
        signal(SIGKILL);
        siginfo_t info;
        while (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT) == -1 &&
               errno == EINTR) {
        }
    }

  private:
    int down_[2] = {-1, -1};
    int up_[2] = {-1, -1};
    pid_t pid_ = -1;
    bool reaped_ = false;
    int status_ = 0;
};

// As a program may do that becomes a daemon.
inline void close_all_descriptors_but(std::initializer_list<int> kept) {
    for (int fd = 3; fd < 1024; ++fd) {
        if (std::find(kept.begin(), kept.end(), fd) == kept.end()) ::close(fd);
    }
}

// Runs body in a child that is process 1 of a new pid namespace, or says that this is not allowed.
class InAnotherPidNamespace {
  public:
    explicit InAnotherPidNamespace(const std::function<int(const Channel&)>& body)
        : outer_([&body](const Channel& parent) {
#if defined(__SANITIZE_ADDRESS__)
              const bool allowed = false;  // such a child hung there, and in no other build
#else
              const bool allowed = unshare(CLONE_NEWPID) == 0;
#endif
              parent.tell(allowed ? 1 : 0);
              if (!allowed) return 0;
              const pid_t inner = fork();
              if (inner == -1) return 98;  // nobody's pid: whoever kills it kills everybody
              if (inner == 0) {            // no alarm ends process 1, but its parent's end does
                  prctl(PR_SET_PDEATHSIG, SIGKILL);
                  _exit(body(parent));
              }
              parent.tell(static_cast<std::uint64_t>(inner));
              int status = 0;
              while (waitpid(inner, &status, 0) == -1 && errno == EINTR) {
              }
              return WIFEXITED(status) ? WEXITSTATUS(status) : 256;
          }),
          allowed_(outer_.hear() == 1) {
        if (allowed_) {
            pid_ = static_cast<pid_t>(outer_.hear());
        } else {
            MESSAGE("skipped: no right to make a pid namespace, or AddressSanitizer");
        }
    }
    bool allowed() const { return allowed_; }
    std::uint64_t hear() const { return outer_.hear(); }
    void kill_and_reap() {
        ::kill(pid_, SIGKILL);
        outer_.wait();
    }

  private:
    ForkedChild outer_;
    bool allowed_;
    pid_t pid_ = -1;
};

// Polls for at most five seconds.
inline bool comes_true(const std::function<bool()>& condition) {
    for (int attempt = 0; attempt < 5000; ++attempt) {
        if (condition()) return true;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
}

// A directory of its own in shared memory; nothing in /dev/shm changes.
class ScratchDirectory {
  public:
    ScratchDirectory() {
        char pattern[] = "/dev/shm/mpbuffer-test-XXXXXX";
        if (mkdtemp(pattern) == nullptr) throw std::runtime_error("no scratch directory");
        path_ = pattern;
    }
    ScratchDirectory(const ScratchDirectory&) = delete;
    ScratchDirectory& operator=(const ScratchDirectory&) = delete;
    ~ScratchDirectory() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }

    const std::string& path() const { return path_; }
    bool is_empty() const { return std::filesystem::is_empty(path_); }
    std::string file(const std::string& name) const {
        return path_ + "/mpbuffer-" + std::to_string(geteuid()) + "-" + name;
    }

  private:
    std::string path_;
};

// From here on this process gets `code` from a system call whose 32-bit argument number
// `argument`, masked, equals `value`. False if the kernel has no such filters.
inline bool refuse_system_call(long call, unsigned argument, std::uint32_t mask,
                               std::uint32_t value, int code) {
    const auto low_half = static_cast<std::uint32_t>(offsetof(struct seccomp_data, args) +
                                                     argument * sizeof(std::uint64_t));
    sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(call), 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, low_half),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(code)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    sock_fprog program = {sizeof steps / sizeof steps[0], steps};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}
