#include "os/pages.hpp"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "base/guard.hpp"
#include "os/fork_watch.hpp"
#include "os/threads.hpp"

namespace mpbuffer {

namespace {

constexpr int populate_write = 23;    // MADV_POPULATE_WRITE, which older headers do not have
constexpr int interleave_policy = 3;  // MPOL_INTERLEAVE of mbind(2)

constexpr std::size_t piece_bytes = std::size_t{8} << 20;
constexpr std::size_t huge_page = std::size_t{2} << 20;
// More threads than this find the memory busy.
constexpr std::size_t most_threads = 16;
constexpr std::size_t pieces_worth_a_thread = 4;
constexpr auto progress_interval = std::chrono::milliseconds(50);

int populate(std::byte* memory, std::size_t bytes) {
    for (;;) {
        if (madvise(memory, bytes, populate_write) == 0) return 0;
        if (errno != EINTR && errno != EAGAIN) return errno;
    }
}

// A mapping cut into pieces, which several threads fetch one after another.
class Pieces {
  public:
    Pieces(std::byte* memory, std::size_t bytes, const RoomLeft& room_left)
        : memory_(memory), bytes_(bytes), room_left_(room_left) {}

    // False when nothing is left, or a piece has failed.
    bool supply_next() {
        const std::size_t at = next_.fetch_add(piece_bytes);
        if (at >= bytes_ || failure_ != 0) return false;
        const std::size_t size = std::min(piece_bytes, bytes_ - at);
        if (at >= ask_at_) {
            const std::size_t in_work = at - std::min(at, done_.load());
            const std::size_t allowed = room_left_(bytes_ - at + in_work);
            if (allowed == 0) {
                failure_ = ENOMEM;
                return false;
            }
            ask_at_ = at + std::min(allowed, bytes_);
        }
        if (const int code = populate(memory_ + at, size); code != 0) {
            failure_ = code;
            return false;
        }
        done_ += size;
        return true;
    }
    void give_up() { next_ = bytes_; }
    std::size_t done() const { return done_; }
    int failure() const { return failure_; }

  private:
    std::byte* memory_;
    std::size_t bytes_;
    const RoomLeft& room_left_;
    std::atomic<std::size_t> next_{0};
    std::atomic<std::size_t> ask_at_{piece_bytes};  // for the first piece the caller has asked
    std::atomic<std::size_t> done_{0};
    std::atomic<int> failure_{0};
};

// Threads that supply pieces, without signals, until all are supplied or the object ends.
class Suppliers {
  public:
    Suppliers(Pieces& pieces, std::size_t count) : pieces_(pieces), busy_(count) {
        const SignalsBlocked in_new_threads;
        try {
            for (std::size_t i = 0; i < count; ++i) threads_.emplace_back([this] { work(); });
        } catch (const std::system_error&) {  // fewer do as well, if there is one
            const std::scoped_lock lock(mutex_);
            busy_ -= count - threads_.size();
        }
    }
    ~Suppliers() {
        // In a child that progress has forked these threads are not there to be joined.
        if (fork_generation() != made_in_) {
            pieces_.give_up();
            (void)new std::vector<std::thread>(std::move(threads_));
            return;
        }
        if (!wait({})) pieces_.give_up();
        for (std::thread& thread : threads_) thread.join();
    }
    Suppliers(const Suppliers&) = delete;
    Suppliers& operator=(const Suppliers&) = delete;

    bool wait(std::chrono::milliseconds time) {
        std::unique_lock lock(mutex_);
        return ended_.wait_for(lock, time, [this] { return busy_ == 0; });
    }

  private:
    void work() {
        while (pieces_.supply_next()) {
        }
        const std::scoped_lock lock(mutex_);
        if (--busy_ == 0) ended_.notify_all();
    }

    Pieces& pieces_;
    const std::uint64_t made_in_ = fork_generation();
    std::mutex mutex_;
    std::condition_variable ended_;
    std::size_t busy_;
    std::vector<std::thread> threads_;
};

// Of a list such as "0-3,8": a bit for each.
std::vector<unsigned long> node_mask(const std::string& list) {
    constexpr std::size_t bits = 8 * sizeof(unsigned long);
    std::vector<unsigned long> mask;
    const char* at = list.c_str();
    while (*at >= '0' && *at <= '9') {
        char* end = nullptr;
        const std::size_t first = std::strtoul(at, &end, 10);
        std::size_t last = first;
        if (*end == '-') last = std::strtoul(end + 1, &end, 10);
        for (std::size_t node = first; node <= last && node < 4096; ++node) {
            mask.resize(std::max(mask.size(), node / bits + 1));
            mask[node / bits] |= 1ul << (node % bits);
        }
        at = *end == ',' ? end + 1 : end;
    }
    return mask;
}

}  // namespace

Supply supply_pages(std::byte* memory, std::size_t bytes, const Progress& progress,
                    const RoomLeft& room_left, std::size_t& supplied) {
    Pieces pieces(memory, bytes, room_left);
    supplied = 0;
    const auto report = [&progress](std::size_t done) {
        if (progress) call_back([&] { progress(done); });
    };
    report(0);
    if (!pieces.supply_next() && pieces.failure() == EINVAL) return Supply::unsupported;
    const std::size_t worth = bytes / piece_bytes / pieces_worth_a_thread;
    const std::size_t threads = std::min({worth, usable_processors(), most_threads});
    if (threads > 1) {
        Suppliers suppliers(pieces, threads);
        while (!suppliers.wait(progress_interval)) {
            report(pieces.done());
        }
    }
    while (pieces.supply_next()) {
        report(pieces.done());
    }
    supplied = pieces.done();
    report(supplied);
    return supplied == bytes ? Supply::done : Supply::no_room;
}

void prefer_huge_pages(std::byte* memory, std::size_t bytes) noexcept {
    if (bytes >= huge_page) (void)madvise(memory, bytes, MADV_HUGEPAGE);
}

void interleave_nodes(std::byte* memory, std::size_t bytes, const std::string& verb) {
    std::string online;
    std::getline(std::ifstream("/sys/devices/system/node/online"), online);
    const std::vector<unsigned long> mask = node_mask(online);
    std::size_t nodes = 0;
    for (const unsigned long word : mask) {
        nodes += static_cast<std::size_t>(__builtin_popcountl(word));
    }
    if (nodes < 2) return;
    const unsigned long bits = mask.size() * 8 * sizeof(unsigned long) + 1;
    if (syscall(SYS_mbind, memory, bytes, interleave_policy, mask.data(), bits, 0) != 0) {
        throw_system_failure(verb + ": its pages cannot be spread over NUMA nodes " + online,
                             errno);
    }
}

PrivateMemory::PrivateMemory(std::size_t bytes) {
    if (bytes > std::numeric_limits<std::size_t>::max() / 2) throw std::bad_alloc();
    const std::size_t whole = bytes >= huge_page ? (bytes + huge_page - 1) / huge_page * huge_page
                                                 : (bytes + 63) / 64 * 64;
    const std::size_t alignment = bytes >= huge_page ? huge_page : 64;
    auto* const memory =
        static_cast<std::byte*>(std::aligned_alloc(alignment, std::max(whole, alignment)));
    if (memory == nullptr) throw std::bad_alloc();
    memory_.reset(memory);
    prefer_huge_pages(memory, whole);
    std::memset(memory, 0, bytes);
}

void PrivateMemory::Free::operator()(std::byte* memory) const { std::free(memory); }

}  // namespace mpbuffer
