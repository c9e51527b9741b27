#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "failing_allocation.hpp"
#include "forked_child.hpp"
#include "ring_on_heap.hpp"
#include "select/prioritized.hpp"

using namespace mpbuffer;

namespace {

constexpr double alpha = 0.6;
constexpr double eps = 1e-4;

// A row's leaf follows from its id, and so does the leaf that an update of it gives.
float leaf_of_row(std::uint64_t id) { return 0.5F + static_cast<float>(id % 9973); }
float updated_leaf_of_row(std::uint64_t id) { return 20'000.25F + static_cast<float>(id % 9973); }

struct HeapLearner {
    HeapRing heap;
    std::unique_ptr<float, HeapRing::FreeDeleter> leaves;
    std::unique_ptr<SharedRoleLine> line = std::make_unique<SharedRoleLine>();
    Role role{RoleKind::learner, line.get(), {}, "heap", {}};
    std::unique_ptr<LearnerMemory> memory;
    std::optional<Learner> learner;
    PriorityRule rule;

    explicit HeapLearner(std::uint64_t capacity, PriorityRule rule_ = {alpha, eps})
        : heap(capacity),
          leaves(
              static_cast<float*>(std::aligned_alloc(64, padded_leaves(capacity) * sizeof(float)))),
          rule(rule_) {
        std::fill_n(leaves.get(), padded_leaves(capacity), 0.0F);
        take_over();
    }
    // A new holder of the role, as after a crash of the one before.
    void take_over() {
        learner.reset();
        memory = std::make_unique<LearnerMemory>();
        take_over_again();
    }
    // The same holder, who gave the role up in between.
    void take_over_again() {
        learner.emplace(heap.ring, leaves.get(), role, rule, sizeof(std::uint64_t), *memory);
    }
    // A writer of the learner's own handle.
    RingWriter own(HeapWriter& writer) const {
        RingWriter mine = writer.writer();
        mine.own_rows = &memory->own_rows;
        return mine;
    }
    std::uint64_t capacity() const { return heap.ring.capacity(); }
    // Whether the leaf in the tree is that of the row in the slot.
    bool has_folded(std::uint64_t slot) const {
        return heap.ring.head(slot).lap == heap.seq_in(slot) / capacity();
    }
    void name_holder(unsigned number) { role.name_holder(number, learner->figures()); }
    LearnerFigures figures() const {
        const auto published = line->load();
        REQUIRE(published);
        return published->figures;
    }

    double sum_of_leaves() const {
        double sum = 0;
        for (std::uint64_t slot = 0; slot < capacity(); ++slot) sum += double{leaves.get()[slot]};
        return sum;
    }
    void require_tree_is_sum_of_leaves() const {
        REQUIRE(learner->total() == doctest::Approx(sum_of_leaves()).epsilon(1e-13));
        float least = std::numeric_limits<float>::infinity();
        std::uint64_t sampleable = 0;
        for (std::uint64_t slot = 0; slot < capacity(); ++slot) {
            const float leaf = leaves.get()[slot];
            if (leaf > 0) {
                least = std::min(least, leaf);
                ++sampleable;
            }
        }
        const LearnerFigures published = figures();
        REQUIRE(published.total == learner->total());
        REQUIRE(published.least_leaf == double{least});
        REQUIRE(published.sampleable == sampleable);
    }
};

struct Batch {
    std::vector<std::uint64_t> ids;
    std::vector<std::int64_t> indexes;
    std::vector<std::uint64_t> generations;
    std::vector<float> weights;
    std::vector<FieldTarget> fields;
    explicit Batch(std::size_t count)
        : ids(count), indexes(count), generations(count), weights(count) {
        fields.push_back({reinterpret_cast<std::byte*>(ids.data()), 0, sizeof(std::uint64_t)});
    }
    SampleTarget target() { return {fields, indexes.data(), generations.data(), weights.data()}; }
};

void sample(HeapLearner& all, std::size_t count, double beta, Generator& generator,
            const SampleTarget& target) {
    Draws draws;
    all.learner->draw(count, generator, draws);
    copy_rows(all.heap.ring, sizeof(std::uint64_t), draws, target);
    all.learner->finish(beta, generator, draws, target);
}

AddOutcome add_rows(HeapRing& heap, const RingWriter& writer, std::uint64_t count,
                    std::uint64_t& next_id) {
    return heap.ring.add(
        count, writer, nobody_is_dead, [&next_id](std::uint64_t, std::byte* record) {
            const std::uint64_t id = ++next_id;
            store_to_record(record, reinterpret_cast<const std::byte*>(&id), sizeof id);
            return leaf_of_row(id);
        });
}

AddOutcome add_rows(HeapRing& heap, HeapWriter& writer, std::uint64_t count,
                    std::uint64_t& next_id) {
    return add_rows(heap, writer.writer(), count, next_id);
}

std::uint64_t claim_next(HeapRing& heap, HeapWriter& writer) {
    bool fresh = false;
    const std::uint64_t seq = take_position(heap);
    REQUIRE(heap.ring.claim(seq % heap.ring.capacity(), seq, heap.ring.clear_before(),
                            writer.writer(), nobody_is_dead, fresh));
    return seq;
}

void commit_claim(HeapRing& heap, std::uint64_t seq, std::uint64_t id) {
    const std::uint64_t slot = seq % heap.ring.capacity();
    store_to_record(heap.ring.record(slot), reinterpret_cast<const std::byte*>(&id), sizeof id);
    heap.ring.commit(slot, seq, leaf_of_row(id));
}

std::uint64_t update_one(Learner& learner, std::uint64_t slot, std::uint64_t generation, float leaf,
                         double priority = 1.0) {
    const std::int64_t slots[] = {static_cast<std::int64_t>(slot)};
    const std::uint64_t generations[] = {generation};
    const double priorities[] = {priority};
    const float leaves[] = {leaf};
    if (generation == 0) return learner.update(slots, {}, priorities, leaves);
    return learner.update(slots, generations, priorities, leaves);
}

// Every complete row and no other can be drawn, by the leaf that belongs to it.
void require_rows_folded(const HeapLearner& all) {
    const std::uint64_t cleared = all.heap.ring.clear_before();
    for (std::uint64_t slot = 0; slot < all.capacity(); ++slot) {
        CAPTURE(slot);
        const float leaf = all.leaves.get()[slot];
        if (all.heap.committed(slot) && all.heap.seq_in(slot) >= cleared) {
            const std::uint64_t id = row_in(all.heap, slot);
            REQUIRE(all.has_folded(slot));
            REQUIRE((leaf == leaf_of_row(id) || leaf == updated_leaf_of_row(id)));
        } else {
            REQUIRE(leaf == 0);
        }
    }
    all.require_tree_is_sum_of_leaves();
}

}  // namespace

TEST_CASE("an empty ring has nothing to draw") {
    for (const std::uint64_t capacity : {1, 100}) {
        HeapLearner all(capacity);
        Generator generator;
        Batch batch(1);
        CHECK_THROWS_WITH_AS(sample(all, 1, 0.4, generator, batch.target()),
                             "no rows have been added", EmptyBuffer);
        CHECK(all.learner->total() == 0);
    }
}

TEST_CASE("fold takes over what was added, in steps shorter and longer than a lap") {
    std::mt19937_64 random(20);
    for (const std::uint64_t capacity : {1, 2, 5, 16, 17, 100, 129}) {
        CAPTURE(capacity);
        HeapLearner all(capacity);
        HeapWriter writer(1);
        std::uint64_t id = 0;
        for (int round = 0; round < 100; ++round) {
            const std::uint64_t longest = round % 5 == 0 ? 4 * capacity : capacity;
            add_rows(all.heap, writer, 1 + random() % longest, id);
            all.learner->fold();
            require_rows_folded(all);
            CHECK(all.figures().folded == all.heap.ring.position());
            CHECK(all.figures().sampleable == std::min(capacity, id));
        }
    }
}

TEST_CASE("a hole is never given up: its row is found whenever it is committed") {
    HeapLearner all(8);
    HeapWriter writer(1);
    HeapWriter sleeper(2);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 8, id);
    all.learner->fold();
    const std::uint64_t held = claim_next(all.heap, sleeper);
    add_rows(all.heap, writer, 3, id);
    all.learner->fold();
    require_rows_folded(all);
    CHECK(all.leaves.get()[0] == 0);
    CHECK(all.figures().sampleable == 7);
    for (int i = 0; i < 5; ++i) all.learner->fold();
    add_rows(all.heap, writer, 50, id);  // several laps round the held slot
    all.learner->fold();
    require_rows_folded(all);
    commit_claim(all.heap, held, 777);
    all.learner->fold();
    require_rows_folded(all);
    CHECK(all.leaves.get()[0] == leaf_of_row(777));
    CHECK(all.figures().sampleable == 8);
}

TEST_CASE("a position that nobody claims leaves the old row to be drawn") {
    HeapLearner all(4);
    HeapWriter writer(1);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 4, id);
    all.learner->fold();
    all.heap.counters->cursor.fetch_add(2);  // their owner dies before the claims
    all.learner->fold();
    require_rows_folded(all);
    CHECK(all.figures().sampleable == 4);
    add_rows(all.heap, writer, 4, id);
    all.learner->fold();
    require_rows_folded(all);
}

TEST_CASE("a claim that is taken over is found under its later seq") {
    HeapLearner all(3);
    HeapWriter writer(1);
    HeapWriter dead(2);
    std::uint64_t id = 0;
    claim_next(all.heap, dead);
    add_rows(all.heap, writer, 2, id);
    all.learner->fold();
    CHECK(all.figures().sampleable == 2);
    all.heap.ring.add(1, writer.writer(), everybody_is_dead, [&](std::uint64_t, std::byte* record) {
        const std::uint64_t row = ++id;
        store_to_record(record, reinterpret_cast<const std::byte*>(&row), sizeof row);
        return leaf_of_row(row);
    });
    CHECK(writer.steals == 1);
    all.learner->fold();
    require_rows_folded(all);
    CHECK(all.figures().sampleable == 3);
}

TEST_CASE("a leaf that no writer can have meant becomes that of the largest priority") {
    HeapLearner all(1);
    HeapWriter writer(1);
    all.heap.ring.raise_max_priority(50.0);
    const float expected = PriorityRule{alpha, eps}.leaf(50.0);
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float bad :
         {0.0F, -1.0F, 1e-40F, infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
        add_row(all.heap, writer, 1, bad);
        all.learner->fold();
        CHECK(all.leaves.get()[0] == expected);
        CHECK(all.learner->total() == double{expected});
    }
    add_row(all.heap, writer, 1, std::numeric_limits<float>::min());
    all.learner->fold();
    CHECK(all.leaves.get()[0] == std::numeric_limits<float>::min());
}

TEST_CASE("a row of leaf 0 is in the tree, and never drawn") {
    HeapLearner all(6, {alpha, 0.0});
    HeapWriter writer(1);
    for (std::uint64_t row = 1; row <= 5; ++row) {
        add_row(all.heap, writer, row, row % 2 == 0 ? static_cast<float>(row) : 0.0F);
    }
    Generator generator;
    Batch batch(64);
    sample(all, 64, 1.0, generator, batch.target());
    for (std::size_t i = 0; i < 64; ++i) {
        CHECK((batch.ids[i] == 2 || batch.ids[i] == 4));
        CHECK(batch.weights[i] == (batch.ids[i] == 2 ? 1.0F : 0.5F));
    }
    CHECK(all.figures().sampleable == 2);
    CHECK(all.figures().least_leaf == 2);
    CHECK(all.learner->total() == 6);
    CHECK(all.learner->generation(0) == 6);
    CHECK(all.learner->generation(5) == 0);
    // It takes a new leaf, by slot and by generation, and gives it up again.
    CHECK(update_one(*all.learner, 0, 0, 3.0F) == 0);
    CHECK(update_one(*all.learner, 2, 8, 1.0F) == 0);
    CHECK(update_one(*all.learner, 1, 0, 0.0F) == 0);
    CHECK(update_one(*all.learner, 5, 0, 1.0F) == 1);
    CHECK(all.learner->total() == 8);
    all.require_tree_is_sum_of_leaves();
    // A successor finds the same.
    all.take_over();
    all.name_holder(1);
    CHECK(all.learner->total() == 8);
    all.require_tree_is_sum_of_leaves();
    CHECK(update_one(*all.learner, 1, 0, 5.0F) == 0);
    CHECK(all.learner->total() == 13);
}

TEST_CASE("where every row has leaf 0 it is said, and the first one above it can be drawn") {
    HeapLearner all(4, {alpha, 0.0});
    HeapWriter writer(1);
    Generator generator;
    Batch batch(16);
    add_row(all.heap, writer, 1, 0.0F);
    add_row(all.heap, writer, 2, 0.0F);
    const char* const why = "every row has priority 0 and leaf 0, and is never drawn";
    CHECK_THROWS_WITH_AS(sample(all, 1, 0.4, generator, batch.target()), why, EmptyBuffer);
    HeapWriter sleeper(2);
    const std::uint64_t held = claim_next(all.heap, sleeper);
    CHECK_THROWS_WITH_AS(sample(all, 1, 0.4, generator, batch.target()), why, EmptyBuffer);
    commit_claim(all.heap, held, 7);
    sample(all, 16, 0.4, generator, batch.target());
    for (const std::uint64_t row : batch.ids) CHECK(row == 7);
    all.heap.ring.clear();
    CHECK_THROWS_WITH_AS(sample(all, 1, 0.4, generator, batch.target()),
                         "no rows have been added since it was cleared", EmptyBuffer);
}

TEST_CASE("a row of leaf 0 that came where a drawn one was does not take its place") {
    HeapLearner all(2, {alpha, 0.0});
    HeapWriter writer(1);
    add_row(all.heap, writer, 1, 1.0F);
    add_row(all.heap, writer, 2, 1.0F);
    Generator generator;
    Batch batch(8);
    Draws draws;
    all.learner->draw(8, generator, draws);
    add_row(all.heap, writer, 3, 0.0F);
    copy_rows(all.heap.ring, sizeof(std::uint64_t), draws, batch.target());
    CHECK(draws.missed.size() == 4);
    all.learner->finish(0.4, generator, draws, batch.target());
    CHECK(draws.redraws == 4);
    for (const std::uint64_t row : batch.ids) CHECK(row == 2);
    all.learner->draw(8, generator, draws);
    add_row(all.heap, writer, 4, 0.0F);
    copy_rows(all.heap.ring, sizeof(std::uint64_t), draws, batch.target());
    CHECK_THROWS_AS(all.learner->finish(0.4, generator, draws, batch.target()), EmptyBuffer);
}

TEST_CASE("random leaves, 0 among them, against a plain model") {
    std::mt19937_64 random(22);
    for (int run = 0; run < 60 / sanitizer_slowdown; ++run) {
        CAPTURE(run);
        const std::uint64_t capacity = 1 + random() % 20;
        HeapLearner all(capacity, {alpha, 0.0});
        HeapWriter writer(1);
        std::vector<float> expected(capacity, 0.0F);
        Generator generator(run, 1, 1);
        std::uint64_t id = 0;
        const auto any_leaf = [&] { return random() % 2 == 0 ? 0.0F : 1.0F + float(random() % 9); };
        for (int step = 0; step < 200; ++step) {
            const float leaf = any_leaf();
            const std::uint64_t slot = random() % capacity;
            switch (random() % 6) {
                case 0:
                case 1: expected[add_row(all.heap, writer, ++id, leaf).first_slot] = leaf; break;
                case 2:
                    all.learner->fold();
                    if (all.heap.committed(slot) && all.heap.seq_in(slot) != 0 &&
                        all.heap.seq_in(slot) >= all.heap.ring.clear_before()) {
                        REQUIRE(all.learner->generation(slot) == all.heap.seq_in(slot));
                        REQUIRE(update_one(*all.learner, slot, all.heap.seq_in(slot), leaf) == 0);
                        expected[slot] = leaf;
                    }
                    break;
                case 3: all.take_over(); break;
                case 4:
                    if (random() % 8 != 0) break;
                    all.heap.ring.clear();
                    std::fill(expected.begin(), expected.end(), 0.0F);
                    break;
                default: {
                    Batch batch(5);
                    try {
                        sample(all, 5, 1.0, generator, batch.target());
                    } catch (const EmptyBuffer&) {
                        for (const float none : expected) REQUIRE(none == 0);
                        break;
                    }
                    for (const std::int64_t drawn : batch.indexes) {
                        REQUIRE(expected[static_cast<std::size_t>(drawn)] > 0);
                    }
                    break;
                }
            }
            all.learner->fold();
            REQUIRE(std::equal(expected.begin(), expected.end(), all.leaves.get()));
            all.require_tree_is_sum_of_leaves();
        }
    }
}

TEST_CASE("an own row is updated before it is folded, another's is not") {
    HeapLearner all(8);
    HeapWriter mine(1);
    HeapWriter other(2);
    std::uint64_t id = 0;
    add_rows(all.heap, all.own(mine), 2, id);
    add_rows(all.heap, other, 1, id);
    add_rows(all.heap, all.own(mine), 1, id);
    CHECK(all.learner->generation(1) == 9);
    CHECK(all.learner->generation(2) == 0);
    const std::int64_t slots[] = {1, 3, 2, 1, 7};
    const double priorities[] = {5, 4, 3, 2, 1};
    const float leaves[] = {5, 4, 3, 2, 1};
    CHECK(all.learner->update(slots, {}, priorities, leaves) == 2);
    CHECK(all.leaves.get()[1] == 2);
    CHECK(all.leaves.get()[3] == 4);
    CHECK(all.learner->total() == 6);
    CHECK(all.figures().sampleable == 2);
    CHECK(all.heap.ring.max_priority() == 5);
    all.learner->fold();
    CHECK(all.leaves.get()[0] == leaf_of_row(1));
    CHECK(all.leaves.get()[1] == 2);
    CHECK(all.leaves.get()[2] == leaf_of_row(3));
    CHECK(all.leaves.get()[3] == 4);
    all.require_tree_is_sum_of_leaves();
    all.take_over();
    CHECK(all.leaves.get()[1] == 2);
}

TEST_CASE("an own row that is overwritten by another's takes nothing, an own newer one does") {
    HeapLearner all(4);
    HeapWriter mine(1);
    HeapWriter other(2);
    std::uint64_t id = 0;
    add_rows(all.heap, all.own(mine), 2, id);
    const std::uint64_t generation = all.learner->generation(0);
    all.heap.counters->cursor.fetch_add(2);
    add_rows(all.heap, other, 1, id);
    CHECK(update_one(*all.learner, 0, 0, 5.0F) == 1);
    CHECK(update_one(*all.learner, 0, generation, 5.0F) == 1);
    CHECK(update_one(*all.learner, 1, 0, 6.0F) == 0);
    claim_next(all.heap, other);
    CHECK(update_one(*all.learner, 1, 0, 7.0F) == 1);  // it is being overwritten
    all.heap.counters->cursor.fetch_add(2);
    add_rows(all.heap, all.own(mine), 1, id);
    CHECK(update_one(*all.learner, 0, 0, 8.0F) == 0);
    all.learner->fold();
    CHECK(all.leaves.get()[0] == 8);
    CHECK(all.leaves.get()[1] == 0);
}

TEST_CASE("after an overwritten row was sampled its slot never means an own row not yet folded") {
    for (const bool role_given_up : {false, true}) {
        CAPTURE(role_given_up);
        HeapLearner all(4);
        HeapWriter mine(1);
        std::uint64_t id = 0;
        add_rows(all.heap, all.own(mine), 4, id);
        Generator generator;
        Batch batch(64);
        sample(all, 64, 0.4, generator, batch.target());
        if (role_given_up) all.take_over_again();
        const std::uint64_t sampled = all.learner->generation(1);
        add_rows(all.heap, all.own(mine), 4, id);
        CHECK(all.learner->generation(1) == sampled);
        CHECK(update_one(*all.learner, 1, 0, 5.0F) == 1);
        CHECK(update_one(*all.learner, 1, sampled, 5.0F) == 1);
        CHECK(update_one(*all.learner, 1, all.heap.seq_in(1), 5.0F) == 1);
        all.learner->fold();
        CHECK(update_one(*all.learner, 1, 0, 5.0F) == 1);
        require_rows_folded(all);
    }
}

TEST_CASE("own rows of before a clear take nothing, those after it do") {
    HeapLearner all(4);
    HeapWriter mine(1);
    std::uint64_t id = 0;
    add_rows(all.heap, all.own(mine), 3, id);
    all.heap.ring.clear();
    CHECK(all.learner->generation(0) == 0);
    CHECK(update_one(*all.learner, 0, 0, 5.0F) == 1);
    add_rows(all.heap, all.own(mine), 1, id);
    CHECK(update_one(*all.learner, 0, 0, 6.0F) == 0);
    CHECK(update_one(*all.learner, 1, 0, 6.0F) == 1);
    all.learner->fold();
    CHECK(all.leaves.get()[0] == 6);
    CHECK(all.figures().sampleable == 1);
    CHECK(all.learner->total() == 6);
}

TEST_CASE("an own row that a fold found open is known once its add has noted it") {
    HeapLearner all(4);
    HeapWriter mine(1);
    const std::uint64_t held = claim_next(all.heap, mine);
    all.learner->fold();
    commit_claim(all.heap, held, 9);
    CHECK(update_one(*all.learner, 0, 0, 5.0F) == 1);
    all.memory->own_rows.note(held, 1);  // as add() does after its commits
    CHECK(update_one(*all.learner, 0, 0, 5.0F) == 0);
    all.learner->fold();
    CHECK(all.leaves.get()[0] == 5);
    CHECK(all.figures().sampleable == 1);
    all.require_tree_is_sum_of_leaves();
}

TEST_CASE("a learner that runs out of memory in any call goes on from there") {
    // Each allocation of the calls in turn fails; what was left undone is done by the next call.
    bool failed = true;
    std::uint64_t failures = 0;
    for (std::uint64_t n = 1; failed; ++n) {
        CAPTURE(n);
        HeapLearner all(40);
        HeapWriter writer(1);
        HeapWriter sleeper(2);
        std::uint64_t id = 0;
        Generator generator(3, 1, 1);
        Batch batch(32);
        Draws draws;
        std::vector<std::uint64_t> held;
        add_rows(all.heap, writer, 25, id);
        all.learner->fold();
        for (int i = 0; i < 20; ++i) {  // holes, some of them rows that are there no more
            if (i % 2 == 0) {
                held.push_back(claim_next(all.heap, sleeper));
            } else {
                add_rows(all.heap, writer, 1, id);
            }
        }
        failed = fails_at(n, [&] {
            all.learner->fold();
            for (const std::uint64_t seq : held) commit_claim(all.heap, seq, ++id);
            held.clear();
            all.learner->draw(32, generator, draws);
            add_rows(all.heap, writer, 30, id);
            copy_rows(all.heap.ring, sizeof(std::uint64_t), draws, batch.target());
            all.learner->finish(0.4, generator, draws, batch.target());
            const std::vector<double> priorities(32, 1.0);
            std::vector<float> leaves;
            for (const std::uint64_t row : batch.ids) leaves.push_back(updated_leaf_of_row(row));
            all.learner->update(batch.indexes, batch.generations, priorities, leaves);
        });
        failures += failed ? 1 : 0;
        for (const std::uint64_t seq : held) commit_claim(all.heap, seq, ++id);
        all.learner->fold();
        require_rows_folded(all);
        CHECK(all.figures().sampleable == 40);
    }
    CHECK(failures > 20);
}

TEST_CASE("a sample: rows, slots, seqs and weights belong together") {
    HeapLearner all(100);
    HeapWriter writer(1);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 130, id);
    Generator generator(1, 2, 3);
    Batch batch(512);
    sample(all, 512, 0.4, generator, batch.target());
    float least = std::numeric_limits<float>::infinity();
    for (std::uint64_t slot = 0; slot < 100; ++slot)
        least = std::min(least, all.leaves.get()[slot]);
    for (std::size_t i = 0; i < 512; ++i) {
        const auto slot = static_cast<std::uint64_t>(batch.indexes[i]);
        REQUIRE(slot < 100);
        REQUIRE(row_in(all.heap, slot) == batch.ids[i]);
        REQUIRE(batch.generations[i] == all.heap.seq_in(slot));
        const double ratio = double{leaf_of_row(batch.ids[i])} / double{least};
        REQUIRE(double{batch.weights[i]} == doctest::Approx(std::pow(ratio, -0.4)).epsilon(1e-5));
    }
    CHECK(all.figures().draws == 512);
    CHECK(all.figures().nodes_visited > 0);
}

TEST_CASE("draws follow the leaves") {
    HeapLearner all(50);
    HeapWriter writer(1);
    for (std::uint64_t row = 1; row <= 50; ++row) {
        add_row(all.heap, writer, row, static_cast<float>(row * row));
    }
    Generator generator(5, 1, 1);
    Batch batch(64);
    std::vector<double> hits(50, 0);
    constexpr int batches = 1000;
    for (int i = 0; i < batches; ++i) {
        sample(all, 64, 0.4, generator, batch.target());
        for (const std::int64_t slot : batch.indexes) ++hits[static_cast<std::size_t>(slot)];
    }
    const double total = 50.0 * 51 * 101 / 6;
    for (std::size_t slot = 0; slot < 50; ++slot) {
        const double expected = 64.0 * batches * double((slot + 1) * (slot + 1)) / total;
        CAPTURE(slot);
        CHECK(std::abs(hits[slot] - expected) < 6 * std::sqrt(expected) + 1);
    }
}

TEST_CASE("rows that are just being written are not drawn; if there is no other, it is said") {
    HeapLearner all(2);
    HeapWriter writer(1);
    HeapWriter sleeper(2);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 2, id);
    const std::uint64_t first = claim_next(all.heap, sleeper);
    Generator generator;
    Batch batch(16);
    sample(all, 16, 0.4, generator, batch.target());
    for (const std::uint64_t row : batch.ids) CHECK(row == 2);
    const std::uint64_t second = claim_next(all.heap, sleeper);
    CHECK_THROWS_WITH_AS(sample(all, 1, 0.4, generator, batch.target()),
                         "no row is complete: every slot is empty or being written", EmptyBuffer);
    commit_claim(all.heap, second, 9);
    sample(all, 16, 0.4, generator, batch.target());
    for (const std::uint64_t row : batch.ids) CHECK(row == 9);
    commit_claim(all.heap, first, 8);
    all.learner->fold();
    require_rows_folded(all);
}

TEST_CASE("an update means the row that was sampled") {
    HeapLearner all(4);
    HeapWriter writer(1);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 4, id);
    Generator generator;
    Batch batch(64);
    sample(all, 64, 0.4, generator, batch.target());
    CHECK(update_one(*all.learner, 1, 0, 5.0F) == 0);
    CHECK(all.leaves.get()[1] == 5.0F);
    CHECK(all.learner->total() == doctest::Approx(all.sum_of_leaves()));
    CHECK(all.figures().updates == 1);

    add_rows(all.heap, writer, 4, id);
    // Not folded yet: the row may be gone or not, but the new one keeps the leaf it came with.
    update_one(*all.learner, 2, 0, 6.0F);
    all.learner->fold();
    CHECK(all.leaves.get()[2] == leaf_of_row(7));
    require_rows_folded(all);
    // Folded: what was sampled in slot 1 is gone.
    const std::uint64_t stale = all.figures().stale;
    CHECK(update_one(*all.learner, 1, 0, 7.0F) == 1);
    CHECK(all.figures().stale == stale + 1);
    CHECK(all.leaves.get()[1] == leaf_of_row(6));
    require_rows_folded(all);
    sample(all, 64, 0.4, generator, batch.target());
    CHECK(update_one(*all.learner, 1, 0, 8.0F) == 0);
    CHECK(all.leaves.get()[1] == 8.0F);
}

TEST_CASE("an update with generations is exact, whatever has been sampled since") {
    HeapLearner all(4);
    HeapWriter writer(1);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 4, id);
    Generator generator;
    Batch first(64);
    sample(all, 64, 0.4, generator, first.target());
    CHECK(update_one(*all.learner, 3, 7, 5.0F) == 0);
    CHECK(all.learner->generation(3) == 7);
    add_rows(all.heap, writer, 4, id);
    Batch second(64);
    sample(all, 64, 0.4, generator, second.target());
    CHECK(update_one(*all.learner, 3, 7, 6.0F) == 1);
    CHECK(all.leaves.get()[3] == leaf_of_row(8));
    CHECK(update_one(*all.learner, 3, 11, 6.0F) == 0);
    CHECK(all.leaves.get()[3] == 6.0F);
    CHECK(update_one(*all.learner, 3, 15, 7.0F) == 1);  // a seq that is still to come
    CHECK(all.learner->generation(3) == 11);
}

TEST_CASE("an update of a row never sampled means the one that the learner sees") {
    HeapLearner all(4);
    HeapWriter writer(1);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 2, id);
    CHECK(update_one(*all.learner, 0, 0, 5.0F) == 1);  // not folded: not seen yet
    all.learner->fold();
    CHECK(update_one(*all.learner, 0, 0, 5.0F) == 0);
    CHECK(update_one(*all.learner, 2, 0, 5.0F) == 1);
    CHECK(all.leaves.get()[0] == 5.0F);
    CHECK(all.leaves.get()[2] == 0);
    CHECK(all.learner->generation(2) == 0);
}

TEST_CASE("of several updates of one row in one call the last one counts") {
    HeapLearner all(40);
    HeapWriter writer(1);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 40, id);
    all.learner->fold();
    const std::int64_t slots[] = {30, 5, 30, 5, 39, 30};
    const double priorities[] = {1, 2, 3, 4, 5, 6};
    const float leaves[] = {1, 2, 3, 4, 5, 6};
    CHECK(all.learner->update(slots, {}, priorities, leaves) == 0);
    CHECK(all.leaves.get()[30] == 6);
    CHECK(all.leaves.get()[5] == 4);
    CHECK(all.leaves.get()[39] == 5);
    all.require_tree_is_sum_of_leaves();
    CHECK(all.heap.ring.max_priority() == 6);
}

TEST_CASE("only accepted updates raise the largest priority") {
    HeapLearner all(4);
    HeapWriter writer(1);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 4, id);
    all.learner->fold();
    CHECK(update_one(*all.learner, 0, 100, 5.0F, 1000.0) == 1);
    CHECK(all.heap.ring.max_priority() == 1.0);
    CHECK(update_one(*all.learner, 0, 0, 5.0F, 1000.0) == 0);
    CHECK(all.heap.ring.max_priority() == 1000.0);
}

TEST_CASE("a clear by another process: old rows are neither drawn nor updated") {
    HeapLearner all(8);
    HeapWriter writer(1);
    HeapWriter other(2);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 11, id);
    Generator generator;
    Batch batch(32);
    sample(all, 32, 0.4, generator, batch.target());
    all.heap.ring.clear();
    CHECK(update_one(*all.learner, 1, 0, 5.0F) == 1);
    CHECK_THROWS_WITH_AS(sample(all, 1, 0.4, generator, batch.target()),
                         "no rows have been added since it was cleared", EmptyBuffer);
    CHECK(all.learner->total() == 0);
    add_rows(all.heap, writer, 3, id);
    sample(all, 32, 0.4, generator, batch.target());
    for (const std::uint64_t row : batch.ids) CHECK(row > 11);
    require_rows_folded(all);
    CHECK(all.figures().sampleable == 3);
    all.heap.ring.clear();
    add_rows(all.heap, writer, 20, id);  // more than a lap between clear and fold
    all.learner->fold();
    require_rows_folded(all);
    CHECK(all.figures().sampleable == 8);
}

TEST_CASE("a hole from before a clear does not come back") {
    HeapLearner all(4);
    HeapWriter writer(1);
    HeapWriter sleeper(2);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 3, id);
    const std::uint64_t held = claim_next(all.heap, sleeper);
    all.learner->fold();
    all.heap.ring.clear();
    commit_claim(all.heap, held, 5);
    all.learner->fold();
    CHECK(all.learner->total() == 0);
    require_rows_folded(all);
    all.take_over();
    CHECK(all.learner->total() == 0);
}

TEST_CASE("the successor keeps every priority") {
    for (const std::uint64_t capacity : {1, 16, 17, 300}) {
        CAPTURE(capacity);
        HeapLearner all(capacity);
        HeapWriter writer(1);
        std::uint64_t id = 0;
        add_rows(all.heap, writer, capacity + capacity / 2 + 1, id);
        all.learner->fold();
        for (std::uint64_t slot = 0; slot < capacity; slot += 3) {
            update_one(*all.learner, slot, 0, updated_leaf_of_row(row_in(all.heap, slot)));
        }
        add_rows(all.heap, writer, capacity / 3 + 1, id);  // not folded by the first
        std::vector<float> expected(all.leaves.get(), all.leaves.get() + capacity);
        for (std::uint64_t slot = 0; slot < capacity; ++slot) {
            if (!all.has_folded(slot)) {
                expected[slot] = leaf_of_row(row_in(all.heap, slot));
            }
        }
        all.take_over();
        all.name_holder(1);
        CHECK(std::equal(expected.begin(), expected.end(), all.leaves.get()));
        require_rows_folded(all);
        all.learner->fold();
        CHECK(std::equal(expected.begin(), expected.end(), all.leaves.get()));
        require_rows_folded(all);
    }
}

TEST_CASE("the successor of a learner that died between leaf and lap") {
    HeapLearner all(4);
    HeapWriter writer(1);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 4, id);
    all.learner->fold();
    update_one(*all.learner, 2, 0, 777.0F);
    add_rows(all.heap, writer, 2, id);
    // It was folding slot 0: the new row's leaf is there, its lap is not.
    all.leaves.get()[0] = leaf_of_row(5);
    // And somebody was faster in slot 1 than what it stored.
    all.leaves.get()[1] = 123.0F;
    all.take_over();
    CHECK(all.leaves.get()[0] == leaf_of_row(5));
    CHECK(all.has_folded(0));
    CHECK(all.heap.seq_in(0) == 8);
    CHECK(all.leaves.get()[1] == leaf_of_row(6));
    CHECK(all.leaves.get()[2] == 777.0F);
    CHECK(all.leaves.get()[3] == leaf_of_row(4));
    CHECK(all.learner->total() == doctest::Approx(all.sum_of_leaves()));
}

TEST_CASE("the successor of a learner that died with a leaf set to 0, or not finite") {
    HeapLearner all(4);
    HeapWriter writer(1);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 4, id);
    all.learner->fold();
    all.leaves.get()[0] = 0;
    all.leaves.get()[1] = std::numeric_limits<float>::quiet_NaN();
    all.leaves.get()[2] = std::numeric_limits<float>::infinity();
    all.leaves.get()[3] = -1;
    auto& sequence = *reinterpret_cast<std::atomic<std::uint64_t>*>(all.line.get());
    sequence = 77;  // odd: it died while it was publishing
    CHECK_FALSE(all.line->load());
    all.take_over();
    all.name_holder(4);
    require_rows_folded(all);
    const RoleHolder holder = all.line->load()->holder;
    CHECK(holder.process == 4);
    CHECK(holder.pid == static_cast<std::uint64_t>(getpid()));
    CHECK(holder.since > 0);
}

TEST_CASE("a successor finds holes, and what becomes of them") {
    HeapLearner all(6);
    HeapWriter writer(1);
    HeapWriter sleeper(2);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 2, id);
    const std::uint64_t held = claim_next(all.heap, sleeper);
    all.heap.counters->cursor.fetch_add(1);  // never claimed
    add_rows(all.heap, writer, 1, id);
    all.take_over();
    all.name_holder(1);
    require_rows_folded(all);
    CHECK(all.figures().sampleable == 3);
    commit_claim(all.heap, held, 99);
    all.learner->fold();
    require_rows_folded(all);
    CHECK(all.figures().sampleable == 4);
    add_rows(all.heap, writer, 6, id);
    all.learner->fold();
    require_rows_folded(all);
    CHECK(all.figures().sampleable == 6);
}

TEST_CASE("a successor that takes over while rows come in counts none of them twice") {
    HeapLearner all(5);
    HeapWriter writer(1);
    std::uint64_t id = 0;
    add_rows(all.heap, writer, 4, id);
    // As if it had read the position before the last two rows came.
    const std::uint64_t position = all.heap.ring.position();
    all.heap.counters->cursor = position - 2;
    all.take_over();
    all.heap.counters->cursor = position;
    all.learner->fold();
    require_rows_folded(all);
    CHECK(all.figures().sampleable == 4);
    CHECK(all.figures().folded == position);
}

TEST_CASE("random operations against a plain model") {
    std::mt19937_64 random(21);
    for (int run = 0; run < 60 / sanitizer_slowdown; ++run) {
        const std::uint64_t capacity = 1 + random() % 40;
        CAPTURE(run);
        CAPTURE(capacity);
        HeapLearner all(capacity);
        HeapWriter writer(1);
        HeapWriter other(2);
        std::list<HeapWriter> sleepers;
        std::vector<std::uint64_t> held;
        std::map<std::uint64_t, float> updated;  // seq -> leaf by the last update accepted
        std::uint64_t id = 0;
        unsigned next_number = 3;
        Generator generator(run, 1, 1);
        for (int step = 0; step < 300; ++step) {
            switch (random() % 12) {
                case 0:
                case 1:
                case 2:
                case 3:
                    if (held.size() < capacity) {
                        all.heap.ring.add(1 + random() % (2 * capacity), writer.writer(),
                                          nobody_is_dead, [&id](std::uint64_t, std::byte* record) {
                                              const std::uint64_t row = ++id;
                                              store_to_record(
                                                  record, reinterpret_cast<const std::byte*>(&row),
                                                  sizeof row);
                                              return leaf_of_row(row);
                                          });
                    }
                    break;
                case 4: {  // a claim that stays open
                    const std::uint64_t seq = take_position(all.heap);
                    HeapWriter& sleeper = sleepers.emplace_back(next_number);
                    next_number = 3 + (next_number - 2) % 1000;
                    bool fresh = false;
                    if (all.heap.ring.claim(seq % capacity, seq, all.heap.ring.clear_before(),
                                            sleeper.writer(), nobody_is_dead, fresh)) {
                        held.push_back(seq);
                    }
                    break;
                }
                case 5: all.heap.counters->cursor.fetch_add(random() % 3); break;
                case 6:
                    if (!held.empty()) {
                        const std::size_t which = random() % held.size();
                        commit_claim(all.heap, held[which], ++id);
                        held.erase(held.begin() + static_cast<std::ptrdiff_t>(which));
                    }
                    break;
                case 7:
                    if (random() % 4 == 0) all.heap.ring.clear();
                    break;
                case 8:
                    if (random() % 4 == 0) all.take_over();
                    break;
                default: {
                    Batch batch(1 + random() % 8);
                    const std::size_t count = batch.ids.size();
                    try {
                        sample(all, count, 0.4, generator, batch.target());
                    } catch (const EmptyBuffer&) {
                        REQUIRE(all.heap.complete_rows() == 0);
                        break;
                    }
                    for (std::size_t i = 0; i < count; ++i) {
                        const auto slot = static_cast<std::uint64_t>(batch.indexes[i]);
                        const std::uint64_t seq = batch.generations[i];
                        REQUIRE(all.heap.committed(slot));
                        REQUIRE(all.heap.seq_in(slot) == seq);
                        REQUIRE(row_in(all.heap, slot) == batch.ids[i]);
                        if (random() % 2 == 0) continue;
                        const float leaf = updated_leaf_of_row(batch.ids[i]);
                        REQUIRE(update_one(*all.learner, slot, random() % 2 == 0 ? seq : 0, leaf) ==
                                0);
                        updated[seq] = leaf;
                    }
                    break;
                }
            }
            if (random() % 4 == 0) {
                all.learner->fold();
                require_rows_folded(all);
                for (std::uint64_t slot = 0; slot < capacity; ++slot) {
                    const float leaf = all.leaves.get()[slot];
                    if (!(leaf > 0)) continue;
                    const auto found = updated.find(all.heap.seq_in(slot));
                    REQUIRE(leaf == (found != updated.end() ? found->second
                                                            : leaf_of_row(row_in(all.heap, slot))));
                }
            }
        }
        for (const std::uint64_t seq : held) commit_claim(all.heap, seq, ++id);
        all.learner->fold();
        require_rows_folded(all);
    }
}

TEST_CASE("explorers and one learner at the same time: no leaf ever belongs to another row") {
    for (const std::uint64_t capacity : {2, 8, 64, 1024}) {
        CAPTURE(capacity);
        HeapLearner all(capacity);
        std::list<HeapWriter> writers;
        std::atomic<bool> stop{false};
        std::vector<std::thread> threads;
        for (unsigned i = 0; i < 3; ++i) {
            HeapWriter& writer = writers.emplace_back(i + 1);
            threads.emplace_back([&all, &stop, &writer, i] {
                std::uint64_t id = (std::uint64_t{i} + 1) << 40;
                while (!stop.load(std::memory_order_relaxed)) {
                    add_rows(all.heap, writer, 1 + id % 20, id);
                    if (id % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
                }
            });
        }
        std::atomic<std::uint64_t> batches{0};
        std::uint64_t wrong_weight = 0;
        std::uint64_t wrong_seq = 0;
        std::atomic<std::uint64_t> accepted{0};
        std::thread learning([&] {
            Generator generator(1, 1, 1);
            Batch batch(32);
            std::vector<double> priorities(32, 1.0);
            std::vector<float> leaves(32);
            for (int round = 0; !stop.load(std::memory_order_relaxed); ++round) {
                try {
                    sample(all, 32, 1.0, generator, batch.target());
                } catch (const EmptyBuffer&) {  // a tiny ring whose writers were all preempted
                    continue;
                }
                ++batches;
                // beta 1: weights are inverse to the leaves, all by the same factor.
                for (std::size_t i = 0; i < 32; ++i) {
                    const double leaf = double{leaf_of_row(batch.ids[i])};
                    const double updated = double{updated_leaf_of_row(batch.ids[i])};
                    const double least = double{batch.weights[i]} * leaf;
                    const double least_updated = double{batch.weights[i]} * updated;
                    // The least leaf is one of a row's or of an update's: n + 0.5 or n + 0.25.
                    const auto off = [](double value) {
                        const double part = value * 4 - std::round(value * 4);
                        return std::abs(part);
                    };
                    if (off(least) > 0.05 && off(least_updated) > 0.05) ++wrong_weight;
                    if (batch.generations[i] % capacity !=
                        static_cast<std::uint64_t>(batch.indexes[i])) {
                        ++wrong_seq;
                    }
                    leaves[i] = updated_leaf_of_row(batch.ids[i]);
                }
                const std::uint64_t stale =
                    round % 2 == 0
                        ? all.learner->update(batch.indexes, batch.generations, priorities, leaves)
                        : all.learner->update(batch.indexes, {}, priorities, leaves);
                accepted += 32 - stale;
                if (round % 200 == 199) all.take_over();
            }
        });
        std::this_thread::sleep_for(std::chrono::milliseconds(250));
        if (capacity >= 64) {
            CHECK(comes_true([&] { return batches > 0 && accepted > 0; }));
        }
        stop = true;
        for (std::thread& thread : threads) thread.join();
        learning.join();
        CHECK(wrong_weight == 0);
        CHECK(wrong_seq == 0);
        all.learner->fold();
        require_rows_folded(all);
        CHECK(all.figures().sampleable == all.heap.complete_rows());
        all.take_over();
        all.learner->fold();
        require_rows_folded(all);
    }
}

TEST_CASE("clears and deaths among explorers and one learner: the leaves settle") {
    constexpr std::uint64_t capacity = 32;
    constexpr unsigned lives = 200;
    HeapLearner all(capacity);
    std::vector<std::atomic<bool>> dead(3 * lives + 1);
    const auto is_dead = [&dead](unsigned number, std::uint64_t) {
        return dead[number].load(std::memory_order_acquire);
    };
    std::atomic<int> running{3};
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 3; ++i) {
        threads.emplace_back([&, i] {
            std::uint64_t id = (std::uint64_t{i} + 1) << 40;
            for (unsigned life = 0; life < lives; ++life) {
                const unsigned number = 1 + i * lives + life;
                HeapWriter writer(number);
                all.heap.ring.add(1 + life % 9, writer.writer(), is_dead,
                                  [&id](std::uint64_t, std::byte* record) {
                                      const std::uint64_t row = ++id;
                                      store_to_record(record,
                                                      reinterpret_cast<const std::byte*>(&row),
                                                      sizeof row);
                                      return leaf_of_row(row);
                                  });
                if (life % 40 == 39) all.heap.ring.clear();
                // Dies with a claim, or with a position that it never claims.
                const std::uint64_t seq = take_position(all.heap);
                bool fresh = false;
                if (life % 3 != 0) {
                    all.heap.ring.claim(seq % capacity, seq, all.heap.ring.clear_before(),
                                        writer.writer(), is_dead, fresh);
                }
                dead[number].store(true, std::memory_order_release);
                std::this_thread::sleep_for(std::chrono::microseconds(100));
            }
            --running;
        });
    }
    Generator generator(1, 1, 1);
    Batch batch(16);
    std::vector<double> priorities(16, 1.0);
    std::vector<float> leaves(16);
    std::uint64_t wrong = 0;
    while (running > 0) {
        try {
            sample(all, 16, 0.4, generator, batch.target());
        } catch (const EmptyBuffer&) {
            continue;
        }
        for (std::size_t i = 0; i < 16; ++i) {
            wrong += batch.generations[i] % capacity != std::uint64_t(batch.indexes[i]) ? 1 : 0;
            leaves[i] = updated_leaf_of_row(batch.ids[i]);
        }
        all.learner->update(batch.indexes, batch.generations, priorities, leaves);
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    all.learner->fold();
    require_rows_folded(all);
    // A last writer overwrites every claim that the dead have left.
    HeapWriter survivor(1022);
    std::uint64_t id = 5;
    all.heap.ring.add(
        capacity, survivor.writer(), everybody_is_dead, [&id](std::uint64_t, std::byte* record) {
            const std::uint64_t row = ++id;
            store_to_record(record, reinterpret_cast<const std::byte*>(&row), sizeof row);
            return leaf_of_row(row);
        });
    all.learner->fold();
    require_rows_folded(all);
    CHECK(all.figures().sampleable == capacity);
}
