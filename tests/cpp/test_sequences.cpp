#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "buffer/replay_buffer.hpp"
#include "failing_allocation.hpp"
#include "forked_child.hpp"
#include "format/row_layout.hpp"
#include "ring_on_heap.hpp"
#include "write/staged_sequences.hpp"

using namespace mpbuffer;

namespace {

// A step: its number, a value that follows from it, a state, and whether it ends an episode.
struct Play {
    std::uint64_t id;
    std::uint32_t value;
    std::uint32_t state;
    std::uint8_t done;
};
constexpr std::size_t play_bytes = 17;
constexpr std::size_t length = 6;

std::uint32_t value_of(std::uint64_t id) { return static_cast<std::uint32_t>(id * 2654435761u); }

Play play(std::uint64_t id, bool done = false) {
    return {id, value_of(id), ~value_of(id), static_cast<std::uint8_t>(done)};
}

Schema schema() { return Schema({{"id", 8, 8}, {"value", 4, 4}, {"state", 4, 4}, {"done", 1, 1}}); }

RowLayout layout(std::size_t period) {
    return RowLayout(schema(), SequenceShape{length, period, {false, false, true, false}});
}

SequenceRule rule(std::size_t period, std::size_t burn_in = 0) {
    SequenceRule rule;
    rule.done = EpisodeFlag{16, 1, false};
    rule.length = length;
    rule.period = period;
    rule.burn_in = burn_in;
    rule.stride = play_bytes;
    return rule;
}

void push(StagedSequences& staged, const std::vector<Play>& plays,
          const std::vector<std::int64_t>& environments = {}, const double* td = nullptr) {
    const auto* first = reinterpret_cast<const std::byte*>(plays.data());
    const FieldSource fields[] = {{first, sizeof(Play), 0, 8},
                                  {first + offsetof(Play, value), sizeof(Play), 8, 4},
                                  {first + offsetof(Play, state), sizeof(Play), 12, 4},
                                  {first + offsetof(Play, done), sizeof(Play), 16, 1}};
    Steps steps{plays.size(), fields};
    if (!environments.empty()) steps.environments = environments.data();
    steps.td = td;
    staged.push(steps);
}

using Ids = std::vector<std::uint64_t>;
struct Found {
    Ids ids;
    bool begins_episode;
    bool operator==(const Found&) const = default;
};

std::vector<Found> found(const SequenceBatch& batch) {
    std::vector<Found> all;
    for (const Sequence& sequence : batch.sequences()) {
        Found each{{}, sequence.begins_episode};
        for (const std::shared_ptr<StoredStep>& step : sequence.steps) {
            std::uint64_t id = 0;
            std::memcpy(&id, step->bytes.get(), sizeof id);
            each.ids.push_back(id);
        }
        all.push_back(std::move(each));
    }
    return all;
}

std::unique_ptr<ReplayBuffer> create(const ScratchDirectory& scratch, std::uint64_t capacity,
                                     std::size_t period, std::uint64_t sources) {
    SegmentOptions options;
    options.directory = scratch.path();
    RowLayout rows = layout(period);
    RingShape shape{capacity, rows.stored_bytes(), true, 0.6, 1e-4};
    shape.sources = {{sources, rows.source_bytes()[0]}};
    auto buffer = ReplayBuffer::create({"sequences", shape, 7, R"({"fields": []})", options});
    buffer->describe_rows(std::move(rows));
    return buffer;
}

std::unique_ptr<ReplayBuffer> attach(const ScratchDirectory& scratch, std::size_t period) {
    SegmentOptions options;
    options.directory = scratch.path();
    auto buffer = ReplayBuffer::attach("sequences", options);
    buffer->describe_rows(layout(period));
    return buffer;
}

struct Batch {
    std::size_t n;
    bool time_major;
    Ids ids;
    std::vector<std::uint32_t> values;
    std::vector<std::uint32_t> states;
    std::vector<std::uint8_t> done, mask, first;
    std::vector<std::int64_t> indexes;
    std::vector<std::uint64_t> generations;
    std::vector<float> weights;
    std::vector<FieldTarget> fields;

    Batch(std::size_t n, bool time_major)
        : n(n),
          time_major(time_major),
          ids(n * length, 77),
          values(n * length, 77),
          states(n, 77),
          done(n * length, 77),
          mask(n * length, 77),
          first(n * length, 77),
          indexes(n),
          generations(n),
          weights(n) {
        const std::size_t across = time_major ? n : 0;
        const auto add = [this](auto& array, std::size_t offset, std::size_t bytes,
                                std::size_t rows_across) {
            fields.push_back(
                {reinterpret_cast<std::byte*>(array.data()), offset, bytes, rows_across});
        };
        add(ids, 0, 8 * length, across);
        add(values, 8, 4 * length, across);
        add(states, 12, 4, 0);
        add(done, 16, length, across);
        add(mask, 0, length, across);
        add(first, 0, length, across);
    }
    SampleTarget target() { return {fields, indexes.data(), generations.data(), weights.data()}; }
    std::size_t at(std::size_t i, std::size_t k) const {
        return time_major ? k * n + i : i * length + k;
    }
    Found row(std::size_t i) const {
        Found found{{}, first[at(i, 0)] == 1};
        for (std::size_t k = 0; k < length && mask[at(i, k)] == 1; ++k) {
            found.ids.push_back(ids[at(i, k)]);
        }
        return found;
    }
    // Whether row i is of consecutive steps with their own values, and 0 behind them.
    bool whole(std::size_t i) const {
        const Found found = row(i);
        if (found.ids.empty() || states[i] != ~value_of(found.ids[0])) return false;
        for (std::size_t k = 0; k < length; ++k) {
            const bool there = k < found.ids.size();
            const std::uint64_t id = there ? found.ids[0] + k : 0;
            if (ids[at(i, k)] != id || values[at(i, k)] != value_of(id) ||
                mask[at(i, k)] != there || (!there && done[at(i, k)] != 0) ||
                (k > 0 && first[at(i, k)] != 0)) {
                return false;
            }
        }
        return true;
    }
};

}  // namespace

TEST_CASE("steps become sequences that overlap, and the rest of an episode a shorter one") {
    StagedSequences staged(rule(4, 1), 1);
    std::vector<Play> plays;
    for (std::uint64_t id = 0; id < 13; ++id) plays.push_back(play(id, id == 12));
    push(staged, plays);
    CHECK(found(staged.take()) == std::vector<Found>{{{0, 1, 2, 3, 4, 5}, true},
                                                     {{4, 5, 6, 7, 8, 9}, false},
                                                     {{8, 9, 10, 11, 12}, false}});
    push(staged, {play(20, true), play(30), play(31)});
    CHECK(staged.counts().staged == 3 + 2);
    staged.cut_off_all();
    CHECK(found(staged.take()) == std::vector<Found>{{{30, 31}, true}});
}

TEST_CASE("environments have episodes of their own") {
    StagedSequences staged(rule(6), 3);
    for (std::uint64_t t = 0; t < 6; ++t) {
        push(staged, {play(100 + t), play(200 + t, t == 2), play(300 + t)});
    }
    push(staged, {play(306), play(206)}, {2, 1});
    staged.cut_off(std::vector<std::int64_t>{1});
    CHECK(found(staged.take()) == std::vector<Found>{{{200, 201, 202}, true},
                                                     {{100, 101, 102, 103, 104, 105}, true},
                                                     {{300, 301, 302, 303, 304, 305}, true},
                                                     {{203, 204, 205, 206}, true}});
    staged.drop();
    staged.cut_off_all();
    CHECK(staged.finished() == 0);
}

TEST_CASE("a sequence's priority is of the steps behind the burn-in") {
    StagedSequences staged(rule(6, 2), 1);
    const double td[] = {9, 9, 1, -5, 2, 4, 3};
    push(staged, {play(0), play(1), play(2), play(3), play(4), play(5, true)}, {}, td);
    push(staged, {play(0), play(1), play(2), play(3, true)}, {}, td);
    const SequenceBatch batch = staged.take();
    CHECK(batch.priorities()[0] == doctest::Approx(0.9 * 5 + 0.1 * 3));
    CHECK(batch.priorities()[1] == doctest::Approx(0.9 * 5 + 0.1 * 3));
    StagedSequences unknown(rule(6), 1);
    push(unknown, {play(0), play(1, true)});
    CHECK(std::isnan(unknown.take().priorities()[0]));
}

TEST_CASE("if there is no memory for steps, none is taken") {
    for (const std::uint64_t before : {0, 4, 5}) {
        bool failed = true;
        for (std::uint64_t n = 1; failed; ++n) {
            StagedSequences staged(rule(2), 1);
            for (std::uint64_t id = 0; id < before; ++id) push(staged, {play(id)});
            const auto counts = staged.counts();
            failed = fails_at(n, [&] { push(staged, {play(before), play(before + 1, true)}); });
            if (failed) {
                CHECK(staged.counts().steps == counts.steps);
                CHECK(staged.counts().staged == counts.staged);
                push(staged, {play(before), play(before + 1, true)});
            }
            const std::vector<Found> all = found(staged.take());
            REQUIRE(!all.empty());
            CHECK(all.back().ids.back() == before + 1);
            CHECK(all.front().ids.front() == 0);
        }
    }
}

TEST_CASE("giving sequences back needs no memory, and keeps their order") {
    StagedSequences staged(rule(6), 1);
    const auto play_all = [&](std::uint64_t first, std::uint64_t count) {
        for (std::uint64_t i = 0; i < count; ++i) push(staged, {play(first + i, i + 1 == count)});
    };
    play_all(0, 20);
    SequenceBatch batch = staged.take();
    REQUIRE(batch.rows() == 4);
    play_all(100, 20);
    batch.written = 3;
    CHECK_FALSE(fails_at(1, [&] { staged.give_back(std::move(batch)); }));
    const std::vector<Found> left = found(staged.take());
    CHECK(left.size() == 5);
    CHECK(left[0].ids == Ids{18, 19});
    CHECK(left[1].ids[0] == 100);
    CHECK(staged.counts().written == 3);
}

TEST_CASE("sequences come back with their steps, in both layouts") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 20, 2, 400);
    StagedSequences staged(rule(2), 1);
    for (std::uint64_t id = 0; id < 15; ++id) push(staged, {play(id, id == 14)});
    staged.write(*buffer, {}, {});
    CHECK(buffer->stored_size() == 6);
    CHECK(buffer->rows_added() == 6);
    for (const bool time_major : {false, true}) {
        Batch batch(32, time_major);
        buffer->gather(32, Weighting(0.4, WeightNorm::buffer), batch.target());
        for (std::size_t i = 0; i < 32; ++i) {
            CHECK(batch.whole(i));
            CHECK(batch.row(i).begins_episode == (batch.row(i).ids[0] == 0));
        }
    }
}

TEST_CASE("of a small ring of steps, early sequences are gone and no other is wrong") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 500, 2, 96);
    StagedSequences staged(rule(2), 1);
    for (std::uint64_t id = 0; id < 2000; ++id) {
        push(staged, {play(id)});
        staged.write(*buffer, {}, {});
    }
    const std::uint64_t size = buffer->stored_size();
    CHECK(size < 48);
    CHECK(size > 30);
    const auto slots = buffer->filled_slots(false);
    REQUIRE(slots.size() == size);
    Batch all(size, false);
    CHECK(buffer->read_slots(slots, all.fields) == size);
    for (std::size_t i = 0; i < size; ++i) CHECK(all.whole(i));
}

TEST_CASE("a killed explorer leaves whole sequences") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 50, 3, 200);
    for (int round = 0; round < 20; ++round) {
        const ForkedChild child([&](const Channel&) -> int {
            const auto own = attach(scratch, 3);
            StagedSequences staged(rule(3), 1);
            for (std::uint64_t id = 0;; ++id) {
                push(staged, {play(id)});
                staged.write(*own, {}, {});
            }
        });
        while (buffer->rows_added() < static_cast<std::uint64_t>(100 * (round + 1))) {
            std::this_thread::yield();
        }
        child.kill_to_zombie();
        Batch batch(32, true);
        buffer->gather(32, Weighting(0.4, WeightNorm::buffer), batch.target());
        for (std::size_t i = 0; i < 32; ++i) CHECK(batch.whole(i));
    }
}

TEST_CASE("threads of several handles add and draw sequences, none mixed") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 60, 2, 200);
    StagedSequences first_steps(rule(2), 1);
    push(first_steps, {play(1), play(2, true)});
    first_steps.write(*buffer, {}, {});
    constexpr std::uint64_t each = 40'000 / sanitizer_slowdown;
    std::vector<std::thread> threads;
    for (std::uint64_t explorer = 1; explorer <= 2; ++explorer) {
        threads.emplace_back([&scratch, explorer] {
            const auto own = attach(scratch, 2);
            StagedSequences staged(rule(2), 1);
            std::mt19937_64 random(explorer);
            for (std::uint64_t i = 0; i < each; ++i) {
                push(staged, {play((explorer << 32) + i, random() % 20 == 0)});
                staged.write(*own, {}, {});
            }
        });
    }
    Batch batch(32, false);
    std::uint64_t wrong = 0;
    for (int times = 0; times < 2000 / sanitizer_slowdown; ++times) {
        buffer->gather(32, Weighting(0.4, WeightNorm::buffer), batch.target());
        for (std::size_t i = 0; i < 32; ++i) wrong += !batch.whole(i);
        buffer->gather_uniform(32, batch.target());
        for (std::size_t i = 0; i < 32; ++i) wrong += !batch.whole(i);
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
}

TEST_CASE("a layout says why there are no such sequences") {
    const std::vector<bool> of_all(4, false);
    CHECK_THROWS_AS(RowLayout(schema(), SequenceShape{0, 1, of_all}), InvalidArgument);
    CHECK_THROWS_AS(RowLayout(schema(), SequenceShape{5, 6, of_all}), InvalidArgument);
    CHECK_THROWS_AS(RowLayout(schema(), SequenceShape{5, 5, {}}), InvalidArgument);
    CHECK_THROWS_AS(RowLayout(schema(), SequenceShape{65537, 1, of_all}), InvalidArgument);
    CHECK(layout(2).given_bytes() == 6 * 13 + 4 + 2 * 6);
    CHECK(layout(2).stored_bytes() == 12 + 4 * 6);
}

TEST_CASE("a buffer of sequences is not attached as one of others") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 20, 2, 400);
    SegmentOptions options;
    options.directory = scratch.path();
    const auto other = ReplayBuffer::attach("sequences", options);
    CHECK_THROWS_AS(other->describe_rows(RowLayout(schema())), SegmentMismatch);
    const SequenceShape longer{length + 1, 2, {false, false, true, false}};
    CHECK_THROWS_AS(other->describe_rows(RowLayout(schema(), longer)), SegmentMismatch);
}
