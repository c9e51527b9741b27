#include "os/end_with_learner.hpp"

#include <signal.h>
#include <unistd.h>

#include <thread>

#include "os/process_stat.hpp"
#include "os/threads.hpp"

namespace mpbuffer {

namespace {

constexpr auto between_looks = std::chrono::milliseconds(100);

}  // namespace

void end_with_learner(pid_t pid, std::uint64_t start_time, std::chrono::milliseconds grace,
                      int status) {
    const SignalsBlocked in_new_thread;
    std::thread([=] {
        while (!has_ended(pid, start_time)) std::this_thread::sleep_for(between_looks);
        std::this_thread::sleep_for(grace);
        _exit(status);
    }).detach();
}

void end_by_signal(int signal) {
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, signal);
    ::signal(signal, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &only, nullptr);
    kill(getpid(), signal);
    _exit(128 + signal);  // where it was process 1 of its namespace, or the signal ends nothing
}

}  // namespace mpbuffer
