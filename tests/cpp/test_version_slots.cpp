#include <doctest/doctest.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/shared_copy.hpp"
#include "weights/version_slots.hpp"

using namespace mpbuffer;

namespace {

constexpr std::size_t words = 64;
constexpr unsigned lines = 8;

bool nobody_is_gone(unsigned, std::uint64_t) { return false; }
bool everybody_is_gone(unsigned, std::uint64_t) { return true; }

struct HeapVersions {
    explicit HeapVersions(unsigned slot_count)
        : slots(slot_count),
          reader_lines(lines),
          records(slot_count * words),
          versions(&board, slots.data(), slot_count, reader_lines.data(), lines,
                   reinterpret_cast<std::byte*>(records.data()), words * 8) {
        for (unsigned number = 1; number < lines; ++number) versions.open_line(number);
    }

    std::uint64_t publish(bool (*gone)(unsigned, std::uint64_t) = nobody_is_gone) {
        return publish_number(versions.newest() + 1, gone);
    }

    std::uint64_t publish_number(std::uint64_t number,
                                 bool (*gone)(unsigned, std::uint64_t) = nobody_is_gone) {
        return versions.publish(
            number * 10,
            [number](std::byte* record) {
                const std::vector<std::uint64_t> all(words, number);
                store_to_record(record, reinterpret_cast<const std::byte*>(all.data()), words * 8);
            },
            gone);
    }

    // What reader `number` gets; 0 if nothing, ~0 if it is not of one version. `meanwhile` runs in
    // the middle of each copy.
    std::uint64_t read(unsigned number, std::uint64_t newer_than = 0,
                       const std::function<void()>& meanwhile = {}) {
        std::vector<std::uint64_t> got(words, 0);
        const Publication read = versions.read(
            number, 1, newer_than,
            [&](const std::byte* record) {
                auto* to = reinterpret_cast<std::byte*>(got.data());
                load_from_record(to, record, words * 4);
                if (meanwhile) meanwhile();
                load_from_record(to + words * 4, record + words * 4, words * 4);
            },
            nobody_is_gone);
        if (read.version == 0) return 0;
        for (const std::uint64_t word : got) {
            if (word != read.version) return ~std::uint64_t{0};
        }
        return read.published_at == read.version * 10 ? read.version : ~std::uint64_t{0};
    }

    std::uint64_t latest() { return versions.latest(nobody_is_gone).version; }

    VersionBoard board{};
    std::vector<VersionSlot> slots;
    std::vector<ReaderLine> reader_lines;
    std::vector<std::uint64_t> records;
    VersionSlots versions;
};

}  // namespace

TEST_CASE("before the first version there is nothing to read") {
    HeapVersions heap(3);
    CHECK(heap.read(1) == 0);
    CHECK(heap.latest() == 0);
    CHECK(heap.versions.newest() == 0);
}

TEST_CASE("each version is read once it is published, with its number and time") {
    for (const unsigned slot_count : {3u, 4u, 5u, 64u}) {
        HeapVersions heap(slot_count);
        for (std::uint64_t version = 1; version < 200; ++version) {
            CHECK(heap.publish() == version);
            CHECK(heap.read(1) == version);
            CHECK(heap.read(2, version - 1) == version);
            CHECK(heap.read(2, version) == 0);
            CHECK(heap.read(2, version + 5) == 0);
            CHECK(heap.latest() == version);
            CHECK(heap.versions.latest(nobody_is_gone).published_at == 10 * version);
        }
        CHECK(heap.reader_lines[1].reads == 199);
        CHECK(heap.reader_lines[1].repeats == 0);
        CHECK(heap.reader_lines[1].version == 199);
        CHECK(heap.reader_lines[1].mark == 0);
    }
}

TEST_CASE("a reader is never overtaken, however many versions are published meanwhile") {
    for (const unsigned slot_count : {4u, 5u, 64u}) {
        HeapVersions heap(slot_count);
        heap.publish();
        const auto a_thousand = [&heap] {
            for (int i = 0; i < 1000; ++i) {
                const std::uint64_t version = heap.publish();
                CHECK(heap.read(2) == version);
            }
        };
        CHECK(heap.read(1, 0, a_thousand) == 1);
        CHECK(heap.reader_lines[1].repeats == 0);
        CHECK(heap.read(1) == 1001);
    }
}

TEST_CASE("while running readers have every other slot, the newest version waits for the first") {
    HeapVersions heap(4);
    heap.publish();
    CHECK(heap.read(1, 0, [&] {
        heap.publish();
        CHECK(heap.read(2, 0, [&] {
            heap.publish();  // 1 and 2 are being read, 3 is offered
            CHECK(heap.latest() == 3);
            CHECK(heap.publish() == 4);
            CHECK(heap.publish() == 5);
            CHECK(heap.publish() == 6);
            CHECK(heap.versions.newest() == 6);
            CHECK(heap.latest() == 3);
            CHECK(heap.read(3) == 3);
            CHECK(heap.read(3, 3) == 0);
        }) == 2);
        CHECK(heap.versions.newest() == 6);  // offered by the reader that made room
        CHECK(heap.latest() == 6);
        CHECK(heap.read(3, 3) == 6);
        CHECK(heap.publish() == 7);
        CHECK(heap.latest() == 7);
    }) == 1);
    for (unsigned reader = 1; reader < 4; ++reader) CHECK(heap.reader_lines[reader].repeats == 0);
}

TEST_CASE("a pending version is offered by whoever asks, when its hindrance is gone") {
    HeapVersions heap(3);
    heap.publish();
    heap.reader_lines[1].mark = reader_mark::make(1, offer_word::offered(heap.board.offer));
    heap.publish();
    CHECK(heap.latest() == 2);
    heap.publish();
    CHECK(heap.latest() == 2);
    CHECK(heap.versions.latest(everybody_is_gone).version == 3);
    CHECK(heap.latest() == 3);
    heap.publish();
    CHECK(heap.latest() == 3);
    heap.reader_lines[1].mark = 0;
    CHECK(heap.read(2) == 4);
}

TEST_CASE("marks of the dead and stopped hold up nobody, and a stopped reader copies again") {
    HeapVersions heap(3);
    heap.publish();
    int copies = 0;
    int other_copies = 0;
    CHECK(heap.read(1, 0, [&] {
        if (copies++ > 0) return;
        CHECK(heap.publish() == 2);
        CHECK(heap.read(2, 0, [&] {
            if (other_copies++ > 0) return;
            for (std::uint64_t version = 3; version < 20; ++version) {
                CHECK(heap.publish(everybody_is_gone) == version);
                CHECK(heap.latest() == version);
                CHECK(heap.read(3) == version);
            }
        }) == 19);
    }) == 19);
    CHECK(copies == 2);
    CHECK(other_copies == 2);
    CHECK(heap.reader_lines[1].repeats == 1);
    CHECK(heap.reader_lines[2].repeats == 1);
    CHECK(heap.reader_lines[3].repeats == 0);
}

TEST_CASE("a reader that passed for stopped and goes on is overtaken, not waited for") {
    HeapVersions heap(3);
    heap.publish();
    int copies = 0;
    int other_copies = 0;
    CHECK(heap.read(1, 0, [&] {
        if (copies++ > 0) return;
        CHECK(heap.publish() == 2);
        CHECK(heap.read(2, 0, [&] {
            if (other_copies++ > 0) return;
            CHECK(heap.publish(everybody_is_gone) == 3);
            CHECK(heap.latest() == 3);
            CHECK(heap.publish() == 4);  // both run again: no slot is free
            CHECK(heap.versions.newest() == 4);
        }) == 2);
        CHECK(heap.latest() == 4);
    }) == 4);
    CHECK(copies == 2);
}

TEST_CASE("a publisher that dies in its copy leaves the last version, and its successor goes on") {
    HeapVersions heap(4);
    heap.publish();
    heap.publish();
    for (std::uint64_t version = 3; version < 50; ++version) {
        for (const std::size_t bytes : {0, 8, 100, 512}) {
            const auto die = [bytes](std::byte* record) {
                std::memset(record, 0xff, bytes);
                throw std::runtime_error("dead");
            };
            CHECK_THROWS_AS(heap.versions.publish(0, die, nobody_is_gone), std::runtime_error);
            CHECK(heap.latest() == version - 1);
            CHECK(heap.read(1) == version - 1);
        }
        CHECK(heap.publish() == version);
        CHECK(heap.read(1) == version);
    }
}

TEST_CASE("a number in the offer never comes twice, so a late exchange fails") {
    const std::uint64_t waiting = offer_word::make(7, 2, 4);
    CHECK(offer_word::newest(waiting) == 7);
    CHECK(offer_word::offered(waiting) == 2);
    CHECK(offer_word::has_pending(waiting));
    CHECK(offer_word::pending(waiting) == 3);
    CHECK(offer_word::with_pending_offered(waiting) == offer_word::make(7, 3, 0));
    CHECK(offer_word::without_pending(waiting) == offer_word::make(7, 2, 0));
    CHECK_FALSE(offer_word::has_pending(offer_word::make(7, 2, 0)));
}

namespace {

// One publisher and three readers for a while. `plain` copies let ThreadSanitizer see whether the
// marks alone keep a slot's writes and reads apart.
void race(unsigned slot_count, bool plain, bool (*gone)(unsigned, std::uint64_t)) {
    HeapVersions heap(slot_count);
    heap.publish();
    constexpr std::uint64_t last = 4000;
    std::atomic<std::uint64_t> torn{0};
    std::atomic<std::uint64_t> backwards{0};
    std::atomic<std::uint64_t> reads{0};
    std::vector<std::thread> readers;
    for (unsigned number = 1; number <= 3; ++number) {
        readers.emplace_back([&, number] {
            std::vector<std::uint64_t> got(words);
            std::uint64_t version = 0;
            while (version < last) {
                const Publication read = heap.versions.read(
                    number, 1, version,
                    [&](const std::byte* record) {
                        if (plain) {
                            std::memcpy(got.data(), record, words * 8);
                        } else {
                            load_from_record(reinterpret_cast<std::byte*>(got.data()), record,
                                             words * 8);
                        }
                    },
                    gone);
                if (read.version == 0) continue;
                for (const std::uint64_t word : got) torn += word != read.version;
                backwards += read.version <= version;
                version = read.version;
                ++reads;
            }
        });
    }
    for (std::uint64_t version = 2; version <= last; ++version) {
        heap.versions.publish(
            version * 10,
            [version, plain](std::byte* record) {
                const std::vector<std::uint64_t> all(words, version);
                if (plain) {
                    std::memcpy(record, all.data(), words * 8);
                } else {
                    store_to_record(record, reinterpret_cast<const std::byte*>(all.data()),
                                    words * 8);
                }
            },
            gone);
    }
    for (std::thread& reader : readers) reader.join();
    CHECK(torn == 0);
    CHECK(backwards == 0);
    CHECK(reads >= 3);
    std::uint64_t repeats = 0;
    for (const ReaderLine& line : heap.reader_lines) repeats += line.repeats;
    if (gone == nobody_is_gone) CHECK(repeats == 0);
    CHECK(heap.latest() == last);
}

}  // namespace

TEST_CASE("threads: the marks alone keep the publisher out of what is being read") {
    for (const unsigned slot_count : {3u, 4u, 6u}) race(slot_count, true, nobody_is_gone);
}

TEST_CASE("threads: no mixture even where every mark is ignored") {
    for (const unsigned slot_count : {3u, 4u}) race(slot_count, false, everybody_is_gone);
}
