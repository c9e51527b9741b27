#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "buffer/replay_buffer.hpp"
#include "forked_child.hpp"

using namespace mpbuffer;

namespace {

struct Row {
    std::uint64_t id;
    std::uint64_t twice;
    static Row of(std::uint64_t id) { return {id, 2 * id}; }
};

constexpr std::uint64_t capacity = 16;

std::unique_ptr<ReplayBuffer> create(const ScratchDirectory& scratch, const std::string& name,
                                     bool hidden = false) {
    SegmentOptions options;
    options.directory = scratch.path();
    const RingShape shape{capacity, sizeof(Row), true, 0.6, 1e-4};
    auto buffer = ReplayBuffer::create({name, shape, 7, "{}", options, hidden});
    buffer->describe_rows(RowLayout(Schema({{"row", sizeof(Row), 8}})));
    return buffer;
}

std::unique_ptr<ReplayBuffer> attach(const ScratchDirectory& scratch, const std::string& name) {
    SegmentOptions options;
    options.directory = scratch.path();
    auto buffer = ReplayBuffer::attach(name, options);
    buffer->describe_rows(RowLayout(Schema({{"row", sizeof(Row), 8}})));
    return buffer;
}

void add(ReplayBuffer& buffer, std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t id = first; id < first + count; ++id) {
        const Row row = Row::of(id);
        const FieldSource field{reinterpret_cast<const std::byte*>(&row), sizeof row, 0,
                                sizeof row};
        const float leaf = static_cast<float>(id);
        buffer.add(1, {&field, 1}, &leaf, static_cast<double>(id));
    }
}

struct Saved {
    std::array<Row, capacity> rows{};
    std::array<std::uint64_t, capacity> seqs{};
    std::array<float, capacity> leaves{};
    FieldTarget target() { return {reinterpret_cast<std::byte*>(rows.data()), 0, sizeof(Row)}; }
    FieldSource source() const {
        return {reinterpret_cast<const std::byte*>(rows.data()), sizeof(Row), 0, sizeof(Row)};
    }
};

Saved saved(const ReplayBuffer& buffer) {
    Saved slots;
    const FieldTarget field = slots.target();
    buffer.read_stored({0, {&field, 1}, nullptr, slots.seqs, slots.leaves.data()});
    return slots;
}

}  // namespace

TEST_CASE("slots are read with their seqs and leaves, empty ones as zeros") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, "saved");
    add(*buffer, 1, 5);
    const Saved slots = saved(*buffer);
    for (std::uint64_t slot = 0; slot < capacity; ++slot) {
        const std::uint64_t id = slot < 5 ? slot + 1 : 0;
        CHECK(slots.rows[slot].id == id);
        CHECK(slots.rows[slot].twice == 2 * id);
        CHECK(slots.seqs[slot] == (id == 0 ? 0 : capacity + slot));
        CHECK(slots.leaves[slot] == static_cast<float>(id));
    }
    buffer->clear();
    CHECK(saved(*buffer).seqs == std::array<std::uint64_t, capacity>{});
}

TEST_CASE("a restored buffer is hidden until it is published, and goes on") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, "saved");
    add(*buffer, 1, 21);
    const Saved slots = saved(*buffer);
    const SavedCounters counters = buffer->counters();
    CHECK(counters.rows.position == capacity + 21);
    const auto again = create(scratch, "again", true);
    CHECK_THROWS_AS(attach(scratch, "again"), SegmentNotFound);
    again->restore_counters(counters);
    const FieldSource field = slots.source();
    again->restore_rows({0, {&field, 1}, nullptr, slots.seqs, slots.leaves.data()});
    again->raise_max_priority(counters.max_priority);
    again->publish();
    const auto attached = attach(scratch, "again");
    CHECK(attached->stored_size() == capacity);
    CHECK(attached->max_priority() == 21);
    const Saved same = saved(*attached);
    CHECK(std::memcmp(&same, &slots, sizeof same) == 0);
    add(*attached, 22, 1);
    CHECK(saved(*again).rows[21 % capacity].id == 22);
}

TEST_CASE("slots of a restore are checked, and nothing is restored into a visible buffer") {
    const ScratchDirectory scratch;
    const auto visible = create(scratch, "visible");
    CHECK_THROWS_AS(visible->restore_counters({{capacity, capacity}, 1, {}}), InvalidArgument);
    const auto hidden = create(scratch, "hidden", true);
    CHECK_THROWS_AS(hidden->restore_counters({{capacity, 1}, 1, {}}), InvalidArgument);
    CHECK_THROWS_AS(hidden->restore_counters({{capacity, std::uint64_t{1} << 60}, 1, {}}),
                    InvalidArgument);
    CHECK_THROWS_AS(hidden->restore_counters({{capacity, capacity}, 1, {capacity}}),
                    InvalidArgument);
    hidden->restore_counters({{capacity, capacity + 3}, 1, {}});
    Saved slots;
    const FieldSource field = slots.source();
    for (const std::uint64_t seq : {std::uint64_t{1}, capacity + 1, capacity + 16}) {
        slots.seqs[0] = seq;
        CHECK_THROWS_AS(
            hidden->restore_rows({0, {&field, 1}, nullptr, slots.seqs, slots.leaves.data()}),
            InvalidArgument);
    }
    CHECK_THROWS_AS(
        hidden->restore_rows({1, {&field, 1}, nullptr, slots.seqs, slots.leaves.data()}),
        IndexOutOfRange);
    CHECK_THROWS_AS(hidden->restore_generator({0, 0, 0, 0}), InvalidArgument);
    CHECK(hidden->stored_size() == 0);
}

TEST_CASE("a generator goes on where its state was taken") {
    Generator one(1, 2, 3);
    one.next();
    Generator other(one.state());
    for (int i = 0; i < 10; ++i) CHECK(one.next() == other.next());
}

TEST_CASE("rows read while another thread writes are whole") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, "racing");
    add(*buffer, 1, capacity);
    std::thread writer([&] { add(*buffer, 17, 20'000); });
    for (int round = 0; round < 300; ++round) {
        const Saved slots = saved(*buffer);
        for (std::uint64_t slot = 0; slot < capacity; ++slot) {
            if (slots.seqs[slot] == 0) continue;
            CHECK(slots.rows[slot].twice == 2 * slots.rows[slot].id);
            CHECK(slots.seqs[slot] == slots.rows[slot].id + capacity - 1);
            CHECK(slots.leaves[slot] == static_cast<float>(slots.rows[slot].id));
        }
    }
    writer.join();
}
