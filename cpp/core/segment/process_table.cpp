#include "segment/process_table.hpp"

#include <unistd.h>

#include <cerrno>
#include <limits>
#include <string>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/stop_points.hpp"
#include "format/slot_word.hpp"
#include "os/file_locks.hpp"
#include "os/process_stat.hpp"

namespace mpbuffer {

static_assert(lock_byte::last_process - lock_byte::first_process + 1 == max_processes);

// What the calling process is described by, beside where it has the table mapped.
struct ProcessTable::Self {
    std::uint64_t pid = static_cast<std::uint64_t>(getpid());
    std::uint64_t pid_namespace = own_pid_namespace();
    std::uint64_t time_namespace = own_time_namespace();
    std::uint64_t start_time;

    Self() {
        const auto stat = read_process_stat(0);
        if (!stat) {
            throw_system_failure("cannot register process " + std::to_string(pid) +
                                     ": /proc/self/stat cannot be read",
                                 errno);
        }
        start_time = stat->start_time;
    }
    bool enrolled(const ProcessRecord& record, std::uint64_t address) const {
        return record.mapped_at.load(std::memory_order_acquire) == address &&
               record.pid.load(std::memory_order_relaxed) == pid &&
               record.start_time.load(std::memory_order_relaxed) == start_time &&
               record.pid_namespace.load(std::memory_order_relaxed) == pid_namespace &&
               record.time_namespace.load(std::memory_order_relaxed) == time_namespace;
    }
};

namespace {

std::uint64_t lock_byte_of(unsigned number) { return lock_byte::first_process + number - 1; }

constexpr unsigned low_epochs = 1u << slot_word::epoch_bits;
constexpr std::uint64_t all_low_epochs = (std::uint64_t{1} << low_epochs) - 1;
constexpr std::uint64_t low_epoch_bit(std::uint64_t epoch) {
    return std::uint64_t{1} << epoch % low_epochs;
}

}  // namespace

ProcessTable::ProcessTable(void* memory, std::uint64_t size) {
    if (size < 1 || size > max_processes) {
        throw InvalidArgument("cannot lay out the process table: got " + std::to_string(size) +
                              " numbers, expected 1 to " + std::to_string(max_processes));
    }
    if (memory == nullptr ||
        reinterpret_cast<std::uintptr_t>(memory) % alignof(ProcessTableHead) != 0) {
        throw InvalidArgument("cannot lay out the process table: its memory is at address " +
                              std::to_string(reinterpret_cast<std::uintptr_t>(memory)) +
                              ", expected a multiple of 64");
    }
    head_ = static_cast<ProcessTableHead*>(memory);
    records_ = reinterpret_cast<ProcessRecord*>(static_cast<std::byte*>(memory) +
                                                sizeof(ProcessTableHead));
    size_ = static_cast<unsigned>(size);
}

ProcessRecord& ProcessTable::record(unsigned number) const {
    if (number < 1 || number > size_) {
        throw IndexOutOfRange("cannot look up process " + std::to_string(number) +
                              ": expected a number from 1 to " + std::to_string(size_));
    }
    return records_[number - 1];
}

unsigned ProcessTable::high_water() const {
    const std::uint64_t highest = head_->high_water.load(std::memory_order_acquire);
    return highest <= size_ ? static_cast<unsigned>(highest) : size_;
}

std::uint64_t ProcessTable::address() const { return reinterpret_cast<std::uintptr_t>(head_); }

// A pid means the same process there and here, and a start time the same moment.
bool ProcessTable::can_be_inspected(const ProcessRecord& record) const {
    const std::uint64_t pid_namespace = record.pid_namespace.load(std::memory_order_relaxed);
    return pid_namespace != 0 && pid_namespace == own_pid_namespace() &&
           record.time_namespace.load(std::memory_order_relaxed) == own_time_namespace();
}

bool ProcessTable::names_living_process(const ProcessRecord& record) const {
    // Acquire: pairs with the release of enroll(), which stores this field last.
    const std::uint64_t mapped_at = record.mapped_at.load(std::memory_order_acquire);
    const std::uint64_t pid = record.pid.load(std::memory_order_relaxed);
    if (mapped_at == 0 || pid == 0 || pid > std::numeric_limits<pid_t>::max()) return false;
    if (!can_be_inspected(record)) return true;
    const auto its_pid = static_cast<pid_t>(pid);
    if (has_ended(its_pid, record.start_time.load(std::memory_order_relaxed))) return false;
    const auto ours = mapped_byte(0, address());
    const auto theirs = mapped_byte(its_pid, mapped_at);
    return !ours || ours->inode == 0 || !theirs || *theirs == *ours;
}

void ProcessTable::leave_for_earlier_selves(int lock_fd, const Self& self) {
    for (unsigned number = 1; number <= high_water(); ++number) {
        ProcessRecord& record = records_[number - 1];
        if (!self.enrolled(record, address()) ||
            !try_lock(lock_fd, lock_byte_of(number), LockKind::exclusive)) {
            continue;
        }
        // Somebody may have taken the number since.
        if (self.enrolled(record, address())) record.mapped_at.store(0, std::memory_order_release);
        unlock(lock_fd, lock_byte_of(number));
    }
}

Identity ProcessTable::enroll(int lock_fd, std::uint64_t* left_busy) {
    if (left_busy != nullptr) *left_busy = 0;
    const Self self;
    leave_for_earlier_selves(lock_fd, self);
    for (unsigned number = 1; number <= size_; ++number) {
        ProcessRecord& mine = records_[number - 1];
        if (!try_lock(lock_fd, lock_byte_of(number), LockKind::exclusive)) continue;
        stop_point(StopPoint::number_locked);
        // A copy names the process that it is of.
        if (lock_fd != no_file && names_living_process(mine)) {
            unlock(lock_fd, lock_byte_of(number));
            continue;
        }

        // Past the epochs whose claims would pass for this one's.
        std::uint64_t not_left =
            mine.epochs_not_left.load(std::memory_order_relaxed) & all_low_epochs;
        if (not_left == all_low_epochs) not_left = 0;
        Identity identity{number, mine.epoch.load(std::memory_order_relaxed) + 1};
        while ((not_left & low_epoch_bit(identity.epoch)) != 0) ++identity.epoch;
        mine.epochs_not_left.store(not_left | low_epoch_bit(identity.epoch),
                                   std::memory_order_relaxed);
        mine.epoch.store(identity.epoch, std::memory_order_release);
        stop_point(StopPoint::epoch_raised);
        mine.mapped_at.store(0, std::memory_order_release);  // names nobody while half filled
        mine.pid.store(self.pid, std::memory_order_relaxed);
        mine.start_time.store(self.start_time, std::memory_order_relaxed);
        mine.pid_namespace.store(self.pid_namespace, std::memory_order_relaxed);
        mine.time_namespace.store(self.time_namespace, std::memory_order_relaxed);
        mine.registered_at.store(wall_clock_ns(), std::memory_order_relaxed);
        for (RingState& ring : mine.ring) {
            const auto copy = [](std::atomic<std::uint64_t>& to, std::atomic<std::uint64_t>& from) {
                to.store(from.load(std::memory_order_relaxed), std::memory_order_relaxed);
            };
            copy(ring.rows_before, ring.rows);
            copy(ring.skips_before, ring.skips);
            copy(ring.steals_before, ring.steals);
        }
        // Release: pairs with the acquire in names_living_process(), for what is stored above.
        mine.mapped_at.store(address(), std::memory_order_release);
        stop_point(StopPoint::process_described);

        for (unsigned ring = 0; left_busy != nullptr && ring < max_rings; ++ring) {
            if (mine.ring[ring].busy.load(std::memory_order_acquire) != 0) {
                *left_busy |= std::uint64_t{1} << ring;
            }
        }
        std::uint64_t highest = head_->high_water.load(std::memory_order_relaxed);
        while (highest < number && !head_->high_water.compare_exchange_weak(
                                       highest, number, std::memory_order_acq_rel)) {
        }
        return identity;
    }
    throw ProcessTableFull("cannot register process " + std::to_string(self.pid) +
                           ": all process numbers are taken by living processes, got " +
                           std::to_string(size_) +
                           " open handles, expected fewer; close one, or create the segment with "
                           "a larger max_handles= (at most " +
                           std::to_string(max_processes) + ")");
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
    if (mine.epoch.load(std::memory_order_acquire) == identity.epoch) {
        const std::uint64_t pid_namespace = mine.pid_namespace.load(std::memory_order_relaxed);
        if (mine.pid.load(std::memory_order_relaxed) != static_cast<std::uint64_t>(getpid()) ||
            (pid_namespace != 0 && pid_namespace != own_pid_namespace())) {
            return;  // a forked child: not its lock
        }
        mine.epochs_not_left.fetch_and(~low_epoch_bit(identity.epoch), std::memory_order_relaxed);
        mine.mapped_at.store(0, std::memory_order_release);
    }
    unlock(lock_fd, lock_byte_of(identity.number));
}

bool ProcessTable::dead(unsigned number, std::uint64_t epoch_low_bits, unsigned epoch_bits,
                        int lock_fd) const {
    if (number < 1 || number > size_) return true;
    const std::uint64_t mask = epoch_bits < 64 ? (std::uint64_t{1} << epoch_bits) - 1 : ~0ull;
    const std::uint64_t epoch = records_[number - 1].epoch.load(std::memory_order_acquire);
    if (((epoch ^ epoch_low_bits) & mask) != 0) return true;
    return dead(number, lock_fd);
}

bool ProcessTable::dead(unsigned number, int lock_fd) const {
    if (number < 1 || number > size_) return true;
    // The lock first: while it is held nothing else matters.
    if (held_elsewhere(lock_fd, lock_byte_of(number))) return false;
    return !names_living_process(records_[number - 1]);
}

char ProcessTable::state(unsigned number, int lock_fd) const {
    if (number < 1 || number > size_ || dead(number, lock_fd)) return 'X';
    const ProcessRecord& theirs = records_[number - 1];
    if (!can_be_inspected(theirs) || !proc_is_of_own_namespace()) return '?';
    const auto stat =
        read_process_stat(static_cast<pid_t>(theirs.pid.load(std::memory_order_relaxed)));
    return stat && stat->start_time == theirs.start_time.load(std::memory_order_relaxed)
               ? stat->state
               : '?';
}

}  // namespace mpbuffer
