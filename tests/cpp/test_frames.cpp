#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "buffer/replay_buffer.hpp"
#include "forked_child.hpp"
#include "format/row_layout.hpp"
#include "ring/planes.hpp"
#include "ring_on_heap.hpp"

using namespace mpbuffer;

namespace {

constexpr std::size_t frame_bytes = 160;
constexpr std::size_t planes = 3;

// A row: a number of its own, a stack and the next one. Frame `n` is full of the bytes of n.
struct Row {
    std::uint64_t id;
    std::byte stack[planes * frame_bytes];
    std::byte next[planes * frame_bytes];
};

Schema schema() {
    return Schema({{"id", 8, 8},
                   {"stack", planes * frame_bytes, 1},
                   {"next_stack", planes * frame_bytes, 1}});
}

RowLayout layout_of(bool last_axis) {
    const PlaneCut cut{1, planes, last_axis, 1};
    return RowLayout(schema(), {PlaneCut(), cut, cut});
}

void draw_frame(std::byte* stack, std::size_t k, std::uint64_t number, bool last_axis) {
    for (std::size_t i = 0; i < frame_bytes; ++i) {
        const auto value = static_cast<std::byte>(number >> (8 * (i % 8)));
        stack[last_axis ? i * planes + k : k * frame_bytes + i] = value;
    }
}

// Row `id` of an episode whose frames are first, first + 1, ...
Row row_of(std::uint64_t id, std::uint64_t first, bool last_axis) {
    Row row;
    row.id = id;
    for (std::size_t k = 0; k < planes; ++k) {
        draw_frame(row.stack, k, first + k, last_axis);
        draw_frame(row.next, k, first + k + 1, last_axis);
    }
    return row;
}

struct Shape {
    std::uint64_t capacity;
    std::uint64_t sources = 0;
    bool prioritized = true;
    bool last_axis = false;
};

std::unique_ptr<ReplayBuffer> create(const ScratchDirectory& scratch, const Shape& wanted) {
    SegmentOptions options;
    options.directory = scratch.path();
    RowLayout layout = layout_of(wanted.last_axis);
    RingShape shape{wanted.capacity, layout.stored_bytes(), wanted.prioritized, 0.6, 1e-4};
    const std::uint64_t sources =
        wanted.sources != 0 ? wanted.sources : frames_for(wanted.capacity, layout.references());
    shape.sources = {{sources, frame_bytes}};
    auto buffer = ReplayBuffer::create({"frames", shape, 7, R"({"fields": []})", options});
    buffer->describe_rows(std::move(layout));
    return buffer;
}

std::unique_ptr<ReplayBuffer> attach(const ScratchDirectory& scratch, bool last_axis = false) {
    SegmentOptions options;
    options.directory = scratch.path();
    auto buffer = ReplayBuffer::attach("frames", options);
    buffer->describe_rows(layout_of(last_axis));
    return buffer;
}

std::uint64_t add(ReplayBuffer& buffer, const std::vector<Row>& rows) {
    const auto* first = reinterpret_cast<const std::byte*>(rows.data());
    const FieldSource fields[] = {
        {first, sizeof(Row), 0, 8},
        {first + offsetof(Row, stack), sizeof(Row), 0, sizeof(Row::stack)},
        {first + offsetof(Row, next), sizeof(Row), 0, sizeof(Row::next)}};
    return buffer.add(rows.size(), fields, nullptr, 0);
}

struct Batch {
    std::vector<std::uint64_t> ids;
    std::vector<std::byte> stacks;
    std::vector<std::byte> nexts;
    std::vector<std::int64_t> indexes;
    std::vector<std::uint64_t> generations;
    std::vector<float> weights;
    std::vector<FieldTarget> fields;

    explicit Batch(std::size_t n)
        : ids(n),
          stacks(n * sizeof(Row::stack)),
          nexts(n * sizeof(Row::next)),
          indexes(n),
          generations(n),
          weights(n),
          fields{{reinterpret_cast<std::byte*>(ids.data()), 0, 8},
                 {stacks.data(), 0, sizeof(Row::stack)},
                 {nexts.data(), 0, sizeof(Row::next)}} {}
    SampleTarget target() { return {fields, indexes.data(), generations.data(), weights.data()}; }
    bool has(std::size_t i, const Row& row) const {
        return ids[i] == row.id &&
               std::memcmp(&stacks[i * sizeof row.stack], row.stack, sizeof row.stack) == 0 &&
               std::memcmp(&nexts[i * sizeof row.next], row.next, sizeof row.next) == 0;
    }
};

}  // namespace

TEST_CASE("a row with frames comes back as it was added") {
    for (const bool last_axis : {false, true}) {
        for (const bool prioritized : {false, true}) {
            const ScratchDirectory scratch;
            const auto buffer = create(scratch, {50, 0, prioritized, last_axis});
            const auto other = attach(scratch, last_axis);
            std::vector<Row> rows;
            for (std::uint64_t i = 0; i < 120; ++i) {
                const std::uint64_t episode = i / 7;
                rows.push_back(row_of(i, 1000 * episode + i, last_axis));
            }
            for (std::uint64_t i = 0; i < 40; ++i) add(*buffer, {rows[i]});
            add(*other, {rows.begin() + 40, rows.begin() + 80});
            add(*buffer, {rows.begin() + 80, rows.end()});
            CHECK(other->stored_size() == 50);
            Batch batch(64);
            for (int times = 0; times < 20; ++times) {
                if (prioritized) {
                    buffer->gather(64, Weighting(0.4, WeightNorm::buffer), batch.target());
                } else {
                    buffer->gather_uniform(64, batch.target());
                }
                for (std::size_t i = 0; i < 64; ++i) {
                    REQUIRE(batch.ids[i] >= 70);
                    REQUIRE(batch.has(i, rows[batch.ids[i]]));
                }
            }
        }
    }
}

TEST_CASE("whole records, their frames among them, come back") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, {16});
    std::vector<Row> rows;
    for (std::uint64_t i = 0; i < 16; ++i) rows.push_back(row_of(i, 5 * i, false));
    std::uint64_t written = 0;
    buffer->add_records(16, reinterpret_cast<const std::byte*>(rows.data()), sizeof(Row), nullptr,
                        0, written);
    CHECK(written == 16);
    Batch batch(16);
    for (std::uint64_t slot = 0; slot < 16; ++slot) {
        CHECK(buffer->read_slot(slot, slot, batch.fields));
        CHECK(batch.has(slot, rows[slot]));
    }
}

TEST_CASE("rows whose frames are gone are no longer there, and the others are exact") {
    for (const bool prioritized : {false, true}) {
        const ScratchDirectory scratch;
        // Each row brings 6 frames of its own.
        const auto buffer = create(scratch, {400, 300, prioritized});
        std::vector<Row> rows;
        for (std::uint64_t i = 0; i < 1000; ++i) rows.push_back(row_of(i, 100 * i, false));
        for (const Row& row : rows) add(*buffer, {row});
        const std::uint64_t size = buffer->stored_size();
        const std::uint64_t kept = 300 - reference_age(400, 300, 6);
        CHECK(size >= kept / 6 - 1);
        CHECK(size <= 300 / 4);  // a row has 4 different frames
        const auto slots = buffer->filled_slots(false);
        CHECK(slots.size() == size);
        Batch all(slots.size());
        CHECK(buffer->read_slots(slots, all.fields) == size);
        for (std::size_t i = 0; i < size; ++i) CHECK(all.has(i, rows[all.ids[i]]));
        Batch batch(256);
        for (int times = 0; times < 5; ++times) {
            if (prioritized) {
                buffer->gather(256, Weighting(0.4, WeightNorm::buffer), batch.target());
            } else {
                buffer->gather_uniform(256, batch.target());
            }
            for (std::size_t i = 0; i < 256; ++i) {
                REQUIRE(batch.ids[i] >= 1000 - size);
                REQUIRE(batch.has(i, rows[batch.ids[i]]));
            }
        }
        CHECK(buffer->statistics().early == 400 - size);
        buffer->clear();
        CHECK(buffer->stored_size() == 0);
        CHECK(buffer->statistics().early == 400 - size);
        add(*buffer, {rows[3]});
        CHECK(buffer->stored_size() == 1);
        CHECK(buffer->read_slot(0, 0, batch.fields));
        CHECK(batch.has(0, rows[3]));
    }
}

TEST_CASE("rows that several handles retire at once are each counted once as early") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, {5000, 300});
    std::vector<std::unique_ptr<ReplayBuffer>> others;
    for (int i = 0; i < 3; ++i) others.push_back(attach(scratch));
    std::uint64_t added = 0;
    for (int round = 0; round < 20 / sanitizer_slowdown + 2; ++round) {
        for (std::uint64_t i = 0; i < 200; ++i, ++added) {
            add(*others[added % 3], {row_of(added, 100 * added, false)});
        }
        std::vector<std::thread> threads;
        for (const auto& other : others) {
            threads.emplace_back([&other] { other->stored_size(); });
        }
        for (std::thread& thread : threads) thread.join();
        const BufferStatistics figures = buffer->statistics();
        CHECK(figures.rows_added == added);
        CHECK(figures.early == added - figures.fill);
        CHECK(figures.early > 0);
        CHECK(figures.sources == 300);
        CHECK(figures.sources_written >= 4 * added);
        CHECK(figures.handles == 4);
    }
}

TEST_CASE("rows that a killed process has retired stay counted, for all") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, {5000, 300});
    for (std::uint64_t i = 0; i < 200; ++i) add(*buffer, {row_of(i, 100 * i, false)});
    ForkedChild child([&buffer](const Channel& parent) {
        parent.tell(buffer->stored_size());
        return stay_until_killed();
    });
    const std::uint64_t size = child.hear();
    child.signal(SIGKILL);
    child.wait();
    const BufferStatistics figures = buffer->statistics();
    CHECK(figures.fill == size);
    CHECK(figures.early == 200 - size);
}

TEST_CASE("a frame that grows too old is written again, and its row stays") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, {64, 80});
    const auto other = attach(scratch);
    const Row still = row_of(1, 0, false);
    std::vector<Row> rows;
    for (std::uint64_t i = 0; i < 3000; ++i) {
        add(*buffer, {still});
        add(*other, {row_of(2 + i, 50 + i, false)});
        Batch batch(1);
        const std::uint64_t newest = buffer->next_slot();
        CHECK(buffer->read_slot((newest + 62) % 64, 0, batch.fields));
        REQUIRE(batch.has(0, still));
    }
}

TEST_CASE("threads of several handles add and draw rows with frames, none mixed") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, {200, 260});
    add(*buffer, {row_of(0, 0, false)});
    constexpr std::uint64_t each = 20'000 / sanitizer_slowdown;
    std::vector<std::thread> threads;
    for (std::uint64_t explorer = 1; explorer <= 2; ++explorer) {
        threads.emplace_back([&scratch, explorer] {
            const auto own = attach(scratch);
            std::mt19937_64 random(explorer);
            std::uint64_t first = explorer << 32;
            for (std::uint64_t i = 0; i < each; ++i) {
                first += random() % 20 == 0 ? 10 : 1;
                // The id tells the frames.
                add(*own, {row_of(first, first, false)});
            }
        });
    }
    Batch batch(32);
    std::uint64_t wrong = 0;
    for (int times = 0; times < 2000 / sanitizer_slowdown; ++times) {
        buffer->gather(32, Weighting(0.4, WeightNorm::buffer), batch.target());
        for (std::size_t i = 0; i < 32; ++i) {
            wrong += !batch.has(i, row_of(batch.ids[i], batch.ids[i], false));
        }
        buffer->gather_uniform(32, batch.target());
        for (std::size_t i = 0; i < 32; ++i) {
            wrong += !batch.has(i, row_of(batch.ids[i], batch.ids[i], false));
        }
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    const auto slots = buffer->filled_slots(false);
    CHECK(slots.size() == buffer->stored_size());
    Batch all(slots.size());
    CHECK(buffer->read_slots(slots, all.fields) == slots.size());
    for (std::size_t i = 0; i < slots.size(); ++i) {
        CHECK(all.has(i, row_of(all.ids[i], all.ids[i], false)));
    }
}

TEST_CASE("planes are interleaved and separated for all sizes") {
    std::mt19937_64 random(3);
    for (const std::size_t size : {1, 2, 3, 4, 8, 12}) {
        for (const std::size_t count : {1, 2, 3, 4, 5, 8}) {
            for (const std::size_t elements : {1, 7, 16, 49}) {
                std::vector<std::byte> value(size * count * elements);
                for (std::byte& each : value) each = static_cast<std::byte>(random());
                std::vector<std::byte> separated(value.size());
                separate(separated.data(), value.data(), count, elements, size);
                std::vector<const std::byte*> from;
                bool right = true;
                for (std::size_t k = 0; k < count; ++k) {
                    from.push_back(&separated[k * elements * size]);
                    for (std::size_t i = 0; i < elements * size; ++i) {
                        right =
                            right && from[k][i] == value[(i / size * count + k) * size + i % size];
                    }
                }
                CHECK(right);
                std::vector<std::byte> again(value.size());
                interleave(again.data(), from, elements, size);
                CHECK(again == value);
            }
        }
    }
}

TEST_CASE("a layout says why fields cannot be cut") {
    CHECK_THROWS_AS(RowLayout(schema(), {PlaneCut(), {2, 1}, PlaneCut()}), InvalidArgument);
    CHECK_THROWS_AS(RowLayout(schema(), {PlaneCut(), {1, 7}, PlaneCut()}), InvalidArgument);
    CHECK_THROWS_AS(RowLayout(schema(), {PlaneCut(), {1, 3}, {1, 1}}), InvalidArgument);
    const RowLayout layout = layout_of(false);
    CHECK(layout.given_bytes() == sizeof(Row));
    CHECK(layout.stored_bytes() == 8 + 8 + 4 * 6);
}

TEST_CASE("a buffer is not attached as one with other frames") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, {16});
    SegmentOptions options;
    options.directory = scratch.path();
    const auto other = ReplayBuffer::attach("frames", options);
    CHECK_THROWS_AS(other->describe_rows(RowLayout(schema())), SegmentMismatch);
}
