#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "buffer/replay_buffer.hpp"
#include "forked_child.hpp"
#include "os/file_locks.hpp"
#include "ring_on_heap.hpp"
#include "segment/sweep.hpp"

using namespace mpbuffer;

namespace {

struct Row {
    std::uint64_t id;
    std::uint64_t derived[4];

    Row() = default;
    explicit Row(std::uint64_t row_id) : id(row_id) {
        for (std::uint64_t i = 0; i < 4; ++i) derived[i] = row_id * (i + 3);
    }
    bool whole() const {
        const Row expected(id);
        return std::memcmp(this, &expected, sizeof expected) == 0;
    }
};

SegmentOptions in(const ScratchDirectory& scratch) {
    SegmentOptions options;
    options.directory = scratch.path();
    return options;
}

std::unique_ptr<ReplayBuffer> create(const ScratchDirectory& scratch, std::uint64_t capacity,
                                     bool prioritized = true, const std::string& name = "buffer") {
    const RingShape shape{capacity, sizeof(Row), prioritized, 0.6, 1e-4};
    return ReplayBuffer::create({name, shape, 7, R"({"fields": []})", in(scratch)});
}

std::unique_ptr<ReplayBuffer> attach(const ScratchDirectory& scratch,
                                     const std::string& name = "buffer") {
    return ReplayBuffer::attach(name, in(scratch));
}

// Adds rows first_id, first_id + 1, ... Allocates nothing: a sanitizer's allocator, locked by
// another thread at a fork, stays locked in the child.
std::uint64_t add(ReplayBuffer& buffer, std::uint64_t first_id, std::uint64_t count = 1,
                  const float* leaves = nullptr, double largest_priority = 0) {
    std::array<Row, 1000> rows;
    if (count > rows.size()) throw std::length_error("too many rows for one call");
    for (std::uint64_t i = 0; i < count; ++i) rows[i] = Row(first_id + i);
    const FieldSource source{reinterpret_cast<const std::byte*>(rows.data()), sizeof(Row), 0,
                             sizeof(Row)};
    return buffer.add(count, {&source, 1}, leaves, largest_priority);
}

struct Batch {
    std::vector<Row> rows;
    std::vector<std::int64_t> indexes;
    std::vector<std::uint64_t> generations;
    std::vector<float> weights;
    FieldTarget field;

    explicit Batch(std::size_t count)
        : rows(count),
          indexes(count),
          generations(count),
          weights(count),
          field{reinterpret_cast<std::byte*>(rows.data()), 0, sizeof(Row)} {}
    SampleTarget target() {
        return {{&field, 1}, indexes.data(), generations.data(), weights.data()};
    }
    bool whole() const {
        return std::all_of(rows.begin(), rows.end(),
                           [](const Row& row) { return row.id != 0 && row.whole(); });
    }
};

bool sample_uniform(ReplayBuffer& buffer, Batch& batch) {
    buffer.gather_uniform(batch.rows.size(), batch.target());
    return batch.whole();
}

bool sample(ReplayBuffer& buffer, Batch& batch) {
    buffer.gather(batch.rows.size(), 0.4, batch.target());
    return batch.whole();
}

std::uint64_t size(ReplayBuffer& buffer) { return buffer.stored_size(); }

void clear(ReplayBuffer& buffer) { buffer.clear(); }

void close(ReplayBuffer& buffer) { buffer.close(); }

// The ids of all complete rows, and whether each row is whole.
std::set<std::uint64_t> ids(ReplayBuffer& buffer) {
    std::set<std::uint64_t> all;
    for (const std::uint64_t slot : buffer.filled_slots(false)) {
        Row row{};
        const FieldTarget field{reinterpret_cast<std::byte*>(&row), 0, sizeof row};
        if (!buffer.read_slot(slot, 0, {&field, 1})) continue;
        CHECK(row.whole());
        all.insert(row.id);
    }
    return all;
}

std::string busy_message(ReplayBuffer& buffer) {
    try {
        buffer.take_learner_role();
    } catch (const LearnerBusy& busy) {
        return busy.what();
    }
    return "";
}

bool becomes_learner(ReplayBuffer& buffer) { return busy_message(buffer).empty(); }

// The segment beneath a buffer, to write states into it that only a death would leave.
class RawView {
  public:
    explicit RawView(const ReplayBuffer& buffer) {
        SegmentHeader header;
        REQUIRE(pread(buffer.data_descriptor(), &header, sizeof header, 0) == sizeof header);
        bytes_ = header.total_bytes;
        void* const memory =
            mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, buffer.data_descriptor(), 0);
        REQUIRE(memory != MAP_FAILED);
        base = static_cast<std::byte*>(memory);
        ring = SlotRing(base, header.ring[0]);
        counters = &ring.counters();
        table = ProcessTable(base + header.process_table_offset, header.max_handles);
        line = reinterpret_cast<SharedRoleLine*>(base + header.role_line_offset);
    }
    RawView(const RawView&) = delete;
    RawView& operator=(const RawView&) = delete;
    ~RawView() { munmap(base, bytes_); }

    unsigned number_of(pid_t pid) const {
        for (unsigned number = 1; number <= table.high_water(); ++number) {
            if (table.record(number).pid == static_cast<std::uint64_t>(pid)) return number;
        }
        return 0;
    }
    RingWriter writer(unsigned number) const {
        ProcessRecord& record = table.record(number);
        RingState& state = record.ring[0];
        return {number, record.epoch, &state.rows, &state.skips, &state.steals, &state.busy};
    }
    std::uint64_t complete_rows() const {
        std::uint64_t rows = 0;
        for (std::uint64_t slot = 0; slot < ring.capacity(); ++slot) {
            const std::uint64_t word = ring.word(slot);
            rows += slot_word::is_committed(word) && slot_word::seq(word) >= ring.clear_before();
        }
        return rows;
    }

    std::byte* base = nullptr;
    RingCounters* counters = nullptr;
    SlotRing ring;
    ProcessTable table;
    SharedRoleLine* line = nullptr;

  private:
    std::size_t bytes_ = 0;
};

enum class Step { busy, position, claim, half_a_copy, commit, raise, cleared };
constexpr Step all_steps[] = {Step::busy,   Step::position, Step::claim,  Step::half_a_copy,
                              Step::commit, Step::raise,    Step::cleared};

// The steps of add(), or of clear(), by hand, up to `last`.
void work_until(const RawView& raw, unsigned number, Step last, std::uint64_t id) {
    SlotRing ring = raw.ring;
    const RingWriter writer = raw.writer(number);
    if (last == Step::cleared) {
        ring.clear();
        return;
    }
    writer.busy->store(writer.epoch);
    if (last == Step::busy) return;
    const std::uint64_t filled = raw.counters->filled;
    const auto [seq, end] = ring.take_positions(1, ring.clear_before());
    if (last == Step::position || seq == end) return;
    bool fresh = false;
    const std::uint64_t slot = seq % ring.capacity();
    const bool claimed =
        ring.claim(slot, seq, ring.clear_before(), writer, everybody_is_dead, fresh);
    if (!claimed || last == Step::claim) return;
    const Row row(id);
    const std::size_t bytes = last == Step::half_a_copy ? sizeof row / 2 : sizeof row;
    std::memcpy(ring.record(slot), &row, bytes);
    if (last == Step::half_a_copy) return;
    ring.commit(slot, seq, 1.0F);
    if (last == Step::commit) return;
    if (fresh) ring.raise_filled(filled, 1);
}

// A process with an identity of its own (by an inherited handle) that stops at a step.
std::unique_ptr<ForkedChild> child_at(ReplayBuffer& buffer, const RawView& raw, Step step,
                                      std::uint64_t id) {
    auto child = std::make_unique<ForkedChild>([&buffer, &raw, step, id](const Channel& parent) {
        add(buffer, id);
        const unsigned number = raw.number_of(getpid());
        if (number == 0) return 1;
        work_until(raw, number, step, id + 1);
        parent.tell(number);
        return stay_until_killed();
    });
    return child;
}

char state_of(ReplayBuffer& buffer, pid_t pid) {
    for (const ProcessStatus& process : buffer.processes()) {
        if (process.pid == static_cast<std::uint64_t>(pid)) return process.state;
    }
    return '-';
}

}  // namespace

TEST_CASE("what one handle adds another one reads") {
    const ScratchDirectory scratch;
    {
        const auto buffer = create(scratch, 8);
        const auto other = attach(scratch);
        CHECK(other->capacity() == 8);
        CHECK(other->prioritized());
        CHECK(other->description() == R"({"fields": []})");
        CHECK(other->name() == "buffer");
        CHECK(other->shape().row_bytes == sizeof(Row));
        CHECK(add(*buffer, 1, 3) == 0);
        CHECK(add(*other, 4, 2) == 3);
        for (ReplayBuffer* const each : {buffer.get(), other.get()}) {
            CHECK(size(*each) == 5);
            CHECK(each->next_slot() == 5);
            CHECK(each->rows_added() == 5);
            CHECK(ids(*each) == std::set<std::uint64_t>{1, 2, 3, 4, 5});
            Batch batch(64);
            CHECK(sample_uniform(*each, batch));
        }
        const std::vector<ProcessStatus> processes = buffer->processes();
        REQUIRE(processes.size() == 2);
        CHECK(processes[0].number != processes[1].number);
        CHECK(processes[0].rows + processes[1].rows == 5);
        for (const ProcessStatus& process : processes) {
            CHECK(process.pid == static_cast<std::uint64_t>(getpid()));
        }
        close(*buffer);
        CHECK_FALSE(scratch.is_empty());
        CHECK(add(*other, 6) == 5);
    }
    CHECK(scratch.is_empty());
}

TEST_CASE("a closed handle says so, whatever it is asked") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 8);
    add(*buffer, 1);
    close(*buffer);
    close(*buffer);
    CHECK_FALSE(buffer->is_open());
    CHECK(scratch.is_empty());
    Batch batch(1);
    CHECK_THROWS_AS(add(*buffer, 1), BufferClosed);
    CHECK_THROWS_AS(clear(*buffer), BufferClosed);
    CHECK_THROWS_AS(sample_uniform(*buffer, batch), BufferClosed);
    CHECK_THROWS_AS(sample(*buffer, batch), BufferClosed);
    CHECK_THROWS_AS(buffer->filled_slots(false), BufferClosed);
    CHECK_THROWS_AS(buffer->read_slot(0, 0, {}), BufferClosed);
    CHECK_THROWS_AS((void)size(*buffer), BufferClosed);
    CHECK_THROWS_AS((void)buffer->next_slot(), BufferClosed);
    CHECK_THROWS_AS((void)buffer->max_priority(), BufferClosed);
    CHECK_THROWS_AS((void)buffer->rows_added(), BufferClosed);
    CHECK_THROWS_AS((void)buffer->processes(), BufferClosed);
    CHECK_THROWS_AS((void)buffer->learner_status(), BufferClosed);
    CHECK_THROWS_AS((void)buffer->leaves(), BufferClosed);
    CHECK_THROWS_AS((void)buffer->total(), BufferClosed);
    CHECK_THROWS_AS((void)buffer->data_descriptor(), BufferClosed);
    CHECK_THROWS_WITH_AS(buffer->take_learner_role(), "cannot use 'buffer': this handle was closed",
                         BufferClosed);
    CHECK_NOTHROW(buffer->release_learner());
    CHECK(buffer->name() == "buffer");
}

TEST_CASE("names: taken, missing, foreign") {
    const ScratchDirectory scratch;
    CHECK_THROWS_AS((void)attach(scratch), SegmentNotFound);
    const auto buffer = create(scratch, 8);
    CHECK_THROWS_AS((void)create(scratch, 8), SegmentExists);
    const int fd = open(scratch.file("foreign").c_str(), O_CREAT | O_RDWR, 0600);
    REQUIRE(fd >= 0);
    REQUIRE(ftruncate(fd, 1 << 20) == 0);
    ::close(fd);
    CHECK_THROWS_AS((void)attach(scratch, "foreign"), SegmentMismatch);
    CHECK(unlink(scratch.file("foreign").c_str()) == 0);
    CHECK_THROWS_AS((void)create(scratch, 0, true, "none"), InvalidArgument);
    close(*buffer);
    CHECK(scratch.is_empty());
}

TEST_CASE("a descriptor opens the same buffer, also when its name is gone") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 8);
    add(*buffer, 1, 3);
    REQUIRE(unlink(scratch.file("buffer").c_str()) == 0);
    const auto other =
        ReplayBuffer::attach_descriptor(buffer->data_descriptor(), "buffer", in(scratch));
    CHECK(size(*other) == 3);
    add(*other, 4);
    CHECK(ids(*buffer).size() == 4);
}

TEST_CASE("stored size, from empty to full and after clears") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 5);
    const auto other = attach(scratch);
    std::uint64_t id = 0;
    for (int round = 0; round < 3; ++round) {
        for (std::uint64_t expected = 0; expected <= 12; ++expected) {
            for (ReplayBuffer* const each : {buffer.get(), other.get()}) {
                REQUIRE(size(*each) == std::min<std::uint64_t>(expected, 5));
            }
            add(expected % 2 == 0 ? *buffer : *other, ++id);
        }
        clear(round % 2 == 0 ? *buffer : *other);
        CHECK(buffer->next_slot() == 0);
    }
    CHECK(size(*attach(scratch)) == 0);
}

TEST_CASE("uniform samples") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 10, false);
    Batch batch(100);
    CHECK_THROWS_WITH_AS(sample_uniform(*buffer, batch),
                         "cannot sample from 'buffer': no rows have been added", EmptyBuffer);
    CHECK(buffer->leaves().empty());
    add(*buffer, 1, 10);
    add(*buffer, 11, 4);
    std::map<std::uint64_t, double> hits;
    constexpr int batches = 300;
    for (int i = 0; i < batches; ++i) {
        REQUIRE(sample_uniform(*buffer, batch));
        for (std::size_t row = 0; row < 100; ++row) {
            ++hits[batch.rows[row].id];
            REQUIRE(batch.indexes[row] == std::int64_t((batch.rows[row].id - 1) % 10));
            REQUIRE(batch.generations[row] == batch.rows[row].id + 9);
        }
    }
    CHECK(hits.size() == 10);
    double chi_square = 0;
    for (const auto& [id, count] : hits) {
        chi_square += (count - 10.0 * batches) * (count - 10.0 * batches) / (10.0 * batches);
    }
    CHECK(chi_square < 40);  // 9 degrees of freedom: 1e-5
    clear(*buffer);
    CHECK_THROWS_AS(sample_uniform(*buffer, batch), EmptyBuffer);
    add(*buffer, 100);
    CHECK(sample_uniform(*buffer, batch));
    for (const Row& row : batch.rows) CHECK(row.id == 100);
}

TEST_CASE("uniform samples leave out what is being written; with nothing else they end") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 64, false);
    Batch batch(20);
    {
        const RawView raw(*buffer);
        raw.counters->cursor += 63;  // positions that nobody has claimed yet
        CHECK_THROWS_WITH_AS(
            sample_uniform(*buffer, batch),
            "cannot sample from 'buffer': no row is complete: every slot is empty or being written",
            EmptyBuffer);
        add(*buffer, 7);
        CHECK(sample_uniform(*buffer, batch));  // one row of 64 positions: found by a scan
        for (const Row& row : batch.rows) CHECK(row.id == 7);
        raw.ring.word(63) = slot_word::claimed(500, 900, 1, false);
        CHECK_THROWS_AS(sample_uniform(*buffer, batch), EmptyBuffer);
        Row row{};
        const FieldTarget field{reinterpret_cast<std::byte*>(&row), 0, sizeof row};
        CHECK_FALSE(buffer->read_slot(63, 0, {&field, 1}));
        CHECK_FALSE(buffer->read_slot(0, 0, {&field, 1}));
    }
}

TEST_CASE("two handles draw differently; the same process number and seed draw the same") {
    const ScratchDirectory scratch;
    std::vector<std::int64_t> draws[2];
    for (auto& drawn : draws) {
        const auto buffer = create(scratch, 1000, false);
        add(*buffer, 1, 1000);
        const auto other = attach(scratch);
        Batch mine(50);
        Batch theirs(50);
        sample_uniform(*buffer, mine);
        sample_uniform(*other, theirs);
        CHECK(mine.indexes != theirs.indexes);
        drawn = mine.indexes;
    }
    CHECK(draws[0] == draws[1]);
}

TEST_CASE("filled slots, in order and shuffled") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 100);
    add(*buffer, 1, 60);
    const std::vector<std::uint64_t> ordered = buffer->filled_slots(false);
    std::vector<std::uint64_t> shuffled = buffer->filled_slots(true);
    CHECK(ordered.size() == 60);
    CHECK(std::is_sorted(ordered.begin(), ordered.end()));
    CHECK(shuffled != ordered);
    std::sort(shuffled.begin(), shuffled.end());
    CHECK(shuffled == ordered);
}

TEST_CASE("leaves of added rows: given ones, or that of the largest priority") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 8);
    const PriorityRule rule = buffer->priority_rule();
    CHECK(rule.alpha == 0.6);
    CHECK(rule.eps == 1e-4);
    CHECK(buffer->max_priority() == 1.0);
    const float given[] = {rule.leaf(4.0), rule.leaf(2.0)};
    add(*buffer, 1);
    add(*buffer, 2, 2, given, 4.0);
    CHECK(buffer->max_priority() == 4.0);
    add(*buffer, 4);
    Batch batch(8);
    CHECK(sample(*buffer, batch));
    const std::vector<float> leaves = buffer->leaves();
    CHECK(leaves == std::vector<float>{rule.leaf(1.0), rule.leaf(4.0), rule.leaf(2.0),
                                       rule.leaf(4.0), 0, 0, 0, 0});
    clear(*buffer);
    CHECK(buffer->max_priority() == 1.0);
    add(*buffer, 5);
    CHECK(sample(*buffer, batch));
    CHECK(buffer->leaves()[0] == rule.leaf(1.0));
}

TEST_CASE("a status that is half published is never returned for a whole one") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 8);
    add(*buffer, 1, 8);
    ForkedChild learner([&](const Channel& parent) {
        if (!becomes_learner(*buffer)) return 1;
        parent.tell();
        return stay_until_killed();
    });
    learner.hear();
    const RawView raw(*buffer);
    CHECK(buffer->learner_status().figures.sampleable == 8);
    auto* const words = reinterpret_cast<std::atomic<std::uint64_t>*>(raw.line);
    auto& sequence = words[0];
    sequence += 1;  // as if it had been stopped in the middle
    words[1 + (offsetof(RoleLine, figures) + offsetof(LearnerFigures, total)) / 8] =
        std::bit_cast<std::uint64_t>(12345.0);
    CHECK_THROWS_WITH_AS((void)buffer->learner_status(),
                         doctest::Contains("stands still in the middle"), LearnerBusy);
    sequence += 1;
    CHECK(buffer->learner_status().figures.total == 12345);
    sequence += 1;
    learner.signal(SIGKILL);
    learner.wait();
    const RoleLine none = buffer->learner_status();
    CHECK(none.holder.process == 0);
    CHECK(none.figures.total == 0);
    CHECK(none.figures.folded == 0);
    CHECK(becomes_learner(*buffer));
    CHECK(buffer->learner_status().figures.sampleable == 8);
}

TEST_CASE("a buffer whose first priority has no leaf is refused") {
    const ScratchDirectory scratch;
    const RingShape shape{8, 64, true, 1.0, 1e39};
    CHECK_THROWS_WITH_AS((void)ReplayBuffer::create({"wide", shape, 1, "{}", in(scratch)}),
                         doctest::Contains("with alpha 1 and eps 1e+39"), InvalidArgument);
    CHECK(scratch.is_empty());
}

TEST_CASE("the learner's role goes from hand to hand, and the priorities with it") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 8);
    const auto other = attach(scratch);
    add(*buffer, 1, 8);
    CHECK(buffer->learner_status().holder.process == 0);
    Batch batch(32);
    CHECK(sample(*buffer, batch));
    CHECK(buffer->is_learner());
    const std::string busy = busy_message(*other);
    CHECK(busy.find("process 1 (pid " + std::to_string(getpid()) + ", ") != std::string::npos);
    CHECK(busy.find(" UTC") != std::string::npos);
    CHECK_FALSE(other->is_learner());
    const RoleLine status = other->learner_status();
    CHECK(status.holder.process == 1);
    CHECK(status.holder.pid == static_cast<std::uint64_t>(getpid()));
    CHECK(status.figures.folded == 16);
    CHECK(status.figures.sampleable == 8);
    CHECK(status.figures.draws == 32);
    {
        const std::int64_t slot = batch.indexes[0];
        const double priority = 99;
        const float leaf = 99;
        CHECK(buffer->update({&slot, 1}, {}, {&priority, 1}, {&leaf, 1}) == 0);
    }
    const std::vector<float> leaves = buffer->leaves();
    buffer->release_learner();
    CHECK_FALSE(buffer->is_learner());
    CHECK(other->learner_status().holder.process == 0);
    CHECK(becomes_learner(*other));
    CHECK(other->leaves() == leaves);
    CHECK(other->max_priority() == 99);
    CHECK_FALSE(becomes_learner(*buffer));
    close(*other);
    CHECK(becomes_learner(*buffer));
    CHECK(buffer->leaves() == leaves);
}

TEST_CASE("who is just taking the role is not told by the name of a killed predecessor") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 8);
    ForkedChild learner([&](const Channel& parent) {
        parent.tell(becomes_learner(*buffer));
        return stay_until_killed();
    });
    CHECK(learner.hear() == 1);
    CHECK(busy_message(*buffer).find("pid " + std::to_string(learner.pid())) != std::string::npos);
    learner.kill_to_zombie();
    const int successor = open_lock_descriptor(buffer->data_descriptor());
    CHECK(comes_true([&] { return try_lock(successor, lock_byte::role, LockKind::exclusive); }));
    CHECK(busy_message(*buffer).find("another process is just becoming the learner") !=
          std::string::npos);
    const auto number_again = attach(scratch);  // while the line still names that number
    CHECK(busy_message(*buffer).find("another process is just becoming the learner") !=
          std::string::npos);
    ::close(successor);
    CHECK(becomes_learner(*buffer));
}

TEST_CASE("a uniform buffer has no learner") {
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 8, false);
    add(*buffer, 1, 8);
    CHECK_THROWS_AS(buffer->take_learner_role(), InvalidArgument);
    CHECK_FALSE(buffer->is_learner());
    const auto other = attach(scratch);  // the header is what it was
    CHECK(size(*other) == 8);
}

TEST_CASE("a forked child has an identity of its own, and never its parent's role") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 1000);
    add(*buffer, 1, 10);
    CHECK(becomes_learner(*buffer));
    ForkedChild child([&](const Channel& parent) {
        if (buffer->is_learner()) return 1;
        const std::string busy = busy_message(*buffer);
        if (busy.find("pid " + std::to_string(getppid()) + ",") == std::string::npos) return 2;
        for (std::uint64_t i = 0; i < 10; ++i) add(*buffer, 1000 + i * 5, 5);
        Batch batch(20);
        if (!sample_uniform(*buffer, batch)) return 3;
        parent.tell();
        parent.hear();
        // The parent has given the role up.
        if (!becomes_learner(*buffer)) return 4;
        if (!sample(*buffer, batch)) return 5;
        parent.tell();
        return stay_until_killed();
    });
    for (std::uint64_t i = 0; i < 10; ++i) add(*buffer, 2000 + i * 5, 5);
    child.hear();
    CHECK(size(*buffer) == 110);
    CHECK(ids(*buffer).size() == 110);
    std::map<std::uint64_t, std::set<unsigned>> numbers;
    for (const ProcessStatus& process : buffer->processes()) {
        numbers[process.pid].insert(process.number);
        CHECK(process.rows == (process.number == 1 ? 60 : 50));
    }
    CHECK(numbers.size() == 2);
    CHECK(numbers[static_cast<std::uint64_t>(getpid())] == std::set<unsigned>{1});
    CHECK(numbers[static_cast<std::uint64_t>(child.pid())].size() == 1);
    CHECK(buffer->is_learner());
    Batch batch(64);
    CHECK(sample(*buffer, batch));

    buffer->release_learner();
    child.tell();
    child.hear();
    const std::string busy = busy_message(*buffer);
    CHECK(busy.find("pid " + std::to_string(child.pid()) + ",") != std::string::npos);
    child.kill_to_zombie();
    CHECK(comes_true([&] { return becomes_learner(*buffer); }));
    CHECK(sample(*buffer, batch));
    CHECK(state_of(*buffer, child.pid()) == '-');
}

TEST_CASE("a child that never uses its copy keeps none of its dead parent's locks") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 16);
    ForkedChild owner([&](const Channel& test) {
        const auto mine = attach(scratch);
        add(*mine, 1, 4);
        if (!becomes_learner(*mine)) return 1;
        ForkedChild idle([&](const Channel&) {
            prctl(PR_SET_PDEATHSIG, 0);
            return stay_until_killed();
        });
        test.tell(static_cast<std::uint64_t>(idle.pid()));
        return stay_until_killed();
    });
    const auto idle = static_cast<pid_t>(owner.hear());
    CHECK_FALSE(becomes_learner(*buffer));
    CHECK(state_of(*buffer, owner.pid()) != '-');
    owner.kill_to_zombie();
    CHECK(comes_true([&] { return state_of(*buffer, owner.pid()) == '-'; }));
    CHECK(comes_true([&] { return becomes_learner(*buffer); }));
    CHECK(kill(idle, 0) == 0);
    close(*buffer);
    // The idle grandchild still has the mapping, so the name stays.
    CHECK_FALSE(scratch.is_empty());
    kill(idle, SIGKILL);
    CHECK(comes_true([&] { return !sweep_segments(scratch.path()).empty(); }));
    CHECK(scratch.is_empty());
}

TEST_CASE("a child that closes its unused copy takes nothing from its parent") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 16);
    const auto watching = attach(scratch);
    add(*buffer, 1, 4);
    CHECK(becomes_learner(*buffer));
    for (const bool used : {false, true}) {
        ForkedChild child([&](const Channel&) {
            if (used) add(*buffer, 100);
            close(*buffer);
            close(*watching);
            return buffer->is_open() ? 1 : 0;
        });
        CHECK(child.wait() == 0);
        CHECK_FALSE(scratch.is_empty());
        CHECK(buffer->is_learner());
        CHECK_FALSE(becomes_learner(*watching));
        CHECK(watching->processes().size() == 2);
    }
    add(*buffer, 200);
    CHECK(size(*watching) == 6);
}

TEST_CASE("the child may be the last one out") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    auto buffer = create(scratch, 16);
    ForkedChild child([&](const Channel& parent) {
        parent.hear();
        add(*buffer, 5);
        if (ids(*buffer) != std::set<std::uint64_t>{5}) return 1;
        close(*buffer);
        return scratch.is_empty() ? 0 : 2;
    });
    buffer.reset();
    CHECK_FALSE(scratch.is_empty());
    child.tell();
    CHECK(child.wait() == 0);
    CHECK(scratch.is_empty());
}

TEST_CASE("forks while other threads of the parent add and sample") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 4096);
    const auto other = attach(scratch);
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> torn{0};
    std::vector<std::thread> threads;
    add(*buffer, 1, 100);
    REQUIRE(becomes_learner(*buffer));
    for (unsigned i = 0; i < 2; ++i) {
        threads.emplace_back([&, i] {
            ReplayBuffer& mine = i == 0 ? *buffer : *other;
            for (std::uint64_t id = (i + 1ull) << 32; !stop; id += 7) add(mine, id, 7);
        });
    }
    threads.emplace_back([&] {
        Batch batch(16);
        while (!stop) torn += sample(*buffer, batch) ? 0 : 1;
    });
    const unsigned forks = 10;
    for (unsigned round = 0; round < forks; ++round) {
        ForkedChild child([&](const Channel&) {
            Batch batch(32);
            for (std::uint64_t id = (round + 10ull) << 32, i = 0; i < 20; ++i, id += 5) {
                add(round % 2 == 0 ? *buffer : *other, id, 5);
                if (!sample_uniform(*buffer, batch)) return 1;
            }
            if (buffer->is_learner() || becomes_learner(*buffer)) return 2;
            (void)size(*buffer);
            close(*buffer);
            close(*other);
            return 0;
        });
        REQUIRE(child.wait() == 0);
    }
    stop = true;
    for (std::thread& thread : threads) thread.join();
    CHECK(torn == 0);
    CHECK(ids(*buffer).size() == size(*buffer));
    CHECK(buffer->rows_added() ==
          std::uint64_t{buffer->processes()[0].rows} + buffer->processes()[1].rows + forks * 100);
    CHECK(buffer->processes().size() == 2);  // the ended are gone, and their rows are not
}

TEST_CASE("a forked child's first calls may come from several threads") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 256);
    add(*buffer, 1, 64);
    for (int round = 0; round < 10; ++round) {
        ForkedChild child([&](const Channel&) {
            std::atomic<int> ready{0};
            std::atomic<int> wrong{0};
            const auto at_once = [&ready] {
                ++ready;
                while (ready < 3) {
                }
            };
            std::thread adding([&] {
                at_once();
                add(*buffer, 1000, 10);
            });
            std::thread drawing([&] {
                Batch batch(8);
                at_once();
                if (!sample_uniform(*buffer, batch)) ++wrong;
            });
            std::thread asking([&] {
                at_once();
                if (buffer->processes().empty()) ++wrong;
                {
                    (void)buffer->learner_status();
                }
            });
            adding.join();
            drawing.join();
            asking.join();
            int mine = 0;
            for (const ProcessStatus& process : buffer->processes()) {
                if (process.pid == static_cast<std::uint64_t>(getpid())) {
                    ++mine;
                    if (process.rows != 10) ++wrong;
                }
            }
            return mine == 1 && wrong == 0 ? 0 : 1;
        });
        REQUIRE(child.wait() == 0);
    }
    CHECK(size(*buffer) == 64 + 100);
}

TEST_CASE("threads that gather beside one that adds, updates, clears and hands the role over") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 128);
    add(*buffer, 1, 128);
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> wrong{0};
    std::atomic<std::uint64_t> gathered{0};
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 2; ++i) {
        threads.emplace_back([&, i] {
            Batch batch(64);
            while (!stop) {
                try {
                    if (i == 0) {
                        buffer->gather(batch.rows.size(), 0.4, batch.target());
                    } else {
                        buffer->gather_uniform(batch.rows.size(), batch.target());
                    }
                } catch (const EmptyBuffer&) {
                    continue;  // just cleared
                }
                gathered += 1;
                for (std::size_t k = 0; k < batch.rows.size(); ++k) {
                    if (!batch.rows[k].whole()) ++wrong;
                    if (batch.generations[k] % 128 != static_cast<std::uint64_t>(batch.indexes[k]))
                        ++wrong;
                    if (i == 0 && !(batch.weights[k] > 0 && batch.weights[k] <= 1)) ++wrong;
                }
            }
        });
    }
    threads.emplace_back([&] {
        std::vector<std::int64_t> slots(32);
        std::vector<double> priorities(32);
        std::vector<float> leaves(32);
        std::uint64_t id = 1000;
        for (std::uint64_t round = 0; !stop; ++round) {
            add(*buffer, id, 40);
            id += 40;
            for (std::size_t k = 0; k < slots.size(); ++k) {
                slots[k] = static_cast<std::int64_t>((round * 7 + k * 5) % 128);
                priorities[k] = static_cast<double>(1 + k);
                leaves[k] = static_cast<float>(1 + k);
            }
            (void)buffer->update(slots, {}, priorities, leaves);
            if (round % 16 == 0) buffer->release_learner();
        }
    });
    threads.emplace_back([&] {
        while (!stop) {
            std::this_thread::sleep_for(std::chrono::milliseconds(3));
            clear(*buffer);
            add(*buffer, 500, 64);
        }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    stop = true;
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(gathered > 0);
    Batch batch(256);
    CHECK(sample(*buffer, batch));
    const std::vector<float> leaves = buffer->leaves();
    double sum = 0;
    for (const float leaf : leaves) sum += double{leaf};
    CHECK(buffer->total() == doctest::Approx(sum).epsilon(1e-12));
}

TEST_CASE("priorities that a thread reads beside the learner are those of its rows") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    constexpr std::uint64_t capacity = 16;
    const auto buffer = create(scratch, capacity);
    const auto first = [](std::uint64_t id) { return 1.0 + static_cast<double>(id % 97); };
    const auto updated = [](std::uint64_t id) { return 1000.0 + static_cast<double>(id % 89); };
    const auto about = [](double one, double other) { return std::abs(one / other - 1) < 1e-4; };
    const PriorityRule rule = buffer->priority_rule();
    const auto add_row = [&](std::uint64_t id) {
        const float leaf = rule.leaf(first(id));
        add(*buffer, id, 1, &leaf, first(id));
    };
    for (std::uint64_t id = 1; id <= capacity; ++id) add_row(id);
    std::atomic<bool> over = false;
    std::atomic<int> cycles = 0;
    std::thread explorer([&] {
        for (std::uint64_t id = capacity + 1; !over; ++id) add_row(id);
    });
    std::thread learner([&] {
        Batch batch(8);
        while (!over) {
            try {
                sample(*buffer, batch);
            } catch (const EmptyBuffer&) {
                continue;
            }
            std::vector<double> priorities;
            std::vector<float> leaves;
            for (const Row& row : batch.rows) {
                priorities.push_back(updated(row.id));
                leaves.push_back(rule.leaf(updated(row.id)));
            }
            buffer->update(batch.indexes, batch.generations, priorities, leaves);
            ++cycles;
        }
    });
    std::uint64_t seen = 0;
    std::uint64_t wrong = 0;
    while (cycles < 20'000 / sanitizer_slowdown) {
        RowMarks marks;
        std::array<Row, capacity> rows;
        const FieldTarget field{reinterpret_cast<std::byte*>(rows.data()), 0, sizeof(Row)};
        const std::size_t count = buffer->read_all(
            false, [&](std::size_t) { return std::span<const FieldTarget>(&field, 1); }, {},
            &marks);
        for (std::size_t i = 0; i < count; ++i) {
            ++seen;
            const double priority = marks.priorities[i];
            const std::uint64_t id = rows[i].id;
            if (!about(priority, first(id)) && !about(priority, updated(id))) ++wrong;
        }
    }
    over = true;
    explorer.join();
    learner.join();
    CHECK(seen > 0);
    CHECK(wrong == 0);
}

TEST_CASE("large batches, copied by several threads, beside one that adds") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    constexpr std::size_t words = 2048;
    constexpr std::size_t count = 400;  // 6.5 MB
    const RingShape shape{64, words * 8, true, 0.6, 1e-4};
    const auto buffer = ReplayBuffer::create({"large", shape, 7, R"({"fields": []})", in(scratch)});
    const auto add_row = [&](std::uint64_t id) {
        static std::array<std::uint64_t, words> row;
        row.fill(id);
        const FieldSource source{reinterpret_cast<const std::byte*>(row.data()), sizeof row, 0,
                                 sizeof row};
        (void)buffer->add(1, {&source, 1}, nullptr, 0);
    };
    for (std::uint64_t id = 0; id < 64; ++id) add_row(id);
    std::atomic<bool> stop{false};
    std::thread explorer([&] {
        for (std::uint64_t id = 64; !stop; ++id) add_row(id);
    });
    std::vector<std::uint64_t> rows(count * words);
    std::vector<std::int64_t> indexes(count);
    std::vector<std::uint64_t> generations(count);
    std::vector<float> weights(count);
    const FieldTarget field{reinterpret_cast<std::byte*>(rows.data()), 0, words * 8};
    for (int round = 0; round < 10; ++round) {
        if (round % 2 == 0) {
            buffer->gather(count, 0.4,
                           {{&field, 1}, indexes.data(), generations.data(), weights.data()});
        } else {
            buffer->gather_uniform(count,
                                   {{&field, 1}, indexes.data(), generations.data(), nullptr});
        }
        for (std::size_t k = 0; k < count; ++k) {
            const std::uint64_t* row = rows.data() + k * words;
            const bool whole =
                std::all_of(row, row + words, [row](auto word) { return word == *row; });
            REQUIRE(whole);
            REQUIRE(*row % 64 == static_cast<std::uint64_t>(indexes[k]));
            REQUIRE(generations[k] % 64 == *row % 64);
        }
        std::fill(rows.begin(), rows.end(), ~std::uint64_t{0});
    }
    stop = true;
    explorer.join();
}

TEST_CASE("a handle is closed while threads gather") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    for (int round = 0; round < 20; ++round) {
        const auto buffer = create(scratch, 1000);
        add(*buffer, 1, 1000);
        std::atomic<int> refused{0};
        std::vector<std::thread> threads;
        for (unsigned i = 0; i < 2; ++i) {
            threads.emplace_back([&, i] {
                Batch batch(512);
                try {
                    for (;;) {
                        if (i == 0) {
                            buffer->gather(batch.rows.size(), 0.4, batch.target());
                        } else {
                            buffer->gather_uniform(batch.rows.size(), batch.target());
                        }
                        if (!batch.whole()) return;
                    }
                } catch (const BufferClosed&) {
                    ++refused;
                }
            });
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(round % 5));
        close(*buffer);
        for (std::thread& thread : threads) thread.join();
        CHECK(refused == 2);
    }
}

TEST_CASE("one handle in several threads") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 512);
    add(*buffer, 1, 64);
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> wrong{0};
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 2; ++i) {
        threads.emplace_back([&, i] {
            for (std::uint64_t id = (i + 1ull) << 32; !stop; id += 9) add(*buffer, id, 9);
        });
    }
    threads.emplace_back([&] {
        Batch batch(16);
        while (!stop) {
            if (!sample(*buffer, batch)) ++wrong;
            buffer->release_learner();
        }
    });
    threads.emplace_back([&] {
        Batch batch(16);
        while (!stop) {
            if (!sample_uniform(*buffer, batch)) ++wrong;
            if (size(*buffer) > 512) ++wrong;
        }
    });
    threads.emplace_back([&] {
        std::uint64_t rows = 0;
        while (!stop) {
            const std::uint64_t now = buffer->rows_added();
            if (now < rows || buffer->next_slot() >= 512) ++wrong;
            rows = now;
            const RoleLine status = buffer->learner_status();
            if (status.figures.sampleable > 512 || status.holder.process > 1) ++wrong;
            if (buffer->processes().size() != 1 || buffer->max_priority() != 1.0) ++wrong;
        }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    stop = true;
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(size(*buffer) == 512);
    CHECK(ids(*buffer).size() == 512);
}

TEST_CASE("stored size after a kill at any step, of a zombie and of one who is reaped") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    for (const Step step : all_steps) {
        for (const std::uint64_t rows : {2, 7, 8}) {
            for (const bool reaped : {false, true}) {
                CAPTURE(static_cast<int>(step));
                CAPTURE(rows);
                CAPTURE(reaped);
                const auto buffer = create(scratch, 8);
                const auto other = attach(scratch);
                add(*buffer, 1, rows);
                CHECK(size(*buffer) == rows);
                {
                    const RawView raw(*buffer);
                    const auto child = child_at(*buffer, raw, step, 100);
                    child->hear();
                    CHECK(size(*other) <= 8);  // while it lives
                    child->kill_to_zombie();
                    if (reaped) child->wait();
                    const std::uint64_t complete = raw.complete_rows();
                    CHECK(size(*buffer) == complete);
                    CHECK(size(*other) == complete);
                    CHECK(size(*attach(scratch)) == complete);
                    CHECK(ids(*buffer).size() == complete);
                    for (int i = 0; i < 20; ++i) {
                        add(i % 2 == 0 ? *buffer : *other, 200 + std::uint64_t(i));
                        REQUIRE(size(*buffer) == raw.complete_rows());
                        REQUIRE(size(*other) == raw.complete_rows());
                    }
                    CHECK(size(*buffer) == 8);
                    CHECK(ids(*other).size() == 8);
                    Batch batch(16);
                    CHECK(sample(*buffer, batch));
                    clear(*other);
                    CHECK(size(*buffer) == 0);
                    add(*buffer, 300, 3);
                    CHECK(size(*other) == 3);
                }
            }
        }
    }
    CHECK(scratch.is_empty());
}

TEST_CASE("stored size when the killed process's number is taken again before anybody asks") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    for (const Step step : {Step::claim, Step::commit, Step::cleared}) {
        for (const std::uint64_t rows : {2, 8}) {
            CAPTURE(static_cast<int>(step));
            CAPTURE(rows);
            const auto buffer = create(scratch, 8);
            add(*buffer, 1, rows);
            CHECK(size(*buffer) == rows);
            const RawView raw(*buffer);
            const auto child = child_at(*buffer, raw, step, 100);
            const auto number = static_cast<unsigned>(child->hear());
            child->kill_to_zombie();
            const auto successor = attach(scratch);
            CHECK(raw.number_of(getpid()) != 0);
            CHECK(raw.table.record(number).epoch == 2);
            CHECK(raw.table.record(number).ring[0].busy == 0);
            CHECK(size(*buffer) == raw.complete_rows());
            CHECK(size(*successor) == raw.complete_rows());
            add(*successor, 200, 8);
            add(*successor, 300, 8);
            CHECK(size(*buffer) == 8);
        }
    }
}

TEST_CASE("a child that another thread forks while a buffer is created does not keep its name") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    std::atomic<int> step{0};
    SegmentOptions options = in(scratch);
    options.progress = [&step](std::size_t) {
        if (step != 0) return;
        step = 1;
        while (step != 2) std::this_thread::yield();
    };
    std::thread creating([&] {
        const RingShape shape{50, sizeof(Row), true, 0.6, 1e-4};
        const auto buffer =
            ReplayBuffer::create({"buffer", shape, 7, R"({"fields": []})", options});
        add(*buffer, 1);
        // From here on a child has it too.
        ForkedChild child([&](const Channel&) {
            add(*buffer, 2);
            close(*buffer);
            return 0;
        });
        CHECK(child.wait() == 0);
        CHECK(ids(*buffer) == std::set<std::uint64_t>{1, 2});
        close(*buffer);
    });
    CHECK(comes_true([&step] { return step == 1; }));
    ForkedChild child([](const Channel& parent) {
        parent.tell();
        return stay_until_killed();
    });
    child.hear();
    step = 2;
    creating.join();
    CHECK(scratch.is_empty());
    const auto again = create(scratch, 50);
    add(*again, 1);
}

TEST_CASE("between a clear and the next add every call finds the buffer empty") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 100);
    const auto other = attach(scratch);
    const RawView raw(*buffer);
    Batch batch(8);
    for (std::uint64_t rows = 1; rows < 250; rows += 31) {
        CAPTURE(rows);
        for (std::uint64_t id = 1; id <= rows; ++id) add(*buffer, id);
        CHECK(sample(*buffer, batch));
        const std::uint64_t cursor = raw.counters->cursor;
        const std::uint64_t folded = buffer->learner_status().figures.rows_folded;
        clear(*other);
        CHECK(raw.counters->cursor == cursor);
        CHECK(buffer->next_slot() == 0);
        CHECK(size(*buffer) == 0);
        CHECK(ids(*buffer).empty());
        CHECK_THROWS_AS(sample_uniform(*other, batch), EmptyBuffer);
        CHECK_THROWS_AS(sample(*buffer, batch), EmptyBuffer);
        CHECK(add(*other, 1000) == 0);
        CHECK(size(*buffer) == 1);
        CHECK(ids(*buffer) == std::set<std::uint64_t>{1000});
        CHECK(sample_uniform(*other, batch));
        CHECK(sample(*buffer, batch));
        // The new row, and none of the positions that the clear passed over.
        CHECK(buffer->learner_status().figures.rows_folded == folded + 1);
    }
}

TEST_CASE("stored size does not fall below 0 after a clear") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 4);
    add(*buffer, 1, 4);
    const RawView raw(*buffer);
    const auto child = child_at(*buffer, raw, Step::claim, 100);
    child->hear();
    child->kill_to_zombie();
    CHECK(size(*buffer) == 3);  // it remembers the claim
    SlotRing(raw.ring).clear();
    raw.counters->filled = filled_word::next(raw.counters->filled, 0);
    CHECK(size(*buffer) == 0);
}

TEST_CASE("each handle counts the draws that missed, a forked child its own") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 4, false);
    add(*buffer, 1, 3);
    Batch batch(64);
    CHECK(sample_uniform(*buffer, batch));
    CHECK(buffer->statistics().redraws == 0);
    const RawView raw(*buffer);
    const auto holder = child_at(*buffer, raw, Step::claim, 100);  // adds a row and holds the next
    holder->hear();
    CHECK(sample_uniform(*buffer, batch));
    CHECK(buffer->statistics().redraws > 0);
    CHECK(buffer->statistics().handles == 2);
    ForkedChild child(
        [&buffer](const Channel&) { return buffer->statistics().redraws == 0 ? 0 : 1; });
    CHECK(child.wait() == 0);
}

TEST_CASE("a writer of another pid namespace without its descriptors finishes its row") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 4, false);
    const RawView raw(*buffer);
    std::atomic<int>& go =
        *new (mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))
            std::atomic<int>(0);
    InAnotherPidNamespace writer([&](const Channel& parent) {
        add(*buffer, 100);
        const unsigned number = raw.number_of(getpid());
        if (number == 0) return 1;
        work_until(raw, number, Step::half_a_copy, 101);
        close_all_descriptors_but({parent.out()});
        parent.tell();
        while (go == 0) std::this_thread::yield();
        SlotRing ring = raw.ring;
        const Row row(101);
        std::memcpy(ring.record(1), &row, sizeof row);
        ring.commit(1, 5, 1.0F);
        parent.tell();
        return stay_until_killed();
    });
    if (!writer.allowed()) return;
    writer.hear();
    const std::uint64_t claimed = raw.ring.word(1);
    REQUIRE_FALSE(slot_word::is_committed(claimed));
    add(*buffer, 1, 3);
    CHECK(raw.ring.word(1) == claimed);
    add(*buffer, 4, 3);
    CHECK(raw.ring.word(1) == claimed);
    CHECK(ids(*buffer).count(101) == 0);
    go = 1;
    writer.hear();
    CHECK(ids(*buffer) == std::set<std::uint64_t>{4, 5, 6, 101});
    CHECK(buffer->rows_added() == 7);  // the hand-made row counts itself nowhere
}

TEST_CASE("a claim that a process leaves by an exec is taken over while it lives") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 4);
    const RawView raw(*buffer);
    ForkedChild child([&](const Channel& parent) {
        add(*buffer, 100);
        const unsigned number = raw.number_of(getpid());
        if (number == 0) return 1;
        work_until(raw, number, Step::half_a_copy, 101);
        parent.tell();
        execl("/bin/sleep", "sleep", "1000", nullptr);
        return 1;
    });
    child.hear();
    CHECK(comes_true([&] { return state_of(*buffer, child.pid()) == '-'; }));
    CHECK(size(*buffer) == 1);
    add(*buffer, 1, 7);
    CHECK(ids(*buffer) == std::set<std::uint64_t>{4, 5, 6, 7});
    CHECK(size(*buffer) == 4);
    CHECK(kill(child.pid(), 0) == 0);
}

TEST_CASE("a stopped process holds its slot, and is named when it holds them all") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 1, false);
    const RawView raw(*buffer);
    const auto child = child_at(*buffer, raw, Step::half_a_copy, 100);
    child->hear();
    child->signal(SIGSTOP);
    CHECK(comes_true([&] { return state_of(*buffer, child->pid()) == 'T'; }));
    const std::uint64_t word = raw.ring.word(0);
    std::string message;
    try {
        add(*buffer, 1);
    } catch (const SlotsHeld& held) {
        message = held.what();
    }
    CHECK(message.find("pid " + std::to_string(child->pid()) + ", stopped)") != std::string::npos);
    CHECK(message.find("0 of 1 rows were added") != std::string::npos);
    CHECK(raw.ring.word(0) == word);
    CHECK(size(*buffer) == 1);  // it lives, and its row is about to be complete
    Batch batch(1);
    CHECK_THROWS_AS(sample_uniform(*buffer, batch), EmptyBuffer);
    child->kill_to_zombie();
    CHECK(size(*buffer) == 0);
    add(*buffer, 2);
    CHECK(size(*buffer) == 1);
    CHECK(ids(*buffer) == std::set<std::uint64_t>{2});
    for (const ProcessStatus& process : buffer->processes()) {
        if (process.number == 1) CHECK(process.steals == 1);
    }
}

TEST_CASE(
    "processes killed at random while they add: nothing torn, nothing stuck, the size right") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    for (const std::uint64_t capacity : {4, 64}) {
        CAPTURE(capacity);
        const auto buffer = create(scratch, capacity);
        for (unsigned round = 0; round < 12; ++round) {
            std::vector<std::unique_ptr<ForkedChild>> explorers;
            for (std::uint64_t i = 0; i < 2; ++i) {
                explorers.push_back(std::make_unique<ForkedChild>([&, i](const Channel& parent) {
                    add(*buffer, 1);
                    parent.tell();
                    for (std::uint64_t id = ((round * 2 + i + 1) << 32) + 1;; id += 3) {
                        add(*buffer, id, 3);
                    }
                    return 0;
                }));
            }
            for (const auto& explorer : explorers) explorer->hear();
            Batch batch(16);
            for (unsigned i = 0; i < 10 + 7 * round; ++i) {
                try {
                    REQUIRE(sample(*buffer, batch));
                    REQUIRE(sample_uniform(*buffer, batch));
                } catch (const EmptyBuffer&) {
                    // Four slots, and every one just being written.
                }
                (void)size(*buffer);
            }
            for (const auto& explorer : explorers) explorer->kill_to_zombie();
            const std::uint64_t stored = size(*buffer);
            CHECK(ids(*buffer).size() == stored);
            add(*buffer, 7, capacity);
            CHECK(size(*buffer) == capacity);
            CHECK(ids(*buffer).size() == capacity);
            REQUIRE(sample(*buffer, batch));
        }
    }
    CHECK(scratch.is_empty());
}

TEST_CASE("a killed learner's successor finds every row") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, 128);
    for (unsigned round = 0; round < 8; ++round) {
        add(*buffer, 1 + round * 100, 50);
        ForkedChild learner([&](const Channel& parent) {
            Batch batch(32);
            bool told = false;
            for (;;) {
                if (!sample(*buffer, batch)) return 1;
                std::vector<double> priorities(32, 1.0);
                std::vector<float> leaves;
                for (const Row& row : batch.rows) leaves.push_back(1.0F + float(row.id % 7));
                buffer->update(batch.indexes, batch.generations, priorities, leaves);
                if (!told) parent.tell();
                told = true;
            }
        });
        learner.hear();
        for (std::uint64_t id = 1; id < 200 + round * 50; ++id) add(*buffer, 10'000 + id);
        CHECK_FALSE(becomes_learner(*buffer));
        learner.kill_to_zombie();
        REQUIRE(becomes_learner(*buffer));
        Batch batch(64);
        CHECK(sample(*buffer, batch));
        CHECK(buffer->learner_status().figures.sampleable == size(*buffer));
        const float fresh = buffer->priority_rule().leaf(1.0);
        const std::vector<float> leaves = buffer->leaves();
        double total = 0;
        for (std::uint64_t slot = 0; slot < 128; ++slot) {
            Row row{};
            const FieldTarget field{reinterpret_cast<std::byte*>(&row), 0, sizeof row};
            total += double{leaves[slot]};
            if (!buffer->read_slot(slot, 0, {&field, 1})) {
                CHECK(leaves[slot] == 0);
                continue;
            }
            CAPTURE(slot);
            CHECK((leaves[slot] == fresh || leaves[slot] == 1.0F + float(row.id % 7)));
        }
        CHECK(buffer->total() == doctest::Approx(total));
        buffer->release_learner();
    }
}
