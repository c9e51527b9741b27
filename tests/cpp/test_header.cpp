#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "format/header.hpp"
#include "format/role_line.hpp"
#include "ring/slot_ring.hpp"
#include "ring_on_heap.hpp"
#include "segment/process_table.hpp"
#include "select/sum_tree.hpp"

using namespace mpbuffer;

namespace {

const std::string description = R"({"class": "PrioritizedReplayBuffer", "fields": []})";

RingShape small_shape(bool prioritized = true) { return {10, 40, prioritized, 0.6, 1e-4}; }

// The first bytes of a segment: header and description, in memory of exactly that size.
std::vector<std::byte> written(const SegmentHeader& header, const std::string& text) {
    std::vector<std::byte> bytes(header_bytes + text.size());
    write_header(bytes.data(), header, text);
    return bytes;
}

// As header.hpp says: of the header with its checksum 0, and the description.
std::uint64_t checksum(SegmentHeader header, const std::string& text) {
    header.checksum = 0;
    std::uint64_t hash = 0xcbf29ce484222325u;
    const auto add = [&hash](const void* data, std::size_t count) {
        const auto* at = static_cast<const unsigned char*>(data);
        for (std::size_t i = 0; i < count; ++i) hash = (hash ^ at[i]) * 0x100000001b3u;
    };
    add(&header, sizeof header);
    add(text.data(), text.size());
    return hash;
}

bool refused(const std::vector<std::byte>& bytes, std::size_t file_bytes) {
    std::string text;
    try {
        (void)read_header(bytes.data(), file_bytes, "test", text);
        return false;
    } catch (const SegmentMismatch&) {
        return true;
    }
}

}  // namespace

TEST_CASE("what is written is read again") {
    for (const bool prioritized : {false, true}) {
        for (const std::uint64_t capacity : {1, 16, 17, 1000}) {
            const SegmentHeader header =
                plan_segment({capacity, 100, prioritized, 0.6, 1e-4}, description, 42);
            const std::vector<std::byte> bytes = written(header, description);
            std::string text;
            const SegmentHeader read = read_header(bytes.data(), header.total_bytes, "test", text);
            CHECK(std::memcmp(&read, &header, sizeof header) == 0);
            CHECK(text == description);
            CHECK(read.seed == 42);
            CHECK(read.ring[0].capacity == capacity);
            CHECK(read.ring[0].prioritized == (prioritized ? 1 : 0));
        }
    }
}

TEST_CASE("an empty description") {
    const SegmentHeader header = plan_segment(small_shape(), "", 0);
    std::string text = "before";
    (void)read_header(written(header, "").data(), header.total_bytes, "test", text);
    CHECK(text.empty());
}

TEST_CASE("the parts of a segment lie one after another, aligned, within the file") {
    for (const bool prioritized : {false, true}) {
        for (const std::uint64_t capacity : {1, 15, 16, 17, 1000, 100'003}) {
            for (const std::uint64_t row : {0, 44, 48, 49, 256, 257, 28'224}) {
                const SegmentHeader header =
                    plan_segment({capacity, row, prioritized, 0.6, 1e-4}, description, 0);
                const RingEntry& ring = header.ring[0];
                std::uint64_t end = header_bytes + description.size();
                const auto next = [&end](std::uint64_t offset, std::uint64_t bytes,
                                         std::uint64_t alignment) {
                    CHECK(offset % alignment == 0);
                    CHECK(offset >= end);
                    CHECK(offset - end < alignment);
                    end = offset + bytes;
                };
                next(header.process_table_offset, process_table_bytes(header.max_handles), 64);
                next(header.role_line_offset, sizeof(SharedRoleLine), 64);
                next(ring.counters_offset, sizeof(RingCounters), 64);
                const bool inside = row <= largest_row_behind_its_head;
                if (!inside) next(ring.heads_offset, capacity * sizeof(SlotHead), 64);
                if (prioritized) next(ring.leaf_offset, padded_leaves(capacity) * 4, 64);
                next(inside ? ring.heads_offset : ring.records_offset, capacity * ring.stride,
                     4096);
                CHECK(ring.head_stride == (inside ? ring.stride : sizeof(SlotHead)));
                CHECK(ring.stride >= row + (inside ? sizeof(SlotHead) : 0));
                if (inside) CHECK(ring.records_offset == ring.heads_offset + sizeof(SlotHead));
                CHECK(header.total_bytes >= end);
                CHECK(header.total_bytes % 4096 == 0);
            }
        }
    }
}

TEST_CASE(
    "process records take at most a sixteenth of what rows take, where that is more than 62") {
    const auto handles = [](RingShape shape) {
        return plan_segment(shape, description, 0).max_handles;
    };
    CHECK(handles({10, 48, true, 0.6, 1e-4}) == 62);
    CHECK(handles({62 * 16 * 576 / 64, 48, true, 0.6, 1e-4}) == 62);
    CHECK(handles({100 * 16 * 576 / 64, 48, true, 0.6, 1e-4}) == 100);
    CHECK(handles({1'000'000, 48, true, 0.6, 1e-4}) == 1022);
    CHECK(handles({10, 48, true, 0.6, 1e-4, {{1'000'000, 48}}}) == 1022);
    for (const std::uint64_t given : {1, 7, 62, 1022}) {
        CHECK(handles({10, 48, true, 0.6, 1e-4, {}, given}) == given);
    }
    const RingShape too_many{10, 48, true, 0.6, 1e-4, {}, 1023};
    CHECK_THROWS_AS(plan_segment(too_many, description, 0), InvalidArgument);
    const WeightsShape none{100, 3, 0};
    CHECK_THROWS_AS(plan_segment(none, description), InvalidArgument);
}

TEST_CASE("a small row and its head share one cache line") {
    for (const std::uint64_t row : {0, 1, 16, 17, 44, 48}) {
        const RingEntry ring = plan_segment({1000, row, true, 0.6, 1e-4}, description, 0).ring[0];
        CHECK(ring.records_offset == ring.heads_offset + sizeof(SlotHead));
        for (std::uint64_t slot = 0; slot < 1000; ++slot) {
            const std::uint64_t head = ring.heads_offset + slot * ring.head_stride;
            const std::uint64_t last = ring.records_offset + slot * ring.stride + row - 1;
            REQUIRE((row == 0 || head / 64 == last / 64));
        }
    }
}

TEST_CASE("shapes that cannot be are refused, also where sums would overflow") {
    const std::uint64_t huge = ~std::uint64_t{0};
    const auto plan = [](std::uint64_t capacity, std::uint64_t row_bytes) {
        (void)plan_segment({capacity, row_bytes, true, 0.6, 1e-4}, description, 0);
    };
    CHECK_THROWS_AS(plan(0, 40), InvalidArgument);
    CHECK_THROWS_AS(plan(huge, 40), InvalidArgument);
    CHECK_THROWS_AS(plan(std::uint64_t{1} << 46, 40), InvalidArgument);
    CHECK_THROWS_AS(plan(std::uint64_t{1} << 40, 40), InvalidArgument);
    CHECK_THROWS_AS(plan(10, huge), InvalidArgument);
    CHECK_THROWS_AS(plan(10, huge - 63), InvalidArgument);
    CHECK_THROWS_AS(plan(1, (std::uint64_t{1} << 46) + 64), InvalidArgument);
    CHECK_NOTHROW(plan(std::uint64_t{1} << 33, 40));
}

TEST_CASE("a file cut short anywhere, or grown, is refused") {
    const SegmentHeader header = plan_segment(small_shape(), description, 7);
    const std::vector<std::byte> bytes = written(header, description);
    for (std::size_t size = 0; size < bytes.size() + 200; ++size) {
        // Memory of exactly that size: what is read beyond it a sanitizer tells.
        std::vector<std::byte> cut(
            bytes.begin(),
            bytes.begin() + static_cast<std::ptrdiff_t>(std::min(size, bytes.size())));
        cut.resize(size);
        REQUIRE(refused(cut, size));
    }
    for (const std::int64_t off : {-4096, -1, 1, 4096}) {
        REQUIRE(refused(bytes, header.total_bytes + static_cast<std::uint64_t>(off)));
    }
    CHECK_FALSE(refused(bytes, header.total_bytes));
}

TEST_CASE("a file of the right size whose description says it is longer than the file") {
    SegmentHeader header = plan_segment(small_shape(), description, 7);
    for (const std::uint64_t length : {header.total_bytes - header_bytes + 1, header.total_bytes,
                                       ~std::uint64_t{0}, ~std::uint64_t{0} - header_bytes}) {
        header.description_bytes = length;
        CHECK(refused(written(header, description), header.total_bytes));
    }
}

TEST_CASE("any changed byte of header or description is refused") {
    const SegmentHeader header = plan_segment(small_shape(), description, 7);
    const std::vector<std::byte> bytes = written(header, description);
    std::vector<std::byte> changed = bytes;
    changed.resize(header.total_bytes);  // a changed length may reach up to the file's end
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        // Between the header and the description nothing is stored.
        const bool unused = i >= sizeof(SegmentHeader) && i < header_bytes;
        for (const int flip : {0x01, 0x80, 0xff}) {
            changed[i] = bytes[i] ^ static_cast<std::byte>(flip);
            CAPTURE(i);
            REQUIRE(refused(changed, header.total_bytes) != unused);
        }
        changed[i] = bytes[i];
    }
}

TEST_CASE("a forged header with a right checksum is refused, or it is a true plan") {
    const SegmentHeader original = plan_segment(small_shape(), description, 7);
    constexpr std::size_t words = sizeof(SegmentHeader) / 8;
    std::mt19937_64 random(11);
    const std::uint64_t liked[] = {0,
                                   1,
                                   2,
                                   63,
                                   64,
                                   4096,
                                   1u << 20,
                                   std::uint64_t{1} << 40,
                                   std::uint64_t{1} << 63,
                                   ~std::uint64_t{0}};
    int accepted = 0;
    for (int round = 0; round < 100'000 / sanitizer_slowdown; ++round) {
        std::uint64_t raw[words];
        std::memcpy(raw, &original, sizeof raw);
        const std::size_t changes = 1 + random() % 3;
        for (std::size_t i = 0; i < changes; ++i) {
            // The first ring's entry and the plain fields are where it gets interesting.
            const std::size_t at = random() % (random() % 8 == 0 ? words : 32);
            switch (random() % 4) {
                case 0: raw[at] = liked[random() % std::size(liked)]; break;
                case 1: raw[at] ^= std::uint64_t{1} << (random() % 64); break;
                case 2: raw[at] += random() % 129 - 64; break;
                default: raw[at] = random(); break;
            }
        }
        SegmentHeader forged;
        std::memcpy(&forged, raw, sizeof raw);
        forged.checksum = checksum(forged, description);
        const std::vector<std::byte> bytes = written(forged, description);
        // The file is as long as the forged header says, as far as it can be.
        const std::uint64_t file_bytes =
            random() % 2 == 0 ? forged.total_bytes : original.total_bytes;
        // A description longer than this memory would be read from the mapping; not here.
        if (forged.description_bytes > description.size() &&
            forged.description_bytes <= file_bytes - header_bytes) {
            continue;
        }
        std::string text;
        try {
            const SegmentHeader read = read_header(bytes.data(), file_bytes, "test", text);
            ++accepted;
            const RingEntry& ring = read.ring[0];
            SegmentHeader plan = plan_segment(
                {ring.capacity, ring.row_bytes, ring.prioritized != 0, ring.alpha, ring.eps}, text,
                read.seed);
            plan.format.minor = read.format.minor;
            plan.created_at = read.created_at;
            plan.checksum = read.checksum;
            REQUIRE(std::memcmp(&plan, &read, sizeof plan) == 0);
            REQUIRE(read.total_bytes == file_bytes);
            REQUIRE(ring.heads_offset + (ring.capacity - 1) * ring.head_stride + sizeof(SlotHead) <=
                    file_bytes);
            REQUIRE(ring.records_offset + (ring.capacity - 1) * ring.stride + ring.row_bytes <=
                    file_bytes);
            REQUIRE(std::isfinite(ring.alpha));
            REQUIRE(std::isfinite(ring.eps));
        } catch (const SegmentMismatch&) {
        }
    }
    CHECK(accepted > 0);  // seed, time, alpha and eps are free
}

TEST_CASE("a refusal says what is wrong") {
    const SegmentHeader original = plan_segment(small_shape(), description, 7);
    const auto message = [](SegmentHeader header, bool again) {
        if (again) header.checksum = checksum(header, description);
        std::string text;
        try {
            (void)read_header(written(header, description).data(), header.total_bytes, "apex",
                              text);
        } catch (const SegmentMismatch& mismatch) {
            return std::string(mismatch.what());
        }
        return std::string();
    };
    SegmentHeader header = original;
    header.magic[0] = 'M';
    CHECK(message(header, true).find("does not begin with 'mpbuffer'") != std::string::npos);
    header = original;
    header.format = {2, 0};
    CHECK(message(header, true) ==
          "cannot attach 'apex': it is a replay buffer of format 2.0, this mpbuffer reads 1.x; "
          "use the version of mpbuffer that made it");
    header = original;
    header.format.minor = 7;  // what it adds may be left alone
    CHECK(message(header, true).empty());
    header = original;
    header.kind = static_cast<SegmentKind>(3);
    CHECK(message(header, true).find("of kind 3, which this mpbuffer does not know") !=
          std::string::npos);
    header = original;
    header.signature ^= 1;
    CHECK(message(header, true) ==
          "cannot attach 'apex': another build of mpbuffer has laid it out in another way; use "
          "the same build in all processes");
    header = original;
    header.ring[0].used = 2;
    CHECK(message(header, true).find("shape in its header cannot be") != std::string::npos);
    header = original;
    header.seed ^= 1;
    CHECK(message(header, false).find("checksum") != std::string::npos);
    for (const double bad : {-1.0, std::numeric_limits<double>::quiet_NaN(),
                             std::numeric_limits<double>::infinity()}) {
        header = original;
        header.ring[0].alpha = bad;
        CHECK(message(header, true).find("shape in its header cannot be") != std::string::npos);
        header = original;
        header.ring[0].eps = bad;
        CHECK(message(header, true).find("shape in its header cannot be") != std::string::npos);
    }
    header = original;
    header.ring[0].records_offset += 4096;
    CHECK(message(header, true).find("offsets") != std::string::npos);
    for (const std::uint64_t handles : {0, 1023, 1 << 30}) {
        header = original;
        header.max_handles = handles;
        CHECK(message(header, true).find("shape in its header cannot be") != std::string::npos);
    }
    header = original;
    ++header.max_handles;  // then the others lie elsewhere
    CHECK(message(header, true).find("offsets") != std::string::npos);
    header = original;
    header.reserved[0] = 1;
    CHECK(message(header, true).find("offsets") != std::string::npos);
    header = original;
    header.ring[1].capacity = 1;
    CHECK(message(header, true).find("offsets") != std::string::npos);
    header = original;
    header.weights.slots = 3;
    CHECK(message(header, true).find("offsets") != std::string::npos);
    header = plan_segment(WeightsShape{100, 3}, description);
    CHECK(
        message(header, false) ==
        "cannot attach 'apex': it holds the weights of a SharedWeights, expected a replay buffer");
    header.format.major = 2;
    CHECK(message(header, true).find("it is the weights of a SharedWeights of format 2.0") !=
          std::string::npos);
}
