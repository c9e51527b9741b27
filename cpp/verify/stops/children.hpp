// Forked children of a supervisor: watched, killed at the end, and reaped only when it says so.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <exception>
#include <vector>

namespace stops {

constexpr unsigned watchdog_seconds = 60;

enum class ChildState { running, stopped, killed, exited };

struct Child {
    pid_t pid = -1;
    int status = 0;  // exit status, or the signal

    // Looks without reaping.
    ChildState look() {
        siginfo_t info{};
        if (waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WSTOPPED | WNOHANG | WNOWAIT) ==
                -1 ||
            info.si_pid == 0) {
            return ChildState::running;
        }
        status = info.si_status;
        if (info.si_code == CLD_STOPPED) return ChildState::stopped;
        return info.si_code == CLD_EXITED ? ChildState::exited : ChildState::killed;
    }
    void send(int signal) const { kill(pid, signal); }
    // Dead, and a zombie until reaped.
    void kill_to_zombie() const {
        send(SIGKILL);
        siginfo_t info;
        while (waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) == -1 &&
               errno == EINTR) {
        }
    }
};

class Children {
  public:
    Children() = default;
    Children(const Children&) = delete;
    Children& operator=(const Children&) = delete;
    ~Children() { kill_and_reap(); }

    template <class Body>
    Child& start(Body&& body) {
        const pid_t pid = fork();
        if (pid == 0) {
            alarm(watchdog_seconds);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            int status = 99;
            try {
                status = body();
            } catch (const std::exception& error) {
                std::fprintf(stderr, "in a child: %s\n", error.what());
            }
            _exit(status);
        }
        children_.push_back({pid});
        return children_.back();
    }
    std::vector<Child>& all() { return children_; }
    void kill_and_reap() {
        for (const Child& child : children_) child.send(SIGKILL);
        for (const Child& child : children_) {
            while (waitpid(child.pid, nullptr, 0) == -1 && errno == EINTR) {
            }
        }
        children_.clear();
    }

  private:
    std::vector<Child> children_;
};

inline void pause_microseconds(long microseconds) {
    const timespec pause = {microseconds / 1'000'000, microseconds % 1'000'000 * 1000};
    nanosleep(&pause, nullptr);
}

}  // namespace stops
