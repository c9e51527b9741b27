#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <set>
#include <thread>

#include "ring/own_rows.hpp"

using namespace mpbuffer;

TEST_CASE("positions that were noted are known, those between are not") {
    const auto rows = std::make_unique<OwnRows>();
    CHECK_FALSE(rows->has(0));
    rows->forget_before(100);
    rows->note(10, 5);
    rows->note(15, 1);
    rows->note(20, 2);
    for (std::uint64_t position = 0; position < 30; ++position) {
        const bool noted = (position >= 10 && position < 16) || position == 20 || position == 21;
        CHECK(rows->has(position) == noted);
    }
    rows->forget_before(20);
    CHECK_FALSE(rows->has(15));
    CHECK(rows->has(20));
    rows->forget_before(1000);
    rows->note(22, 3);  // the newest stretch is kept, and grows
    CHECK(rows->has(24));
    CHECK_FALSE(rows->has(25));
}

TEST_CASE("what follows one another without end takes one place") {
    const auto rows = std::make_unique<OwnRows>();
    for (std::uint64_t position = 7; position < 7 + 5 * OwnRows::most; ++position) {
        rows->note(position, 1);
    }
    CHECK(rows->has(7));
    CHECK(rows->has(6 + 5 * OwnRows::most));
    rows->note(1'000'000, 1);
    CHECK(rows->has(1'000'000));
}

TEST_CASE("when it is full the new positions are not known, until old ones are forgotten") {
    const auto rows = std::make_unique<OwnRows>();
    for (std::uint64_t i = 0; i < OwnRows::most + 10; ++i) rows->note(10 * i, 2);
    for (std::uint64_t i = 0; i < OwnRows::most + 10; ++i) {
        CHECK(rows->has(10 * i + 1) == (i < OwnRows::most));
        CHECK_FALSE(rows->has(10 * i + 2));
    }
    rows->forget_before(10 * 5);
    for (std::uint64_t i = OwnRows::most + 10; i < OwnRows::most + 20; ++i) rows->note(10 * i, 2);
    for (std::uint64_t i = 5; i < OwnRows::most; ++i) CHECK(rows->has(10 * i));
    CHECK_FALSE(rows->has(40));
    CHECK(rows->has(10 * (OwnRows::most + 14)));
    CHECK_FALSE(rows->has(10 * (OwnRows::most + 15)));
}

TEST_CASE("random stretches against a set") {
    std::mt19937_64 random(31);
    const auto rows = std::make_unique<OwnRows>();
    std::set<std::uint64_t> known;
    std::uint64_t position = 1;
    std::uint64_t forgotten = 0;
    for (int step = 0; step < 20'000; ++step) {
        position += random() % 3;
        const std::uint64_t count = 1 + random() % 16;
        rows->note(position, count);
        for (std::uint64_t i = 0; i < count; ++i) known.insert(position + i);
        position += count;
        if (random() % 50 == 0) {
            forgotten = std::max(forgotten, position - std::min(position, random() % 100));
            rows->forget_before(forgotten);
            known.erase(known.begin(), known.lower_bound(forgotten));
        }
        const std::uint64_t asked = forgotten + random() % (position - forgotten + 2);
        REQUIRE(rows->has(asked) == known.contains(asked));
    }
}

TEST_CASE("one thread notes while another asks and forgets") {
    const auto rows = std::make_unique<OwnRows>();
    std::atomic<std::uint64_t> noted{0};
    constexpr std::uint64_t last = 200'000;
    std::thread adder([&] {
        for (std::uint64_t i = 1; i <= last; ++i) {
            rows->note(3 * i, 2);  // 3i and 3i + 1, never 3i + 2
            noted.store(i, std::memory_order_release);
            if (i % 64 == 0) std::this_thread::yield();
        }
    });
    std::uint64_t wrong = 0;
    std::uint64_t known = 0;
    for (std::uint64_t i = 0; i < last; i = noted.load(std::memory_order_acquire)) {
        if (i == 0) continue;
        known += rows->has(3 * i) && rows->has(3 * i + 1) ? 1 : 0;
        wrong += rows->has(3 * i + 2) ? 1 : 0;
        if (i > 100) rows->forget_before(3 * (i - 100));
    }
    adder.join();
    CHECK(wrong == 0);
    CHECK(known > 0);
}
