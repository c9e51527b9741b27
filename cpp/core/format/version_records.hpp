// Versions of weights as they lie in a segment: the board, a line for each slot and each reader.
// version_slots.hpp says who writes what when.
#pragma once

#include <atomic>
#include <cstdint>

namespace mpbuffer {

constexpr unsigned min_version_slots = 3;
constexpr unsigned max_version_slots = 64;

namespace offer_word {
constexpr std::uint64_t make(std::uint64_t version, unsigned offered, unsigned pending_plus_one) {
    return version << 16 | std::uint64_t{offered} << 8 | pending_plus_one;
}
constexpr std::uint64_t newest(std::uint64_t word) { return word >> 16; }
constexpr unsigned offered(std::uint64_t word) { return word >> 8 & 0xff; }
constexpr bool has_pending(std::uint64_t word) { return (word & 0xff) != 0; }
constexpr unsigned pending(std::uint64_t word) { return (word & 0xff) - 1; }
constexpr std::uint64_t with_pending_offered(std::uint64_t word) {
    return make(newest(word), pending(word), 0);
}
constexpr std::uint64_t without_pending(std::uint64_t word) { return word & ~std::uint64_t{0xff}; }
}  // namespace offer_word

// What a reader is reading: `epoch:56 | slot + 1:8`; 0: nothing.
namespace reader_mark {
constexpr std::uint64_t make(std::uint64_t epoch, unsigned slot) { return epoch << 8 | (slot + 1); }
constexpr unsigned slot_plus_one(std::uint64_t mark) { return mark & 0xff; }
constexpr std::uint64_t epoch(std::uint64_t mark) { return mark >> 8; }
constexpr unsigned epoch_bits = 56;
}  // namespace reader_mark

struct alignas(64) VersionBoard {
    std::atomic<std::uint64_t> offer;
    std::atomic<std::uint64_t> lines_used;  // the highest reader line that ever was taken
    std::uint64_t reserved[6];
};
static_assert(sizeof(VersionBoard) == 64);

struct alignas(64) VersionSlot {
    std::atomic<std::uint64_t> version;       // 0: empty, or being written
    std::atomic<std::uint64_t> published_at;  // CLOCK_MONOTONIC, ns
    std::uint64_t reserved[6];
};
static_assert(sizeof(VersionSlot) == 64);

// Written by its reader alone, but for a dead reader's mark, which anyone may take away.
struct alignas(64) ReaderLine {
    std::atomic<std::uint64_t> mark;
    std::atomic<std::uint64_t> version;  // that was read last; these three only inform
    std::atomic<std::uint64_t> reads;
    std::atomic<std::uint64_t> repeats;  // copies that were overwritten
    std::uint64_t reserved[4];
};
static_assert(sizeof(ReaderLine) == 64);

}  // namespace mpbuffer
