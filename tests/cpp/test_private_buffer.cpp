#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "base/error.hpp"
#include "buffer/replay_buffer.hpp"
#include "forked_child.hpp"
#include "os/file_locks.hpp"
#include "segment/names.hpp"
#include "segment/sweep.hpp"

using namespace mpbuffer;

namespace {

using Row = std::array<std::uint64_t, 4>;

SegmentOptions without_file() {
    SegmentOptions options;
    options.nameless = true;
    options.without_file = true;
    return options;
}

std::unique_ptr<ReplayBuffer> create(std::uint64_t capacity) {
    const RingShape shape{capacity, sizeof(Row), true, 0.6, 1e-4, {}, 1};
    return ReplayBuffer::create({generate_name(), shape, 7, "{}", without_file()});
}

void add(ReplayBuffer& buffer, std::uint64_t id) {
    const Row row = {id, id + 1, id + 2, id + 3};
    const FieldSource source{reinterpret_cast<const std::byte*>(&row), sizeof row, 0, sizeof row};
    buffer.add(1, {&source, 1}, nullptr, 0);
}

// The ids of all rows; 0 for one that is torn.
std::set<std::uint64_t> ids(ReplayBuffer& buffer) {
    std::set<std::uint64_t> all;
    for (const std::uint64_t slot : buffer.filled_slots(false)) {
        Row row{};
        const FieldTarget field{reinterpret_cast<std::byte*>(&row), 0, sizeof row};
        if (!buffer.read_slot(slot, 0, {&field, 1})) continue;
        all.insert(row[3] == row[0] + 3 ? row[0] : 0);
    }
    return all;
}

std::uint64_t draw(ReplayBuffer& buffer) {
    Row row{};
    const FieldTarget field{reinterpret_cast<std::byte*>(&row), 0, sizeof row};
    std::int64_t index = 0;
    std::uint64_t generation = 0;
    float weight = 0;
    buffer.gather(1, 0.4, {{&field, 1}, &index, &generation, &weight});
    return row[0];
}

std::ptrdiff_t descriptors() {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
}

}  // namespace

TEST_CASE("where there is no file every lock is to be had, and nobody else holds one") {
    CHECK(try_lock(no_file, lock_byte::role, LockKind::exclusive));
    CHECK(try_lock(no_file, lock_byte::role, LockKind::exclusive));
    CHECK_FALSE(held_elsewhere(no_file, lock_byte::role));
    unlock(no_file, lock_byte::role);
    CHECK_THROWS_AS(try_lock(-1, lock_byte::role, LockKind::exclusive), SystemFailure);
}

TEST_CASE("a private buffer has neither file nor descriptor, and nobody finds it") {
    const std::ptrdiff_t before = descriptors();
    const auto buffer = create(4);
    CHECK(descriptors() == before);
    CHECK_FALSE(buffer->is_shared());
    CHECK(buffer->max_handles() == 1);
    CHECK(buffer->segment_bytes() <= 3 * 4096);
    for (std::uint64_t id = 1; id <= 6; ++id) add(*buffer, id);
    CHECK(ids(*buffer) == std::set<std::uint64_t>{3, 4, 5, 6});
    CHECK(buffer->stored_size() == 4);
    CHECK(draw(*buffer) >= 3);
    CHECK(buffer->is_learner());
    CHECK(buffer->learner_status().holder.process == 1);
    REQUIRE(buffer->processes().size() == 1);
    CHECK(buffer->processes()[0].rows == 6);
    buffer->release_learner();
    CHECK(buffer->learner_status().holder.process == 0);
    buffer->clear();
    CHECK(buffer->stored_size() == 0);
    CHECK(descriptors() == before);
    CHECK_THROWS_AS((void)buffer->data_descriptor(), InvalidArgument);
    CHECK_THROWS_AS((void)ReplayBuffer::attach(buffer->name()), SegmentNotFound);
    CHECK(nameless_path(buffer->name()).empty());
    buffer->close();
    buffer->close();
    CHECK_THROWS_AS((void)buffer->stored_size(), BufferClosed);
    CHECK_THROWS_AS((void)buffer->data_descriptor(), BufferClosed);
}

TEST_CASE("a forked child's copy of a private buffer is its own, with a learner of its own") {
    const auto buffer = create(8);
    add(*buffer, 1);
    CHECK(draw(*buffer) == 1);
    ForkedChild child([&](const Channel& parent) {
        add(*buffer, 2);
        if (buffer->is_learner() || draw(*buffer) == 0 || !buffer->is_learner()) return 1;
        if (ids(*buffer) != std::set<std::uint64_t>{1, 2}) return 2;
        parent.tell();
        parent.hear();
        if (ids(*buffer) != std::set<std::uint64_t>{1, 2} || buffer->rows_added() != 2) return 3;
        ForkedChild grandchild([&](const Channel&) {
            add(*buffer, 4);
            return ids(*buffer) == std::set<std::uint64_t>{1, 2, 4} ? 0 : 1;
        });
        if (grandchild.wait() != 0) return 4;
        buffer->close();
        return 0;
    });
    child.hear();
    CHECK(ids(*buffer) == std::set<std::uint64_t>{1});
    CHECK(buffer->is_learner());
    add(*buffer, 3);
    child.tell();
    CHECK(child.wait() == 0);
    CHECK(ids(*buffer) == std::set<std::uint64_t>{1, 3});
}

TEST_CASE("a private buffer forked amid another thread's adds has whole rows, and takes more") {
    const auto buffer = create(4);
    std::atomic<bool> over{false};
    std::thread adder([&] {
        for (std::uint64_t id = 1; !over; ++id) add(*buffer, id);
    });
    for (int round = 0; round < 50 / sanitizer_slowdown; ++round) {
        ForkedChild child([&](const Channel&) {
            const std::set<std::uint64_t> there = ids(*buffer);
            if (there.contains(0) || buffer->stored_size() != there.size()) return 1;
            for (std::uint64_t i = 1; i <= 8; ++i) add(*buffer, std::uint64_t{1} << 40 | i);
            const std::set<std::uint64_t> now = ids(*buffer);
            if (now.size() != 4 || buffer->stored_size() != 4) return 2;
            return *now.begin() > std::uint64_t{1} << 40 && draw(*buffer) >> 40 == 1 ? 0 : 3;
        });
        CHECK(child.wait() == 0);
    }
    over = true;
    adder.join();
}

TEST_CASE("a child that is forked while a private buffer is made has none of it") {
    SegmentOptions options = without_file();
    bool is_child = false;
    int status = 0;
    options.progress = [&](std::size_t) {
        if (is_child || status != 0) return;
        const pid_t pid = fork();
        is_child = pid == 0;
        if (is_child) return;
        waitpid(pid, &status, 0);
    };
    try {
        const RingShape shape{8, sizeof(Row), true, 0.6, 1e-4, {}, 1};
        const auto buffer = ReplayBuffer::create({generate_name(), shape, 7, "{}", options});
        add(*buffer, 1);
        if (is_child) _exit(1);
        CHECK(ids(*buffer) == std::set<std::uint64_t>{1});
    } catch (const BufferClosed&) {
        if (is_child) _exit(7);
        throw;
    }
    CHECK(WEXITSTATUS(status) == 7);
}
