#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/guard.hpp"
#include "buffer/replay_buffer.hpp"
#include "forked_child.hpp"
#include "weights/shared_weights.hpp"
#include "write/row_writer.hpp"

using namespace mpbuffer;

namespace {

// A program's lock of the simplest kind, which tells when a rule is broken.
class ToyLock {
  public:
    static void hold() {
        mutex.lock();
        held = true;
    }
    static void let_go() {
        held = false;
        mutex.unlock();
    }
    static bool is_held() { return held; }

    ToyLock() { set_program_lock({release, acquire}); }
    ~ToyLock() { set_program_lock({}); }

    static inline std::atomic<std::uint64_t> given_up{0};
    static inline std::atomic<std::uint64_t> taken_with_mutex{0};

  private:
    static void* release() {
        if (!held) return nullptr;
        ++given_up;
        let_go();
        return &mutex;
    }
    static void acquire(void*) {
        if (thread_in_core.mutexes != 0) ++taken_with_mutex;
        hold();
    }
    static inline std::timed_mutex mutex;
    static inline thread_local bool held = false;
};

// A program's lock that another thread gets whenever a call gives it up or wants it back.
class WantedLock {
  public:
    explicit WantedLock(const std::function<void()>& by_another) {
        meanwhile = &by_another;
        set_program_lock({release, acquire});
    }
    ~WantedLock() { set_program_lock({}); }

  private:
    static void* release() {
        (*meanwhile)();
        return &meanwhile;
    }
    static void acquire(void*) { (*meanwhile)(); }
    static inline const std::function<void()>* meanwhile = nullptr;
};

int mappings_below(const std::string& directory) {
    std::ifstream maps("/proc/self/maps");
    int found = 0;
    for (std::string line; std::getline(maps, line);) {
        if (line.find(directory) != std::string::npos) ++found;
    }
    return found;
}

}  // namespace

TEST_CASE("a guard that has to wait gives the program's lock up, and has it again at its end") {
    const Watchdog watchdog;
    const ToyLock toy;
    Mutex mutex;
    std::atomic<bool> holding = false;
    std::thread holder([&] {
        const Guard guard(mutex);
        holding = true;
        ToyLock::hold();  // against the rule: it would never come to this if the other did not let
                          // go
        ToyLock::let_go();
    });
    while (!holding) std::this_thread::yield();
    ToyLock::hold();
    {
        const Guard guard(mutex);
        CHECK(thread_in_core.mutexes == 1);
    }
    CHECK(ToyLock::is_held());
    CHECK(thread_in_core.mutexes == 0);
    ToyLock::let_go();
    holder.join();
}

TEST_CASE("the program's lock stays given up until the outermost call ends") {
    const Watchdog watchdog;
    const ToyLock toy;
    Mutex mutex;
    ToyLock::hold();
    {
        const CoreCall outer;
        {
            const Guard guard(mutex);
            let_others_run();
            CHECK_FALSE(ToyLock::is_held());
        }
        CHECK_FALSE(ToyLock::is_held());
        call_back([] {
            CHECK(ToyLock::is_held());
            CHECK(thread_in_core.calls == 0);
            {
                const CoreCall inner;  // what is called back may call the core
                let_others_run();
                CHECK_FALSE(ToyLock::is_held());
            }
            CHECK(ToyLock::is_held());
        });
        CHECK_FALSE(ToyLock::is_held());
    }
    CHECK(ToyLock::is_held());
    ToyLock::let_go();
}

TEST_CASE("outside a call nothing is given up") {
    const ToyLock toy;
    ToyLock::hold();
    let_others_run();
    CHECK(ToyLock::is_held());
    ToyLock::let_go();
}

TEST_CASE("calling back with a mutex held ends the process") {
    ForkedChild child([](const Channel&) {
        ::signal(SIGABRT, SIG_DFL);
        Mutex mutex;
        const Guard guard(mutex);
        call_back([] {});
        return 0;
    });
    CHECK(child.wait() == 256 + SIGABRT);
}

TEST_CASE("threads that hold the program's lock call everything, and none waits for ever") {
    const Watchdog watchdog;
    const ToyLock toy;
    ToyLock::given_up = 0;
    ToyLock::taken_with_mutex = 0;
    const ScratchDirectory scratch;
    BufferSettings settings{"buffer", {1000, 256, true, 0.6, 1e-4}, 1, "", {}};
    settings.segment.directory = scratch.path();
    const auto buffer = ReplayBuffer::create(settings);
    std::vector<std::byte> rows(600 * 256);
    const FieldSource source{rows.data(), 256, 0, 256};
    ToyLock::hold();
    buffer->add(600, {&source, 1}, nullptr, 0);
    ToyLock::let_go();
    std::atomic<bool> stop = false;
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 4; ++seed) {
        threads.emplace_back([&, seed] {
            std::vector<std::byte> memory(600 * 256);
            const FieldTarget field{memory.data(), 0, 256};
            std::vector<std::int64_t> slots(600);
            std::vector<std::uint64_t> seqs(600);
            std::vector<float> weights(600);
            const std::vector<double> priorities(600, 1.0);
            const std::vector<float> leaves(600, 1.0F);
            const SampleTarget target{{&field, 1}, slots.data(), seqs.data(), weights.data()};
            unsigned random = seed + 1;
            while (!stop) {
                ToyLock::hold();
                for (int call = 0; call < 10; ++call) {
                    random = random * 1664525u + 1013904223u;
                    const std::size_t n = (random >> 8) % 2 == 0 ? 8 : 600;
                    switch ((random >> 16) % 10) {
                        case 0: buffer->add(n, {&source, 1}, nullptr, 0); break;
                        case 1: buffer->gather(n, 0.4, target); break;
                        case 2: buffer->gather_uniform(n, target); break;
                        case 3:
                            buffer->gather(n, 0.4, target);
                            buffer->update({slots.data(), n}, {}, {priorities.data(), n},
                                           {leaves.data(), n});
                            break;
                        case 4: (void)buffer->stored_size(); break;
                        case 5: (void)buffer->processes(); break;
                        case 6: (void)buffer->learner_status(); break;
                        case 7:
                            buffer->read_all(
                                false, [&](std::size_t) { return std::span<const FieldTarget>{}; });
                            break;
                        case 8: (void)buffer->total(); break;
                        case 9: buffer->release_learner(); break;
                    }
                }
                CHECK(ToyLock::is_held());
                ToyLock::let_go();
            }
        });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    stop = true;
    for (std::thread& thread : threads) thread.join();
    CHECK(ToyLock::given_up > 0);
    CHECK(ToyLock::taken_with_mutex == 0);
}

TEST_CASE("a child that is forked as a handle is made or destroyed has nothing of it") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    BufferSettings settings{"buffer", {100, 64, true, 0.6, 1e-4}, 1, "", {}};
    settings.segment.directory = scratch.path();
    const SegmentOptions& options = settings.segment;
    const WeightsSettings of_weights{"weights", {8}, 3, "", options};
    const std::uint64_t value = 1;
    const std::byte* const first = reinterpret_cast<const std::byte*>(&value);

    const auto mapped_by_child = [&] {
        ForkedChild child([&](const Channel&) { return mappings_below(scratch.path()); });
        return child.wait();
    };
    int forks = 0;
    int at_most = 0;
    const std::function<void()> fork_one = [&] {
        ++forks;
        CHECK(mapped_by_child() == at_most);
    };
    const WantedLock lock(fork_one);
    const auto open = [&](auto&& call) {
        forks = 0;
        at_most = mappings_below(scratch.path());
        auto handle = call();
        CHECK(forks == 2);
        CHECK(mapped_by_child() == at_most + 1);
        return handle;
    };
    const auto open_and_drop = [&](auto&& call) {
        auto handle = open(call);
        handle.reset();
        CHECK(forks == 4);
    };
    const auto buffer = open([&] { return ReplayBuffer::create(settings); });
    const auto weights = open([&] { return SharedWeights::create(of_weights, {&first, 1}); });
    open_and_drop([&] { return ReplayBuffer::attach("buffer", options); });
    open_and_drop([&] { return SharedWeights::attach("weights", options); });
    const int rows = buffer->data_descriptor();
    open_and_drop([&] { return ReplayBuffer::attach_descriptor(rows, "buffer", options); });
    const int versions = weights->data_descriptor();
    open_and_drop([&] { return SharedWeights::attach_descriptor(versions, "weights", options); });
    set_program_lock({});
}
