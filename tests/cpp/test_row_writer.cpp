#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "failing_allocation.hpp"
#include "forked_child.hpp"
#include "write/row_writer.hpp"

using namespace mpbuffer;

namespace {

struct Step {
    std::uint64_t id = 0;
    float reward = 0;
    std::uint8_t done = 0;
    std::uint64_t next = 0;
};

constexpr std::size_t stride = 64;

NstepRule rule_of(std::uint64_t steps) {
    NstepRule rule;
    rule.steps = steps;
    rule.gamma = 0.5;
    rule.stride = stride;
    rule.take_fields({{offsetof(Step, id), 8, false},
                      {offsetof(Step, reward), 4, false},
                      {offsetof(Step, done), 1, true},
                      {offsetof(Step, next), 8, true}});
    rule.rewards = {{offsetof(Step, reward), 1, false}};
    rule.done = EpisodeFlag{offsetof(Step, done), 1, false};
    return rule;
}

Step step(std::uint64_t id, std::uint8_t done = 0) { return {id, 1.0F, done, id + 1}; }

bool push(StagedRows& staged, const std::vector<Step>& steps,
          const std::vector<std::int64_t>& environments = {},
          const std::vector<double>& priorities = {}) {
    const FieldSource source{reinterpret_cast<const std::byte*>(steps.data()), sizeof(Step), 0,
                             sizeof(Step)};
    Steps given{steps.size(), {&source, 1}};
    if (!environments.empty()) given.environments = environments.data();
    if (!priorities.empty()) given.priorities = priorities.data();
    return staged.push(given).ended;
}

void end_episode(StagedRows& staged, std::int64_t environment) {
    staged.cut_off({&environment, 1});
}

std::vector<std::uint64_t> ids(const RowBatch& batch) {
    std::vector<std::uint64_t> all;
    for (std::size_t i = 0; i < batch.rows(); ++i) {
        Step row;
        std::memcpy(&row, batch.record(i), sizeof row);
        all.push_back(row.id);
    }
    return all;
}

std::unique_ptr<ReplayBuffer> create(const ScratchDirectory& scratch, std::uint64_t capacity,
                                     bool prioritized = true) {
    SegmentOptions options;
    options.directory = scratch.path();
    const RingShape shape{capacity, sizeof(Step), prioritized, 1.0, 0.0};
    return ReplayBuffer::create({"staged", shape, 7, R"({"fields": []})", options});
}

Step row_in(ReplayBuffer& buffer, std::uint64_t slot) {
    Step row;
    const FieldTarget target{reinterpret_cast<std::byte*>(&row), 0, sizeof row};
    CHECK(buffer.read_slot(slot, 0, {&target, 1}));
    return row;
}

std::vector<float> leaves_of(ReplayBuffer& buffer) {
    buffer.fold();
    return buffer.leaves();
}

using Ids = std::vector<std::uint64_t>;

}  // namespace

TEST_CASE("environments have windows of their own") {
    StagedRows staged(rule_of(2), 3);
    CHECK_FALSE(push(staged, {step(10), step(20), step(30)}));
    CHECK(staged.finished() == 0);
    CHECK(push(staged, {step(21, 1), step(11)}, {1, 0}));
    CHECK(staged.finished() == 3);
    CHECK(push(staged, {step(12), step(13, 1), step(31)}, {0, 0, 2}));
    RowBatch batch = staged.take();
    CHECK(ids(batch) == Ids{20, 21, 10, 11, 12, 13, 30});
    CHECK(staged.counts().staged == 8);
    CHECK(staged.counts().written == 0);
    batch.written = batch.rows();
    staged.give_back(std::move(batch));
    CHECK(staged.counts().steps == 8);
    CHECK(staged.counts().staged == 1);
    CHECK(staged.counts().written == 7);
    end_episode(staged, 0);
    CHECK(staged.finished() == 0);
    end_episode(staged, 2);
    CHECK(ids(staged.take()) == Ids{31});
}

TEST_CASE("of a batch that is given back, unwritten rows come before later ones") {
    StagedRows staged(rule_of(1), 1);
    push(staged, {step(0), step(1), step(2), step(3)});
    RowBatch batch = staged.take();
    push(staged, {step(4), step(5)});
    batch.written = 3;
    staged.give_back(std::move(batch));
    CHECK(staged.counts().staged == 3);
    CHECK(staged.counts().written == 3);
    push(staged, {step(6)});
    CHECK(ids(staged.take()) == Ids{3, 4, 5, 6});
}

TEST_CASE("giving back needs no memory, whatever was staged meanwhile") {
    for (const std::uint64_t later : {0, 1, 3, 200}) {
        CAPTURE(later);
        StagedRows staged(rule_of(2), 2);
        const auto push_in_turn = [&](std::uint64_t first, std::uint64_t count) {
            for (std::uint64_t i = 0; i < count; ++i) push(staged, {step(first + i)}, {0});
        };
        push_in_turn(0, 51);
        RowBatch first = staged.take();
        push_in_turn(51, later);
        RowBatch second = staged.take();
        push_in_turn(51 + later, later);
        end_episode(staged, 0);
        push_in_turn(51 + 2 * later, later);
        first.written = 7;
        CHECK_FALSE(fails_at(1, [&] { staged.give_back(std::move(second)); }));
        CHECK_FALSE(fails_at(1, [&] { staged.give_back(std::move(first)); }));
        end_episode(staged, 0);
        Ids expected;
        for (std::uint64_t id = 7; id < 51 + 3 * later; ++id) expected.push_back(id);
        CHECK(ids(staged.take()) == expected);
        CHECK(staged.counts().written == 7);
    }
}

TEST_CASE("if there is no memory for it, nothing is taken") {
    StagedRows staged(rule_of(1), 1);
    push(staged, {step(0), step(1)});
    bool failed = true;
    for (std::uint64_t n = 1; failed; ++n) {
        RowBatch batch;
        failed = fails_at(n, [&] { batch = staged.take(); });
        if (failed) CHECK(staged.finished() == 2);
        if (!failed) CHECK(ids(batch) == Ids{0, 1});
    }
}

TEST_CASE("dropped rows are gone, those in flight are not") {
    StagedRows staged(rule_of(3), 2);
    push(staged, {step(0), step(10)});
    push(staged, {step(1, 1), step(11)});
    RowBatch batch = staged.take();
    CHECK(batch.rows() == 2);
    push(staged, {step(2, 1), step(12)});
    staged.drop();
    CHECK(staged.counts().staged == 2);
    staged.give_back(std::move(batch));
    CHECK(ids(staged.take()) == Ids{0, 1});
    push(staged, {step(13)}, {1});
    end_episode(staged, 1);
    CHECK(ids(staged.take()) == Ids{13});
}

TEST_CASE("a forked child has nothing of its parent's, whatever its threads were doing") {
    const Watchdog watchdog;
    StagedRows staged(rule_of(3), 1);
    push(staged, {step(0), step(1), step(2), step(3, 1), step(4)});
    RowBatch taken = staged.take();
    std::atomic<bool> inside = false;
    std::atomic<bool> go_on = false;
    std::thread holder([&] {  // of the mutex, most of the time
        while (!go_on) {
            (void)staged.counts();
            inside = true;
        }
    });
    while (!inside) std::this_thread::yield();
    for (int attempt = 0; attempt < 20; ++attempt) {
        ForkedChild child([&](const Channel& parent) {
            staged.give_back(std::move(taken));
            parent.tell(staged.counts().staged + staged.counts().written + staged.counts().steps);
            end_episode(staged, 0);
            parent.tell(staged.finished());
            return 0;
        });
        CHECK(child.hear() == 0);
        CHECK(child.hear() == 0);
        CHECK(child.wait() == 0);
    }
    go_on = true;
    holder.join();
    CHECK(staged.counts().staged == 5);
    staged.give_back(std::move(taken));
    CHECK(staged.finished() == 4);
}

TEST_CASE("threads push, take and give back") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 10'000, false);
    StagedRows staged(rule_of(2), 1);
    std::vector<std::thread> threads;
    for (std::uint64_t number = 0; number < 4; ++number) {
        threads.emplace_back([&, number] {
            for (std::uint64_t i = 0; i < 200; ++i) {
                push(staged, {step(number * 1000 + i, i % 7 == 0)});
                RowBatch batch = staged.take();
                write_rows(*buffer, batch);
                staged.give_back(std::move(batch));
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(buffer->rows_added() == staged.counts().written);
    CHECK(staged.counts().written + staged.counts().staged == 800);
}

TEST_CASE("rows without a priority get the largest until then") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 20);
    StagedRows staged(rule_of(1), 1);
    const double none = not_given;
    push(staged, {step(0), step(1), step(2), step(3), step(4), step(5)}, {},
         {none, 0.25, none, 3.0, none, 1e300});
    RowBatch batch = staged.take();
    CHECK(write_rows(*buffer, batch) == 0);
    CHECK(batch.written == 6);
    CHECK(leaves_of(*buffer)[0] == 1.0F);
    CHECK(leaves_of(*buffer)[1] == 0.25F);
    CHECK(leaves_of(*buffer)[2] == 1.0F);
    CHECK(leaves_of(*buffer)[3] == 3.0F);
    CHECK(leaves_of(*buffer)[4] == 3.0F);
    CHECK(leaves_of(*buffer)[5] == 3.0F);
    CHECK(buffer->max_priority() == 3.0);
    staged.give_back(std::move(batch));
    push(staged, {step(6), step(7)});
    batch = staged.take();
    CHECK(batch.largest == 0);
    CHECK(write_rows(*buffer, batch) == 6);
    CHECK(leaves_of(*buffer)[7] == 3.0F);
}

TEST_CASE("a computed priority that is not finite is none, though its leaf would be") {
    const ScratchDirectory scratch;
    SegmentOptions options;
    options.directory = scratch.path();
    const RingShape shape{8, sizeof(Step), true, 0.0, 0.0};
    const auto buffer = ReplayBuffer::create({"staged", shape, 7, R"({"fields": []})", options});
    StagedRows staged(rule_of(1), 1);
    const double infinity = std::numeric_limits<double>::infinity();
    push(staged, {step(0), step(1)}, {}, {infinity, 2.0});
    RowBatch batch = staged.take();
    write_rows(*buffer, batch);
    CHECK(buffer->max_priority() == 2.0);
    CHECK(leaves_of(*buffer)[0] == 1.0F);
}

TEST_CASE("a batch longer than the buffer") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 4);
    StagedRows staged(rule_of(1), 1);
    std::vector<Step> steps;
    std::vector<double> priorities;
    for (std::uint64_t id = 0; id < 11; ++id) {
        steps.push_back(step(id));
        priorities.push_back(static_cast<double>(id));
    }
    push(staged, steps, {}, priorities);
    RowBatch batch = staged.take();
    CHECK(write_rows(*buffer, batch) == 0);
    CHECK(batch.written == 11);
    for (std::uint64_t slot = 0; slot < 4; ++slot) {
        const std::uint64_t id = slot < 3 ? 8 + slot : 7;
        CHECK(row_in(*buffer, slot).id == id);
        CHECK(row_in(*buffer, slot).next == id + 1);
        CHECK(leaves_of(*buffer)[slot] == static_cast<float>(id));
    }
    CHECK(buffer->max_priority() == 10);
}

TEST_CASE("what was written before an exception is not written again") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 8);
    buffer->close();
    StagedRows staged(rule_of(1), 1);
    push(staged, {step(0), step(1)});
    RowBatch batch = staged.take();
    CHECK_THROWS_AS(write_rows(*buffer, batch), BufferClosed);
    CHECK(batch.written == 0);
    staged.give_back(std::move(batch));
    CHECK(staged.counts().staged == 2);
    CHECK(staged.counts().written == 0);
}
