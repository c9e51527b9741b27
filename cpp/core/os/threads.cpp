#include "os/threads.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>

#include "os/fork_watch.hpp"

namespace mpbuffer {

namespace {

// `fork generation:48 | threads:16`: those of this process that have been started here and have not
// ended. One word, so that a child which finds its parent's count cannot lose one of its own.
std::atomic<std::uint64_t> running{0};

constexpr std::uint64_t running_in(std::uint64_t word, std::uint64_t generation) {
    return word >> 16 == generation ? word & 0xffff : 0;
}

std::size_t threads_running() {
    return running_in(running.load(std::memory_order_relaxed), fork_generation());
}

void count_thread() {
    const std::uint64_t here = fork_generation();
    std::uint64_t before = running.load(std::memory_order_relaxed);
    while (!running.compare_exchange_weak(before, here << 16 | (running_in(before, here) + 1),
                                          std::memory_order_relaxed)) {
    }
}

// The word is of this process: count_thread() came before.
void uncount_thread() { running.fetch_sub(1, std::memory_order_relaxed); }

}  // namespace

std::size_t usable_processors() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
    return static_cast<std::size_t>(std::max(1, CPU_COUNT(&allowed)));
}

// Shared with the helpers, which may come when the SharedWork is gone.
class SharedWork::Pieces {
  public:
    Pieces(std::size_t count, std::size_t piece, const Work& work)
        : count_(count), piece_(piece), work_(work) {}

    // `work_` is not looked at once nothing is left: its owner may be gone.
    bool do_next() {
        const std::size_t first = next_.fetch_add(piece_, std::memory_order_relaxed);
        if (first >= count_) return false;
        const std::size_t last = std::min(first + piece_, count_);
        work_(first, last);
        // Release: pairs with finish(); what the work wrote is there for who waited.
        done_.fetch_add(last - first, std::memory_order_release);
        done_.notify_one();
        return true;
    }

    // Once.
    void finish() {
        const std::size_t begun =
            std::min(next_.exchange(count_, std::memory_order_relaxed), count_);
        for (;;) {
            const std::size_t done = done_.load(std::memory_order_acquire);
            if (done == begun) return;
            done_.wait(done, std::memory_order_acquire);
        }
    }

  private:
    std::size_t count_;
    std::size_t piece_;
    const Work& work_;
    std::atomic<std::size_t> next_{0};
    std::atomic<std::size_t> done_{0};
};

SharedWork::SharedWork(std::size_t count, std::size_t piece, const Work& work)
    : pieces_(std::make_shared<Pieces>(count, piece, work)), made_in_(fork_generation()) {}

SharedWork::~SharedWork() { finish(); }

void SharedWork::start(std::size_t helpers) {
    const std::size_t already = threads_running();
    if (helpers <= already) return;
    const SignalsBlocked in_new_threads;
    try {
        for (std::size_t i = already; i < helpers; ++i) {
            count_thread();
            std::thread([pieces = pieces_] {
                while (pieces->do_next()) {
                }
                uncount_thread();
            }).detach();
        }
    } catch (const std::exception&) {  // no thread, or no memory for it: then with fewer
        uncount_thread();
    }
}

bool SharedWork::do_next() { return pieces_->do_next(); }

void SharedWork::finish() {
    if (pieces_ && fork_generation() == made_in_) pieces_->finish();
    pieces_.reset();
}

void share_work(std::size_t count, std::size_t piece, std::size_t helpers,
                const SharedWork::Work& work) {
    SharedWork shared(count, piece, work);
    shared.start(helpers);
    while (shared.do_next()) {
    }
}

}  // namespace mpbuffer
