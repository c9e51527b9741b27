#include "process_table.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>

#include "error.hpp"
#include "file_locks.hpp"
#include "stop_points.hpp"

namespace mpbuffer {

static_assert(lock_byte::last_process - lock_byte::first_process + 1 == max_processes);

struct alignas(64) ProcessTable::Head {
    std::atomic<std::uint64_t> high_water;
    std::atomic<std::uint64_t> last_taken;  // a hint: where the round-robin search goes on
    std::atomic<std::uint64_t> reserved[6];
};

namespace {

std::uint64_t lock_byte_of(unsigned number) { return lock_byte::first_process + number - 1; }

std::uint64_t now_in_nanoseconds() {
    timespec now = {};
    clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000u +
           static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace

std::size_t ProcessTable::bytes_required() {
    static_assert(sizeof(Head) == 64);
    return sizeof(Head) + max_processes * sizeof(ProcessRecord);
}

ProcessTable::ProcessTable(void* memory) {
    if (memory == nullptr || reinterpret_cast<std::uintptr_t>(memory) % alignof(Head) != 0) {
        throw InvalidArgument("cannot lay out the process table: its memory is at address " +
                              std::to_string(reinterpret_cast<std::uintptr_t>(memory)) +
                              ", expected a multiple of 64");
    }
    head_ = static_cast<Head*>(memory);
    records_ = reinterpret_cast<ProcessRecord*>(static_cast<std::byte*>(memory) + sizeof(Head));
}

ProcessRecord& ProcessTable::record(unsigned number) const {
    if (number < 1 || number > max_processes) {
        throw IndexOutOfRange("cannot look up process " + std::to_string(number) +
                              ": expected a number from 1 to " + std::to_string(max_processes));
    }
    return records_[number - 1];
}

unsigned ProcessTable::high_water() const {
    const std::uint64_t highest = head_->high_water.load(std::memory_order_acquire);
    return highest <= max_processes ? static_cast<unsigned>(highest) : max_processes;
}

bool ProcessTable::names_living_process(const ProcessRecord& record) const {
    const std::uint64_t start_time = record.start_time.load(std::memory_order_acquire);
    const std::uint64_t pid = record.pid.load(std::memory_order_relaxed);
    if (start_time == 0 || pid == 0) return false;
    if (record.pid_namespace.load(std::memory_order_relaxed) != own_pid_namespace()) return false;
    const auto stat = read_process_stat(static_cast<pid_t>(pid));
    return stat && stat->start_time == start_time && stat->state != 'Z' && stat->state != 'X' &&
           stat->state != 'x';
}

Identity ProcessTable::enroll(int lock_fd, std::uint64_t* left_busy) {
    if (left_busy != nullptr) *left_busy = 0;
    const auto pid = static_cast<std::uint64_t>(getpid());
    const std::uint64_t pid_namespace = own_pid_namespace();
    const auto stat = read_process_stat(0);
    const std::uint64_t start_time = stat ? stat->start_time : 0;

    const std::uint64_t last = head_->last_taken.load(std::memory_order_relaxed) % max_processes;
    for (unsigned step = 0; step < max_processes; ++step) {
        const auto number = static_cast<unsigned>((last + step) % max_processes) + 1;
        ProcessRecord& mine = records_[number - 1];
        // Our own other handle: its lock may be held through this very description, so that
        // taking it would succeed and giving it back would release it.
        if (start_time != 0 && mine.start_time.load(std::memory_order_acquire) == start_time &&
            mine.pid.load(std::memory_order_relaxed) == pid &&
            mine.pid_namespace.load(std::memory_order_relaxed) == pid_namespace) {
            continue;
        }
        if (!try_lock(lock_fd, lock_byte_of(number), LockKind::exclusive)) continue;
        stop_point(StopPoint::number_locked);
        if (names_living_process(mine)) {
            unlock(lock_fd, lock_byte_of(number));
            continue;
        }

        const Identity identity{number, mine.epoch.load(std::memory_order_relaxed) + 1};
        mine.epoch.store(identity.epoch, std::memory_order_release);
        stop_point(StopPoint::epoch_raised);
        mine.start_time.store(0, std::memory_order_release);  // names nobody while half filled
        mine.pid.store(pid, std::memory_order_relaxed);
        mine.pid_namespace.store(pid_namespace, std::memory_order_relaxed);
        mine.registered_at.store(now_in_nanoseconds(), std::memory_order_relaxed);
        const auto copy = [](std::atomic<std::uint64_t>& to, std::atomic<std::uint64_t>& from) {
            to.store(from.load(std::memory_order_relaxed), std::memory_order_relaxed);
        };
        copy(mine.rows_before, mine.ring[0].rows);
        copy(mine.skips_before, mine.ring[0].skips);
        copy(mine.steals_before, mine.ring[0].steals);
        mine.start_time.store(start_time, std::memory_order_release);
        stop_point(StopPoint::process_described);

        for (unsigned ring = 0; left_busy != nullptr && ring < max_rings; ++ring) {
            if (mine.ring[ring].busy.load(std::memory_order_acquire) != 0) {
                *left_busy |= std::uint64_t{1} << ring;
            }
        }
        head_->last_taken.store(number, std::memory_order_relaxed);
        std::uint64_t highest = head_->high_water.load(std::memory_order_relaxed);
        while (highest < number && !head_->high_water.compare_exchange_weak(
                                       highest, number, std::memory_order_acq_rel)) {
        }
        return identity;
    }
    throw ProcessTableFull("cannot register process " + std::to_string(pid) +
                           ": all process numbers are taken by living processes, got " +
                           std::to_string(max_processes) + ", expected fewer");
}

void ProcessTable::forget_busy(Identity identity, std::uint64_t left_busy) {
    ProcessRecord& mine = record(identity.number);
    for (unsigned ring = 0; ring < max_rings; ++ring) {
        if ((left_busy >> ring & 1) != 0) {
            mine.ring[ring].busy.store(0, std::memory_order_release);
        }
    }
}

void ProcessTable::leave(int lock_fd, Identity identity) {
    if (identity.number == 0) return;
    ProcessRecord& mine = record(identity.number);
    const auto pid = static_cast<std::uint64_t>(getpid());
    if (mine.epoch.load(std::memory_order_acquire) == identity.epoch) {
        if (mine.pid.load(std::memory_order_relaxed) != pid)
            return;  // a forked child: not its lock
        mine.start_time.store(0, std::memory_order_release);
    }
    unlock(lock_fd, lock_byte_of(identity.number));
}

bool ProcessTable::dead(unsigned number, std::uint64_t epoch_low_bits, unsigned epoch_bits,
                        int lock_fd) const {
    if (number < 1 || number > max_processes) return true;
    const std::uint64_t mask = epoch_bits < 64 ? (std::uint64_t{1} << epoch_bits) - 1 : ~0ull;
    const std::uint64_t epoch = records_[number - 1].epoch.load(std::memory_order_acquire);
    if (((epoch ^ epoch_low_bits) & mask) != 0) return true;
    return dead(number, lock_fd);
}

bool ProcessTable::dead(unsigned number, int lock_fd) const {
    if (number < 1 || number > max_processes) return true;
    // The lock first: while it is held nothing else matters (a process whose first thread has
    // ended looks like a zombie in /proc and lives all the same).
    if (held_elsewhere(lock_fd, lock_byte_of(number))) return false;
    return !names_living_process(records_[number - 1]);
}

char ProcessTable::state(unsigned number, int lock_fd) const {
    if (number < 1 || number > max_processes || dead(number, lock_fd)) return 'X';
    const ProcessRecord& theirs = records_[number - 1];
    if (theirs.pid_namespace.load(std::memory_order_relaxed) != own_pid_namespace()) return '?';
    const std::uint64_t start_time = theirs.start_time.load(std::memory_order_acquire);
    const auto stat =
        read_process_stat(static_cast<pid_t>(theirs.pid.load(std::memory_order_relaxed)));
    return stat && start_time != 0 && stat->start_time == start_time ? stat->state : '?';
}

std::optional<ProcessStat> read_process_stat(pid_t pid) {
    char path[48] = "/proc/self/stat";
    if (pid != 0) std::snprintf(path, sizeof path, "/proc/%ld/stat", static_cast<long>(pid));
    int fd;
    do {
        fd = open(path, O_RDONLY | O_CLOEXEC);
    } while (fd == -1 && errno == EINTR);
    if (fd == -1) return std::nullopt;
    char text[1024];
    std::size_t length = 0;
    while (length < sizeof text - 1) {
        const ssize_t got = read(fd, text + length, sizeof text - 1 - length);
        if (got == -1 && errno == EINTR) continue;
        if (got <= 0) break;
        length += static_cast<std::size_t>(got);
    }
    ::close(fd);
    text[length] = '\0';

    // "pid (command) state ppid ...": the command may hold anything, parentheses included. The
    // state is field 3, the number of threads field 20, the start time field 22.
    const char* at = std::strrchr(text, ')');
    if (at == nullptr || at[1] != ' ' || at[2] == '\0') return std::nullopt;
    ProcessStat stat{at[2], 0, 0};
    at += 2;
    for (int field = 3; field < 22; ++field) {
        at = std::strchr(at, ' ');
        if (at == nullptr) return std::nullopt;
        ++at;
        if (field + 1 == 20) stat.threads = std::strtoull(at, nullptr, 10);
    }
    stat.start_time = std::strtoull(at, nullptr, 10);
    return stat;
}

std::uint64_t own_pid_namespace() {
    struct stat facts;
    return ::stat("/proc/self/ns/pid", &facts) == 0 ? static_cast<std::uint64_t>(facts.st_ino) : 0;
}

}  // namespace mpbuffer
