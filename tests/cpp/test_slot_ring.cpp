#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "forked_child.hpp"
#include "ring/slot_ring.hpp"
#include "ring_on_heap.hpp"

using namespace mpbuffer;
using std::chrono::milliseconds;

namespace {

// A claim that its owner never finishes, taken as add() takes it. Returns its seq.
std::uint64_t abandon_claim(HeapRing& heap, HeapWriter& owner) {
    bool fresh = false;
    const std::uint64_t cleared = heap.ring.clear_before();
    const std::uint64_t seq = take_position(heap, cleared);
    REQUIRE(heap.ring.claim(seq % heap.ring.capacity(), seq, cleared, owner.writer(),
                            nobody_is_dead, fresh));
    return seq;
}

bool reads(const HeapRing& heap, std::uint64_t slot, std::uint64_t seq) {
    return heap.ring.read(slot, seq, [](const std::byte*) {});
}

}  // namespace

TEST_CASE("rows go one after another and are counted") {
    HeapRing heap(5);
    HeapWriter writer(3, 9);
    std::vector<std::uint64_t> busy_seen;
    const AddOutcome outcome =
        heap.ring.add(3, writer.writer(), nobody_is_dead, [&](std::uint64_t i, std::byte* record) {
            busy_seen.push_back(writer.busy);
            CHECK(record == heap.ring.record(i));
            CHECK(heap.ring.word(i) == slot_word::claimed(5 + i, 3, 9, true));
            return 0.5F;
        });
    CHECK(outcome.first_slot == 0);
    CHECK(outcome.rows_added == 3);
    CHECK(busy_seen == std::vector<std::uint64_t>{9, 9, 9});
    CHECK(writer.busy == 0);
    CHECK(writer.rows == 3);
    CHECK(writer.skips == 0);
    CHECK(writer.steals == 0);
    CHECK(heap.ring.position() == 8);
    CHECK(heap.filled() == 3);
    CHECK(heap.recount_requests() == 0);
    CHECK(heap.seq_in(2) == 7);
    CHECK(heap.committed(2));
    CHECK(heap.seq_in(3) == 0);
}

TEST_CASE("rows go round the end, and a full ring stays full") {
    HeapRing heap(5);
    HeapWriter writer(1);
    for (std::uint64_t id = 1; id <= 23; ++id)
        CHECK(add_row(heap, writer, id).first_slot == (id - 1) % 5);
    CHECK(heap.filled() == 5);
    CHECK(writer.rows == 23);
    for (std::uint64_t slot = 0; slot < 5; ++slot) {
        const std::uint64_t id = row_in(heap, slot);
        CHECK((id - 1) % 5 == slot);
        CHECK(id > 18);
    }
}

TEST_CASE("one call may be longer than a claim of 16 and than the ring") {
    HeapRing heap(7);
    HeapWriter writer(1);
    std::uint64_t calls = 0;
    const AddOutcome outcome = heap.ring.add(100, writer.writer(), nobody_is_dead,
                                             [&](std::uint64_t i, std::byte* record) {
                                                 CHECK(i == calls++);
                                                 CHECK(record == heap.ring.record(i % 7));
                                                 return 1.0F;
                                             });
    CHECK(outcome.rows_added == 100);
    CHECK(heap.filled() == 7);
    CHECK(heap.ring.position() == 107);
}

TEST_CASE("a read counts only for the seq that is there") {
    HeapRing heap(2);
    HeapWriter writer(1);
    CHECK(row_in(heap, 0) == 0);
    add_row(heap, writer, 11, 0.25F);
    float leaf = 0;
    CHECK(reads(heap, 0, 2));
    CHECK(heap.ring.read_leaf_in(0, 2, leaf));
    CHECK(leaf == 0.25F);
    for (const std::uint64_t other : {0, 1, 3, 4}) {
        CHECK_FALSE(reads(heap, 0, other));
        CHECK_FALSE(heap.ring.read_leaf_in(0, other, leaf));
    }
    CHECK(heap.ring.read_any(0, 2, [](const std::byte*) {}) == 2);
    CHECK(heap.ring.read_any(0, 3, [](const std::byte*) {}) == 0);
    CHECK_FALSE(reads(heap, 1, 3));
    CHECK(heap.ring.read_any(1, 2, [](const std::byte*) {}) == 0);
}

TEST_CASE("a row that is being written is not read") {
    HeapRing heap(1);
    HeapWriter writer(1);
    add_row(heap, writer, 11);
    HeapWriter other(2);
    const std::uint64_t seq = abandon_claim(heap, other);
    float leaf = 0;
    for (const std::uint64_t want : {seq - 1, seq}) {
        CHECK_FALSE(reads(heap, 0, want));
        CHECK_FALSE(heap.ring.read_leaf_in(0, want, leaf));
    }
    CHECK(row_in(heap, 0) == 0);
}

TEST_CASE("a reader sees that its row changed under the copy") {
    HeapWriter writer(1);
    HeapWriter other(2);
    for (const bool finished : {false, true}) {
        HeapRing heap(1);
        add_row(heap, writer, 11);
        const auto overwrite = [&](const std::byte*) {
            if (finished) {
                add_row(heap, other, 12);
            } else {
                abandon_claim(heap, other);
            }
        };
        CHECK_FALSE(heap.ring.read(0, 1, overwrite));
        HeapRing again(1);
        add_row(again, writer, 11);
        const auto overwrite_again = [&](const std::byte*) {
            if (finished) {
                add_row(again, other, 12);
            } else {
                abandon_claim(again, other);
            }
        };
        CHECK(again.ring.read_any(0, 1, overwrite_again) == 0);
    }
}

TEST_CASE("a slot whose owner lives is passed by, and the row goes elsewhere") {
    HeapRing heap(3);
    HeapWriter sleeper(2);
    HeapWriter writer(1);
    const std::uint64_t held = abandon_claim(heap, sleeper);
    for (std::uint64_t id = 1; id <= 4; ++id) add_row(heap, writer, id);
    CHECK(writer.rows == 4);
    CHECK(writer.skips == 1);
    CHECK(heap.ring.word(0) == slot_word::claimed(held, 2, 1, true));
    CHECK(row_in(heap, 1) == 3);
    CHECK(row_in(heap, 2) == 4);
    CHECK(heap.filled() == 2);
    heap.ring.commit(0, held, 1.0F);
    heap.ring.raise_filled(heap.counters->filled, 1);
    CHECK(heap.filled() == 3);
    CHECK(reads(heap, 0, held));
}

TEST_CASE("a dead owner's claim is taken over, and the count comes out right") {
    for (const bool over_a_row : {false, true}) {
        CAPTURE(over_a_row);
        HeapRing heap(3);
        HeapWriter writer(1);
        HeapWriter dead(2, 37);
        if (over_a_row) {
            for (std::uint64_t id = 1; id <= 3; ++id) add_row(heap, writer, id);
        }
        const std::uint64_t held = abandon_claim(heap, dead);
        CHECK(slot_word::fresh(heap.ring.word(0)) == !over_a_row);
        std::vector<std::pair<unsigned, std::uint64_t>> asked;
        const auto is_dead = [&asked](unsigned owner, std::uint64_t epoch) {
            asked.emplace_back(owner, epoch);
            return true;
        };
        const auto no_copy = [](std::uint64_t, std::byte*) { return 1.0F; };
        heap.ring.add(3, writer.writer(), is_dead, no_copy);
        CHECK(asked == std::vector<std::pair<unsigned, std::uint64_t>>{{2, 37 % 32}});
        CHECK(writer.steals == 1);
        CHECK(writer.skips == 0);
        CHECK(heap.seq_in(0) == held + 3);
        CHECK(heap.committed(0));
        CHECK(heap.filled() == 3);
        CHECK(heap.complete_rows() == 3);
        CHECK(heap.recount_requests() == 0);
    }
}

TEST_CASE("a claim that passes through several dead hands still counts once") {
    HeapRing heap(1);
    std::list<HeapWriter> dead;
    bool fresh = false;
    for (unsigned number = 2; number < 9; ++number) {
        HeapWriter& owner = dead.emplace_back(number);
        const std::uint64_t seq = take_position(heap);
        CHECK(heap.ring.claim(0, seq, heap.ring.clear_before(), owner.writer(), everybody_is_dead,
                              fresh));
        CHECK(fresh);
    }
    HeapWriter writer(1);
    heap.ring.add(1, writer.writer(), everybody_is_dead,
                  [](std::uint64_t, std::byte*) { return 1.0F; });
    CHECK(heap.filled() == 1);
    add_row(heap, writer, 5);
    CHECK(heap.filled() == 1);
}

TEST_CASE("an old claim of the writer's own number is taken without asking") {
    HeapRing heap(1);
    HeapWriter before(4, 1);
    abandon_claim(heap, before);
    HeapWriter now(4, 2);
    const AddOutcome outcome = heap.ring.add(
        1, now.writer(), [](unsigned, std::uint64_t) -> bool { throw std::logic_error("asked"); },
        [](std::uint64_t, std::byte*) { return 1.0F; });
    CHECK(outcome.rows_added == 1);
    CHECK(now.steals == 1);
    CHECK(heap.filled() == 1);
}

TEST_CASE("a claimer that slept for a lap leaves the newer row alone") {
    HeapRing heap(2);
    HeapWriter sleeper(2);
    HeapWriter writer(1);
    const std::uint64_t seq = take_position(heap);
    for (std::uint64_t id = 1; id <= 3; ++id) add_row(heap, writer, id);
    const std::uint64_t word = heap.ring.word(0);
    bool fresh = false;
    CHECK(slot_word::seq(word) == seq + 2);
    CHECK_FALSE(heap.ring.claim(0, seq, 2, sleeper.writer(), everybody_is_dead, fresh));
    CHECK(heap.ring.word(0) == word);
    CHECK(row_in(heap, 0) == 2);
}

TEST_CASE("a claimer that slept for a lap leaves a newer dead claim alone") {
    HeapRing heap(1);
    HeapWriter sleeper(2);
    HeapWriter dead(3);
    const std::uint64_t seq = take_position(heap);
    abandon_claim(heap, dead);
    const std::uint64_t word = heap.ring.word(0);
    bool fresh = false;
    CHECK_FALSE(heap.ring.claim(0, seq, 1, sleeper.writer(), everybody_is_dead, fresh));
    CHECK(heap.ring.word(0) == word);
}

TEST_CASE("no seq is claimed twice") {
    HeapRing heap(1);
    HeapWriter first(2);
    HeapWriter second(3);
    bool fresh = false;
    CHECK(heap.ring.claim(0, 1, 1, first.writer(), everybody_is_dead, fresh));
    CHECK_FALSE(heap.ring.claim(0, 1, 1, second.writer(), everybody_is_dead, fresh));
    CHECK_FALSE(heap.ring.claim(0, 1, 1, first.writer(), everybody_is_dead, fresh));
    heap.ring.commit(0, 1, 1.0F);
    CHECK_FALSE(heap.ring.claim(0, 1, 1, second.writer(), everybody_is_dead, fresh));
}

TEST_CASE("who is overtaken between the look and the claim gives the seq up") {
    HeapRing heap(1);
    HeapWriter dead(2);
    HeapWriter slow(3);
    HeapWriter fast(4);
    abandon_claim(heap, dead);
    const std::uint64_t seq = take_position(heap);
    bool fresh = false;
    const auto meanwhile = [&](unsigned, std::uint64_t) {
        const AddOutcome outcome = heap.ring.add(1, fast.writer(), everybody_is_dead,
                                                 [](std::uint64_t, std::byte*) { return 1.0F; });
        CHECK(outcome.rows_added == 1);
        return true;
    };
    CHECK_FALSE(heap.ring.claim(0, seq, 1, slow.writer(), meanwhile, fresh));
    CHECK(heap.ring.word(0) == slot_word::committed(seq + 1));
    CHECK(heap.filled() == 1);
}

TEST_CASE("a claim that is overtaken by older seqs tries only so often") {
    HeapRing heap(1);
    HeapWriter writer(1);
    heap.counters->cursor = 100;
    heap.ring.word(0) = slot_word::claimed(2, 2, 0, true);
    std::uint64_t asked = 0;
    const auto restless = [&](unsigned, std::uint64_t) {
        ++asked;
        heap.ring.word(0) = slot_word::claimed(2 + asked, 2 + unsigned(asked % 2), asked, true);
        return true;
    };
    bool fresh = false;
    CHECK_FALSE(heap.ring.claim(0, 90, 1, writer.writer(), restless, fresh));
    CHECK(asked >= 1);
    CHECK(asked <= 16);
}

TEST_CASE("living owners of every slot: the call ends, names no row as added, keeps its promises") {
    HeapRing heap(4);
    HeapWriter sleeper(2);
    for (int slot = 0; slot < 4; ++slot) abandon_claim(heap, sleeper);
    HeapWriter writer(1);
    std::vector<std::uint64_t> words;
    for (int slot = 0; slot < 4; ++slot) words.push_back(heap.ring.word(slot));
    const std::uint64_t before = heap.ring.position();
    const AddOutcome outcome =
        heap.ring.add(3, writer.writer(), nobody_is_dead,
                      [](std::uint64_t, std::byte*) -> float { throw std::logic_error("copied"); });
    CHECK(outcome.rows_added == 0);
    CHECK(writer.busy == 0);
    CHECK(writer.rows == 0);
    CHECK(writer.skips == heap.ring.position() - before);
    CHECK(writer.skips >= 4 * 4 + 3);
    for (int slot = 0; slot < 4; ++slot) CHECK(heap.ring.word(slot) == words[slot]);
}

TEST_CASE("no more than 4 * capacity + n + 15 positions are claimed by one add") {
    for (const std::uint64_t capacity : {1, 4, 50}) {
        for (const std::uint64_t n : {1, 5, 40}) {
            HeapRing heap(capacity);
            HeapWriter sleeper(2);
            for (std::uint64_t slot = 0; slot < capacity; ++slot) abandon_claim(heap, sleeper);
            HeapWriter writer(1);
            const std::uint64_t before = heap.ring.position();
            const AddOutcome outcome = heap.ring.add(
                n, writer.writer(), nobody_is_dead, [](std::uint64_t, std::byte*) { return 1.0F; });
            CHECK(outcome.rows_added == 0);
            CHECK(heap.ring.position() - before >= 4 * capacity + n);
            CHECK(heap.ring.position() - before < 4 * capacity + n + SlotRing::rows_per_claim);
        }
    }
}

TEST_CASE("one free slot among held ones takes every row") {
    HeapRing heap(4);
    HeapWriter sleeper(2);
    for (int slot = 0; slot < 3; ++slot) abandon_claim(heap, sleeper);
    HeapWriter writer(1);
    const AddOutcome outcome = heap.ring.add(4, writer.writer(), nobody_is_dead,
                                             [](std::uint64_t, std::byte*) { return 1.0F; });
    CHECK(outcome.rows_added == 4);
    CHECK(outcome.first_slot == 3);
    CHECK(heap.filled() == 1);
    CHECK(heap.complete_rows() == 1);
}

TEST_CASE("owners that die during an add free their slots") {
    HeapRing heap(2);
    HeapWriter sleeper(2);
    for (int slot = 0; slot < 2; ++slot) abandon_claim(heap, sleeper);
    HeapWriter writer(1);
    int asked = 0;
    const AddOutcome outcome = heap.ring.add(
        1, writer.writer(), [&asked](unsigned, std::uint64_t) { return ++asked > 5; },
        [](std::uint64_t, std::byte*) { return 1.0F; });
    CHECK(outcome.rows_added == 1);
    CHECK(writer.steals == 1);
    CHECK(heap.filled() == 1);
}

TEST_CASE("clear: the rows are gone, the next one goes to slot 0") {
    HeapRing heap(4);
    HeapWriter writer(1, 6);
    for (std::uint64_t id = 1; id <= 6; ++id) add_row(heap, writer, id);
    heap.ring.raise_max_priority(9.0);
    heap.ring.clear();
    CHECK(heap.ring.position() == 12);
    CHECK(heap.ring.clear_before() == 12);
    const std::uint64_t before = heap.filled();  // the count is left to a recount
    CHECK(heap.ring.max_priority() == 1.0);
    CHECK(heap.complete_rows() == 0);
    for (std::uint64_t slot = 0; slot < 4; ++slot) CHECK(row_in(heap, slot) == 0);
    CHECK(add_row(heap, writer, 7).first_slot == 0);
    CHECK(heap.filled() == before + 1);
    CHECK(row_in(heap, 0) == 7);
    heap.ring.clear();
    heap.ring.clear();
    CHECK(heap.ring.position() == 16);
    CHECK(heap.ring.clear_before() == 16);
}

TEST_CASE("a clear is one store; the next add moves the cursor there and loses no row") {
    for (std::uint64_t rows_before = 1; rows_before <= 40; ++rows_before) {
        for (const std::uint64_t n : {1, 2, 15, 16, 17, 20}) {
            CAPTURE(rows_before);
            CAPTURE(n);
            HeapRing heap(20);
            HeapWriter writer(1);
            for (std::uint64_t id = 1; id <= rows_before; ++id) add_row(heap, writer, id);
            const std::uint64_t cursor = heap.counters->cursor;
            heap.ring.clear();
            CHECK(heap.counters->cursor == cursor);
            const std::uint64_t target = (cursor + 19) / 20 * 20;
            const auto [cleared, position] = heap.ring.bounds();
            CHECK(cleared == target);
            CHECK(position == target);
            const AddOutcome outcome = heap.ring.add(
                n, writer.writer(), nobody_is_dead, [](std::uint64_t, std::byte*) { return 1.0F; });
            CHECK(outcome.first_slot == 0);
            CHECK(outcome.rows_added == n);
            CHECK(heap.counters->cursor == target + n);
            CHECK(heap.complete_rows() == n);
            CHECK(heap.filled() == std::min<std::uint64_t>(rows_before, 20) + n);
            CHECK(writer.skips == 0);
        }
    }
}

TEST_CASE("the first claim after a clear moves the cursor all the way") {
    HeapRing heap(1000);
    HeapWriter writer(1);
    for (std::uint64_t id = 1; id <= 3; ++id) add_row(heap, writer, id);
    heap.ring.clear();
    const auto [first, end] = heap.ring.take_positions(1, heap.ring.clear_before());
    CHECK(first == end);
    CHECK(heap.counters->cursor == 2000);
    CHECK(heap.ring.take_positions(1, heap.ring.clear_before()).first == 2000);
}

TEST_CASE("a claim that has not seen the clear since goes on where the others are") {
    HeapRing heap(8);
    HeapWriter writer(1);
    for (std::uint64_t id = 1; id <= 3; ++id) add_row(heap, writer, id);
    const std::uint64_t cleared = heap.ring.clear_before();
    heap.ring.clear();
    // Its row is one of before the clear.
    const auto [first, end] = heap.ring.take_positions(1, cleared);
    CHECK(first == 11);
    CHECK(end == 12);
    for (std::uint64_t id = 4; id <= 20; ++id) add_row(heap, writer, id);
    CHECK(heap.ring.take_positions(1, cleared).first == 16 + 17);
    CHECK(heap.ring.clear_before() == 16);
}

TEST_CASE("clear of an empty ring moves nothing") {
    HeapRing heap(4);
    HeapWriter writer(1);
    heap.ring.clear();
    CHECK(heap.ring.position() == 4);
    CHECK(heap.ring.clear_before() == 4);
    for (std::uint64_t id = 1; id <= 4; ++id) add_row(heap, writer, id);
    CHECK(heap.filled() == 4);
}

TEST_CASE("after a clear, slots of old rows and of old dead claims count anew") {
    HeapRing heap(4);
    HeapWriter writer(1);
    HeapWriter dead(2);
    for (std::uint64_t id = 1; id <= 3; ++id) add_row(heap, writer, id);
    abandon_claim(heap, dead);
    abandon_claim(heap, dead);  // over the row in slot 0: not fresh
    heap.ring.clear();
    const std::uint64_t before = heap.filled();
    heap.ring.add(4, writer.writer(), everybody_is_dead,
                  [](std::uint64_t, std::byte*) { return 1.0F; });
    CHECK(heap.filled() == before + 4);
    CHECK(heap.complete_rows() == 4);
}

TEST_CASE("a clear in the middle of an add requests a recount") {
    HeapRing heap(8);
    HeapWriter writer(1);
    heap.ring.add(4, writer.writer(), nobody_is_dead, [&](std::uint64_t i, std::byte*) {
        if (i == 2) heap.ring.clear();
        return 1.0F;
    });
    CHECK(heap.recount_requests() > 0);
    CHECK(heap.complete_rows() == 0);
}

TEST_CASE("a row that takes an old row's place across a clear requests a recount") {
    HeapRing heap(4);
    HeapWriter writer(1);
    for (std::uint64_t id = 1; id <= 6; ++id) add_row(heap, writer, id);
    // The writer has looked at clear_before; then others clear and move the cursor.
    heap.counters->cursor = 12;
    heap.ring.add(2, writer.writer(), nobody_is_dead, [&](std::uint64_t i, std::byte*) {
        if (i == 0) {
            // And a recount, which counts the claim of slot 0. The writer still takes the old row
            // in slot 1 for a counted one.
            heap.counters->clear_before = 12;
            heap.counters->filled = filled_word::next(heap.counters->filled, 1);
        }
        return 1.0F;
    });
    CHECK(heap.complete_rows() == 2);
    CHECK((heap.filled() == 2 || heap.recount_requests() > 0));
}

TEST_CASE("a raise that straddles a recount requests another instead of counting twice") {
    HeapRing heap(8);
    const std::uint64_t before = heap.counters->filled;
    heap.counters->filled = filled_word::next(before, 5);
    heap.ring.raise_filled(before, 3);
    CHECK(heap.filled() == 5);
    CHECK(heap.recount_requests() == 1);
    heap.ring.raise_filled(heap.counters->filled, 2);
    CHECK(heap.filled() == 7);
    CHECK(heap.recount_requests() == 1);
}

TEST_CASE("the recount number wraps without touching the count") {
    const std::uint64_t last = (std::uint64_t{0xffff} << 48) | 5;
    CHECK(filled_word::recount(filled_word::next(last, 9)) == 0);
    CHECK(filled_word::count(filled_word::next(last, 9)) == 9);
}

TEST_CASE("the largest priority only rises") {
    HeapRing heap(1);
    heap.ring.raise_max_priority(0.5);
    CHECK(heap.ring.max_priority() == 1.0);
    heap.ring.raise_max_priority(2.5);
    heap.ring.raise_max_priority(2.0);
    CHECK(heap.ring.max_priority() == 2.5);
}

TEST_CASE("an add that an error ends requests a recount") {
    HeapRing heap(8);
    HeapWriter writer(1);
    heap.ring.word(3) = slot_word::claimed(3, 2, 1, true);
    const auto no_answer = [](unsigned, std::uint64_t) -> bool { throw std::runtime_error("no"); };
    CHECK_THROWS_AS(heap.ring.add(5, writer.writer(), no_answer,
                                  [](std::uint64_t, std::byte*) { return 1.0F; }),
                    std::runtime_error);
    CHECK(heap.complete_rows() == 3);
    CHECK(writer.rows == 3);
    CHECK(writer.busy == 0);
    CHECK((heap.filled() == 3 || heap.recount_requests() > 0));
}

namespace {

constexpr auto thread_test_time = milliseconds(150);

// Writers that die: each "process" is an identity used by one thread until it abandons a call at
// one of its steps; then it is dead for ever and the thread goes on under a new identity.
class MortalWriters {
  public:
    explicit MortalWriters(std::size_t count) : dead_(count + 1) {}
    bool is_dead(unsigned number) const { return dead_[number].load(std::memory_order_acquire); }
    void die(unsigned number) { dead_[number].store(true, std::memory_order_release); }

  private:
    std::vector<std::atomic<bool>> dead_;
};

enum class DyingStep { before_claim, after_claim, in_copy, before_commit, before_raise, never };

struct Commits {
    std::uint64_t seq;
    std::uint64_t id;
};

// One row by the steps of add(), left off at `step`. True if it was committed.
bool add_until(HeapRing& heap, HeapWriter& writer, const MortalWriters& mortals, CheckedRow& row,
               std::uint64_t id, DyingStep step, std::vector<Commits>& commits) {
    SlotRing& ring = heap.ring;
    const auto is_dead = [&mortals](unsigned number, std::uint64_t) {
        return mortals.is_dead(number);
    };
    writer.busy = writer.epoch;
    const std::uint64_t filled = heap.counters->filled.load(std::memory_order_acquire);
    const std::uint64_t cleared = ring.clear_before();
    const std::uint64_t seq = take_position(heap, cleared);
    const std::uint64_t slot = seq % ring.capacity();
    if (step == DyingStep::before_claim) return false;
    bool fresh = false;
    if (!ring.claim(slot, seq, cleared, writer.writer(), is_dead, fresh)) return false;
    if (step == DyingStep::after_claim) return false;
    row.write(id, ring.record(slot));
    if (step == DyingStep::in_copy) {
        // Half of another row on top.
        CheckedRow half(row.byte_count() / 8);
        std::vector<std::byte> other(row.byte_count());
        half.write(~id, other.data());
        store_to_record(ring.record(slot), other.data(), row.byte_count() / 2);
        return false;
    }
    if (step == DyingStep::before_commit) return false;
    ring.commit(slot, seq, 1.0F);
    commits.push_back({seq, id});
    if (step == DyingStep::before_raise) return true;
    if (fresh) ring.raise_filled(filled, 1);
    writer.busy = 0;
    return true;
}

struct Traffic {
    std::vector<Commits> commits;
    std::atomic<std::uint64_t> reads{0};
    std::uint64_t torn = 0;
    std::uint64_t went_back = 0;
    std::uint64_t wrong_row = 0;
};

// Reads all slots again and again: whole rows only, seqs that never decrease, one row for one seq.
void read_until(const std::atomic<bool>& stop, const HeapRing& heap, std::size_t words,
                Traffic& traffic) {
    CheckedRow row(words);
    const std::uint64_t capacity = heap.ring.capacity();
    std::vector<std::uint64_t> newest(capacity, 0);
    std::vector<std::uint64_t> newest_id(capacity, 0);
    while (!stop.load(std::memory_order_relaxed)) {
        for (std::uint64_t slot = 0; slot < capacity; ++slot) {
            const std::uint64_t seq =
                heap.ring.read_any(slot, 0, [&row](const std::byte* record) { row.read(record); });
            if (seq == 0) continue;
            ++traffic.reads;
            if (!row.whole()) ++traffic.torn;
            if (seq < newest[slot]) ++traffic.went_back;
            if (seq == newest[slot] && row.id() != newest_id[slot]) ++traffic.wrong_row;
            newest[slot] = seq;
            newest_id[slot] = row.id();
            if (!heap.ring.read(slot, seq, [&row](const std::byte* record) { row.read(record); })) {
                continue;
            }
            if (!row.whole()) ++traffic.torn;
            if (row.id() != newest_id[slot]) ++traffic.wrong_row;
        }
        if (traffic.reads == 0) std::this_thread::yield();
    }
}

void require_sound(const HeapRing& heap, const std::vector<Traffic>& all, std::size_t words) {
    std::vector<std::uint64_t> newest(heap.ring.capacity(), 0);
    std::vector<std::uint64_t> newest_id(heap.ring.capacity(), 0);
    std::vector<std::uint64_t> seqs;
    for (const Traffic& traffic : all) {
        CHECK(traffic.torn == 0);
        CHECK(traffic.went_back == 0);
        CHECK(traffic.wrong_row == 0);
        for (const Commits& commit : traffic.commits) {
            seqs.push_back(commit.seq);
            const std::uint64_t slot = commit.seq % heap.ring.capacity();
            if (commit.seq > newest[slot]) {
                newest[slot] = commit.seq;
                newest_id[slot] = commit.id;
            }
        }
    }
    std::sort(seqs.begin(), seqs.end());
    CHECK(std::adjacent_find(seqs.begin(), seqs.end()) == seqs.end());  // each at most once
    CheckedRow row(words);
    for (std::uint64_t slot = 0; slot < heap.ring.capacity(); ++slot) {
        if (!heap.committed(slot)) {
            CHECK(heap.seq_in(slot) >= newest[slot]);
            continue;
        }
        // No committed row is lost but to a newer one.
        REQUIRE(heap.seq_in(slot) == newest[slot]);
        if (newest[slot] == 0) continue;
        row.read(heap.ring.record(slot));
        REQUIRE(row.whole());
        REQUIRE(row.id() == newest_id[slot]);
    }
}

}  // namespace

TEST_CASE("writers and readers on one ring: no torn row, no seq twice, no row lost") {
    for (const std::uint64_t capacity : {1, 2, 8, 64, 1024}) {
        for (const std::size_t words : {5, 50}) {
            CAPTURE(capacity);
            CAPTURE(words);
            HeapRing heap(capacity, words * 8);
            constexpr unsigned writer_count = 3;
            constexpr unsigned reader_count = 2;
            std::list<HeapWriter> writers;
            std::vector<Traffic> traffic(writer_count + reader_count);
            std::atomic<bool> stop{false};
            std::vector<std::thread> threads;
            for (unsigned i = 0; i < writer_count; ++i) {
                HeapWriter& writer = writers.emplace_back(i + 1);
                threads.emplace_back([&, i] {
                    CheckedRow row(words);
                    std::uint64_t next_id = (std::uint64_t{i} + 1) << 40;
                    while (!stop.load(std::memory_order_relaxed)) {
                        heap.ring.add(1 + next_id % 40, writer.writer(), nobody_is_dead,
                                      [&](std::uint64_t, std::byte* record) {
                                          row.write(++next_id, record);
                                          return 1.0F;
                                      });
                    }
                });
            }
            for (unsigned i = 0; i < reader_count; ++i) {
                threads.emplace_back(
                    [&, i] { read_until(stop, heap, words, traffic[writer_count + i]); });
            }
            std::this_thread::sleep_for(thread_test_time);
            // On a tiny ring the readers may find every row just being overwritten.
            if (capacity >= 64) {
                CHECK(comes_true([&] { return traffic[writer_count].reads > 0; }));
            }
            stop = true;
            for (std::thread& thread : threads) thread.join();
            std::uint64_t rows = 0;
            std::uint64_t skips = 0;
            for (const HeapWriter& writer : writers) {
                rows += writer.rows;
                skips += writer.skips;
                CHECK(writer.busy == 0);
                CHECK(writer.steals == 0);
            }
            CHECK(rows > 0);
            CHECK(heap.ring.position() == capacity + rows + skips);
            for (const Traffic& each : traffic) {
                CHECK(each.torn == 0);
                CHECK(each.went_back == 0);
                CHECK(each.wrong_row == 0);
            }
            CHECK(heap.filled() == heap.complete_rows());
            CHECK(heap.recount_requests() == 0);
            CheckedRow row(words);
            for (std::uint64_t slot = 0; slot < capacity; ++slot) {
                if (heap.seq_in(slot) == 0) continue;
                REQUIRE(heap.committed(slot));
                row.read(heap.ring.record(slot));
                REQUIRE(row.whole());
            }
        }
    }
}

TEST_CASE("writers that die at every step: no torn row, no seq twice, no row lost") {
    for (const std::uint64_t capacity : {1, 2, 8, 64}) {
        CAPTURE(capacity);
        constexpr std::size_t words = 20;
        constexpr unsigned writer_count = 3;
        constexpr unsigned identities = 300;  // of each thread
        HeapRing heap(capacity, words * 8);
        MortalWriters mortals(writer_count * identities);
        std::vector<Traffic> traffic(writer_count + 1);
        std::atomic<bool> stop{false};
        std::atomic<std::uint64_t> steals{0};
        std::vector<std::thread> threads;
        for (unsigned i = 0; i < writer_count; ++i) {
            threads.emplace_back([&, i] {
                CheckedRow row(words);
                std::uint64_t id = (std::uint64_t{i} + 1) << 40;
                for (unsigned life = 0; life < identities; ++life) {
                    const unsigned number = 1 + i * identities + life;
                    HeapWriter writer(number);
                    const std::uint64_t last = 3 + (id * 7 + life) % 20;
                    for (std::uint64_t n = 0; n < last; ++n) {
                        add_until(heap, writer, mortals, row, ++id, DyingStep::never,
                                  traffic[i].commits);
                    }
                    add_until(heap, writer, mortals, row, ++id, static_cast<DyingStep>(life % 5),
                              traffic[i].commits);
                    steals += writer.steals;
                    if (life % 16 == 0) std::this_thread::yield();
                    mortals.die(number);
                }
            });
        }
        std::thread reader([&] { read_until(stop, heap, words, traffic[writer_count]); });
        for (std::thread& thread : threads) thread.join();
        stop = true;
        reader.join();
        CHECK(steals > 0);
        require_sound(heap, traffic, words);

        // A survivor finds every slot usable again.
        HeapWriter survivor(1022);
        CheckedRow row(words);
        std::uint64_t id = 1;
        const AddOutcome outcome = heap.ring.add(
            capacity, survivor.writer(),
            [&mortals](unsigned number, std::uint64_t) { return mortals.is_dead(number); },
            [&](std::uint64_t, std::byte* record) {
                row.write(++id, record);
                return 1.0F;
            });
        CHECK(outcome.rows_added == capacity);
        CHECK(survivor.skips == 0);
        CHECK(heap.complete_rows() == capacity);
    }
}

TEST_CASE("a stopped writer blocks its slot alone, and finishes its row when it goes on") {
    constexpr std::size_t words = 20;
    HeapRing heap(8, words * 8);
    HeapWriter sleeper(9);
    std::atomic<bool> holds{false};
    std::atomic<bool> go_on{false};
    std::uint64_t held_slot = 99;
    std::thread stopped([&] {
        CheckedRow row(words);
        heap.ring.add(1, sleeper.writer(), nobody_is_dead, [&](std::uint64_t, std::byte* record) {
            held_slot = static_cast<std::uint64_t>(record - heap.ring.record(0)) /
                        static_cast<std::uint64_t>(heap.ring.record(1) - heap.ring.record(0));
            row.write(4242, record);
            holds = true;
            while (!go_on) std::this_thread::yield();
            row.write(4242, record);
            return 1.0F;
        });
    });
    while (!holds) std::this_thread::yield();
    HeapWriter writer(1);
    CheckedRow row(words);
    std::uint64_t id = 0;
    const AddOutcome outcome =
        heap.ring.add(100, writer.writer(), nobody_is_dead, [&](std::uint64_t, std::byte* record) {
            row.write(++id, record);
            return 1.0F;
        });
    CHECK(outcome.rows_added == 100);
    CHECK(writer.skips >= 100 / 8);
    CHECK_FALSE(heap.committed(held_slot));
    go_on = true;
    stopped.join();
    CHECK(heap.committed(held_slot));
    row.read(heap.ring.record(held_slot));
    CHECK(row.whole());
    CHECK(row.id() == 4242);
    CHECK(heap.filled() == 8);
    CHECK(heap.complete_rows() == 8);
}

TEST_CASE("clears among writers: what is counted is there, what was cleared is gone") {
    constexpr std::size_t words = 10;
    HeapRing heap(16, words * 8);
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    std::list<HeapWriter> writers;
    for (unsigned i = 0; i < 3; ++i) {
        HeapWriter& writer = writers.emplace_back(i + 1);
        threads.emplace_back([&, i] {
            CheckedRow row(words);
            std::uint64_t id = std::uint64_t{i} << 40;
            for (std::uint64_t round = 0; !stop.load(std::memory_order_relaxed); ++round) {
                if (i != 0 && round % 50 == 49) heap.ring.clear();
                heap.ring.add(3, writer.writer(), nobody_is_dead,
                              [&](std::uint64_t, std::byte* record) {
                                  row.write(++id, record);
                                  return 1.0F;
                              });
            }
        });
    }
    std::atomic<std::uint64_t> wrong{0};
    std::thread reader([&] {
        CheckedRow row(words);
        while (!stop.load(std::memory_order_relaxed)) {
            const std::uint64_t cleared = heap.ring.clear_before();
            if (cleared % 16 != 0 || heap.ring.position() < cleared) ++wrong;
            for (std::uint64_t slot = 0; slot < 16; ++slot) {
                const std::uint64_t seq = heap.ring.read_any(
                    slot, cleared, [&row](const std::byte* record) { row.read(record); });
                if (seq != 0 && (!row.whole() || seq < cleared)) ++wrong;
            }
        }
    });
    std::this_thread::sleep_for(thread_test_time);
    stop = true;
    for (std::thread& thread : threads) thread.join();
    reader.join();
    CHECK(wrong == 0);
    heap.ring.clear();
    CHECK(heap.complete_rows() == 0);
    const std::uint64_t before = heap.filled();
    for (std::uint64_t id = 1; id <= 5; ++id) {
        CHECK(add_row(heap, writers.front(), id).first_slot == id - 1);
    }
    CHECK(heap.filled() == before + 5);
}
