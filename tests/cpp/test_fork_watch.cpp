#include <doctest/doctest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "forked_child.hpp"
#include "os/fork_watch.hpp"

using namespace mpbuffer;

namespace {

class Watched final : public ForkWatched {
  public:
    explicit Watched(bool stays = true) : stays_(stays) { watch(); }
    ~Watched() {
        if (watching_) unwatch();
    }
    void stop_watching() {
        unwatch();
        watching_ = false;
    }
    int notified = 0;

  private:
    void after_fork_in_child() noexcept override {
        ++notified;
        if (!stays_) unwatch_in_child();
    }
    bool stays_;
    bool watching_ = true;
};

}  // namespace

TEST_CASE("the child of a fork is told, once, before anything else; the parent is not") {
    Watched watched;
    const std::uint64_t before = fork_generation();
    ForkedChild child([&](const Channel&) {
        if (watched.notified != 1) return 1;
        if (fork_generation() == before) return 2;
        return 0;
    });
    CHECK(child.wait() == 0);
    CHECK(watched.notified == 0);
    CHECK(fork_generation() == before);
}

TEST_CASE("every watched object is told, wherever in the list; those taken out are not") {
    std::vector<std::unique_ptr<Watched>> all;
    for (int i = 0; i < 6; ++i) all.push_back(std::make_unique<Watched>());
    all[0]->stop_watching();  // the oldest, one in the middle, the newest
    all[3]->stop_watching();
    all[5]->stop_watching();
    const std::vector<int> expected = {0, 1, 1, 0, 1, 0};
    ForkedChild child([&](const Channel&) {
        for (std::size_t i = 0; i < all.size(); ++i) {
            if (all[i]->notified != expected[i]) return 1 + static_cast<int>(i);
        }
        return 0;
    });
    CHECK(child.wait() == 0);
    all.erase(all.begin() + 1);
    ForkedChild another([&](const Channel&) { return all[1]->notified == 1 ? 0 : 1; });
    CHECK(another.wait() == 0);
}

TEST_CASE("a grandchild is told again, and has a generation of its own") {
    Watched watched;
    const std::uint64_t parent = fork_generation();
    ForkedChild child([&](const Channel&) {
        const std::uint64_t mine = fork_generation();
        ForkedChild grandchild([&](const Channel&) {
            if (watched.notified != 2) return 1;
            return fork_generation() != mine && fork_generation() != parent ? 0 : 2;
        });
        if (grandchild.wait() != 0) return 3;
        return fork_generation() == mine && watched.notified == 1 ? 0 : 4;
    });
    CHECK(child.wait() == 0);
}

TEST_CASE("an object that asks for it is no longer watched in the child") {
    Watched first;
    Watched leaving(false);
    Watched last;
    for (int round = 0; round < 2; ++round) {
        ForkedChild child([&](const Channel&) {
            if (first.notified != 1 || leaving.notified != 1 || last.notified != 1) return 1;
            ForkedChild grandchild([&](const Channel&) {
                leaving.stop_watching();
                return first.notified == 2 && leaving.notified == 1 && last.notified == 2 ? 0 : 2;
            });
            return grandchild.wait();
        });
        CHECK(child.wait() == 0);
    }
}

TEST_CASE("pauses nest, and watching goes on under them; forks wait for the last one's end") {
    const Watchdog watchdog;
    std::atomic<bool> forked{false};
    std::thread forking;
    {
        const ForkPause pause;
        Watched watched;
        forking = std::thread([&forked] {
            ForkedChild child([](const Channel&) { return 0; });
            forked = true;
            child.wait();
        });
        {
            const ForkPause inner;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        CHECK_FALSE(forked);
    }
    CHECK(comes_true([&forked] { return forked.load(); }));
    forking.join();
    ForkedChild child([](const Channel&) {
        const ForkPause pause;
        const Watched own;
        return 0;
    });
    CHECK(child.wait() == 0);
}

TEST_CASE("a child may watch, unwatch and fork itself") {
    Watched watched;
    ForkedChild child([&](const Channel&) {
        Watched own;
        ForkedChild grandchild([&](const Channel&) { return own.notified == 1 ? 0 : 1; });
        if (own.notified != 0) return 2;
        own.stop_watching();
        watched.stop_watching();
        return grandchild.wait();
    });
    CHECK(child.wait() == 0);
}

TEST_CASE("forks while other threads watch and unwatch: no child hangs, none is told nonsense") {
    const Watchdog watchdog;
    std::atomic<bool> stop{false};
    Watched steady;
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
        threads.emplace_back([&stop] {
            while (!stop) {
                Watched first;
                Watched second;
                first.stop_watching();
                std::this_thread::yield();
            }
        });
    }
    for (int i = 0; i < 40; ++i) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(10);
            // The child can go on to use the list.
            Watched own;
            own.stop_watching();
            _exit(steady.notified == 1 ? 0 : 1);
        }
        REQUIRE(child > 0);
        int status = -1;
        REQUIRE(waitpid(child, &status, 0) == child);
        REQUIRE(WIFEXITED(status));
        REQUIRE(WEXITSTATUS(status) == 0);
    }
    stop = true;
    for (std::thread& thread : threads) thread.join();
    CHECK(steady.notified == 0);
}
