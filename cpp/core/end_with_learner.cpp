#include "end_with_learner.hpp"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "process_table.hpp"
#include "shared_work.hpp"

namespace mpbuffer {

namespace {

constexpr auto between_looks = std::chrono::milliseconds(100);

bool has_ended(pid_t pid, std::uint64_t start_time) {
    if (kill(pid, 0) != 0 && errno == ESRCH) return true;
    const auto stat = read_process_stat(pid);
    if (!stat) return false;
    const bool zombie = stat->state == 'Z' || stat->state == 'X' || stat->state == 'x';
    return stat->start_time != start_time || (zombie && stat->threads <= 1);
}

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

}  // namespace mpbuffer
