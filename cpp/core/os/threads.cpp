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

using Work = std::function<void(std::size_t, std::size_t)>;

class Pieces {
  public:
    Pieces(std::size_t count, std::size_t piece, const Work& work)
        : count_(count), piece_(piece), work_(work) {}

    // `work_` is not looked at once nothing is left: its owner may be gone.
    void take_all() {
        for (;;) {
            const std::size_t first = next_.fetch_add(piece_, std::memory_order_relaxed);
            if (first >= count_) return;
            const std::size_t last = std::min(first + piece_, count_);
            work_(first, last);
            // Release: pairs with wait(); what the work wrote is there for who waited.
            if (done_.fetch_add(last - first, std::memory_order_release) + last - first == count_) {
                done_.notify_one();
            }
        }
    }

    void wait() {
        for (;;) {
            const std::size_t done = done_.load(std::memory_order_acquire);
            if (done == count_) return;
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

void share_work(std::size_t count, std::size_t piece, std::size_t more_threads, const Work& work) {
    const auto pieces = std::make_shared<Pieces>(count, piece, work);
    const std::size_t already = threads_running();
    if (more_threads > already) {
        const SignalsBlocked in_new_threads;
        try {
            for (std::size_t i = already; i < more_threads; ++i) {
                count_thread();
                std::thread([pieces] {
                    pieces->take_all();
                    uncount_thread();
                }).detach();
            }
        } catch (const std::exception&) {  // no thread, or no memory for it: then with fewer
            uncount_thread();
        }
    }
    pieces->take_all();
    pieces->wait();
}

}  // namespace mpbuffer
