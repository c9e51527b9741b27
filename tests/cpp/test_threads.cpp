#include <doctest/doctest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "base/tsan.hpp"
#include "failing_allocation.hpp"
#include "forked_child.hpp"
#include "os/threads.hpp"

using namespace mpbuffer;

namespace {

struct Tally {
    explicit Tally(std::size_t count) : times(count) {}
    bool each_once() const {
        return std::all_of(times.begin(), times.end(), [](unsigned n) { return n == 1; });
    }
    std::vector<unsigned> times;
    std::set<std::thread::id> threads;
    std::mutex mutex;
};

// Shares the work of counting each place once; `pause` in other threads than this one.
void count_shared(Tally& tally, std::size_t piece, std::size_t more_threads,
                  std::chrono::milliseconds pause = {}) {
    const auto caller = std::this_thread::get_id();
    share_work(tally.times.size(), piece, more_threads, [&](std::size_t first, std::size_t last) {
        if (std::this_thread::get_id() != caller) std::this_thread::sleep_for(pause);
        for (std::size_t place = first; place < last; ++place) ++tally.times[place];
        const std::scoped_lock lock(tally.mutex);
        tally.threads.insert(std::this_thread::get_id());
    });
}

// Whether a second thread takes part in work that waits for one.
bool is_helped() {
    const auto caller = std::this_thread::get_id();
    std::atomic<bool> helped{false};
    share_work(10, 1, 1, [&](std::size_t, std::size_t) {
        if (std::this_thread::get_id() != caller) helped = true;
        if (!helped) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
    return helped;
}

}  // namespace

TEST_CASE("each place is worked on once, and what was written is there afterwards") {
    const Watchdog watchdog;
    for (const std::size_t count : {0, 1, 7, 64, 1000}) {
        for (const std::size_t piece : {1, 3, 64, 5000}) {
            for (const std::size_t more : {0, 1, 3, 7}) {
                Tally tally(count);
                count_shared(tally, piece, more);
                CHECK(tally.each_once());
                CHECK(tally.threads.size() <= more + 1);
            }
        }
    }
}

TEST_CASE("other threads do their part, and one that has begun is waited for") {
    const Watchdog watchdog;
    CHECK(comes_true([] {
        Tally tally(20'000);
        const auto caller = std::this_thread::get_id();
        std::atomic<unsigned> helped{0};
        share_work(tally.times.size(), 1, 2, [&](std::size_t first, std::size_t) {
            if (std::this_thread::get_id() == caller) {
                std::this_thread::sleep_for(std::chrono::microseconds(helped == 0 ? 10 : 0));
            } else if (helped.fetch_add(1) == 0) {
                std::this_thread::sleep_for(std::chrono::milliseconds(30));
            }
            ++tally.times[first];
        });
        CHECK(tally.each_once());
        return helped > 0;
    }));
}

TEST_CASE("several threads share their work at the same time, and a forked child too") {
    const Watchdog watchdog;
    std::atomic<bool> stop{false};
    std::atomic<unsigned> wrong{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
        threads.emplace_back([&] {
            while (!stop) {
                Tally tally(300);
                count_shared(tally, 7, 3);
                if (!tally.each_once()) ++wrong;
            }
        });
    }
// TSan knows no threads in a child of threads; ASan's allocator (GCC 12) leaves such a child the
// locks that other threads had at the fork, and it waits for them for ever.
#if MPBUFFER_TSAN || defined(__SANITIZE_ADDRESS__)
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
#else
    for (int round = 0; round < 10; ++round) {
        ForkedChild child([](const Channel&) {
            // Threads of the parent's that were running at the fork are not waited for.
            unsigned helped = 0;
            for (int i = 0; i < 3; ++i) {
                Tally tally(300);
                count_shared(tally, 1, 3);
                if (!tally.each_once()) return 1;
                helped += static_cast<unsigned>(tally.threads.size() - 1);
            }
            return helped > 9 ? 2 : 0;
        });
        CHECK(child.wait() == 0);
    }
#endif
    stop = true;
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
}

TEST_CASE("where a thread cannot be had the caller does all, and none is counted") {
    const Watchdog watchdog;
    for (std::uint64_t n = 1; n < 12; ++n) {
        Tally tally(100);
        (void)fails_at(n, [&] {
            share_work(tally.times.size(), 10, 3, [&](std::size_t first, std::size_t last) {
                for (std::size_t place = first; place < last; ++place) ++tally.times[place];
            });
        });
        if (n > 1) CHECK(tally.each_once());  // the first is for the list of pieces
    }
    CHECK(comes_true(is_helped));
}

TEST_CASE("processors that a thread may use") {
    cpu_set_t before;
    REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
    CHECK(usable_processors() == static_cast<std::size_t>(CPU_COUNT(&before)));
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE; ++i) {
        if (CPU_ISSET(i, &before)) {
            CPU_SET(i, &one);
            break;
        }
    }
    REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
    CHECK(usable_processors() == 1);
    REQUIRE(sched_setaffinity(0, sizeof before, &before) == 0);
}
