// A ring as it lies in a segment: its counters, and what each slot has beside its row.
// slot_ring.hpp says who writes what when.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/round_up.hpp"

namespace mpbuffer {

// Rows have seqs from `cleared` to below `position`, which is the next one's.
struct SeqBounds {
    std::uint64_t cleared;
    std::uint64_t position;
};

// The ring's shared counters, each on its own cache line: `cursor` is written by every claim, the
// others hardly ever.
struct RingCounters {
    // All rows ever claimed, plus capacity. Never wrapped, never decreased. Behind `clear_before`
    // from a clear to the next claim.
    alignas(64) std::atomic<std::uint64_t> cursor;
    // Rows of a smaller seq are gone: a clear raises it to a multiple of capacity, a retirement
    // (sources.hpp) behind the last row that it retires. Never decreased.
    alignas(64) std::atomic<std::uint64_t> clear_before;
    // {recount: 16 | count: 48}: slots that hold a row, as far as commits have told since the last
    // recount. Whoever recounts changes `recount`, which makes a raise that straddled it
    // request another.
    alignas(64) std::atomic<std::uint64_t> filled;
    // How often something happened that may have left `filled` wrong.
    std::atomic<std::uint64_t> recount_requests;
    // Rows that were retired (sources.hpp) since creation. Whoever retires them counts them, just
    // behind the raise of clear_before: killed in between, it has not.
    std::atomic<std::uint64_t> early;
    // The largest priority ever supplied since creation or clear, as it was given.
    alignas(64) std::atomic<double> max_priority;

    SeqBounds bounds() const {
        std::uint64_t position = cursor.load(std::memory_order_acquire);  // C2, ahead of the clear
        const std::uint64_t cleared = clear_before.load(std::memory_order_acquire);
        // Rows may have been claimed past the clear since the first look.
        if (position < cleared) [[unlikely]] {
            position = std::max(cleared, cursor.load(std::memory_order_acquire));
        }
        return {cleared, position};
    }
};
static_assert(sizeof(RingCounters) == 256);
static_assert(std::atomic<double>::is_always_lock_free);

// What a slot has beside its row. In front of the row where rows are small, so that what a row
// costs is one cache line and not three.
struct SlotHead {
    std::atomic<std::uint64_t> word;
    std::atomic<float> leaf_in;  // the leaf that the row's writer computed; 0 in a uniform buffer
    // seq / capacity, modulo 2^32, of the row whose leaf is the slot's in the tree. The learner's.
    std::atomic<std::uint32_t> lap;
};
static_assert(sizeof(SlotHead) == 16);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<float>::is_always_lock_free);

// How the heads and the rows of a ring lie.
struct RecordLayout {
    std::uint64_t stride;       // from one row to the next
    std::uint64_t head_stride;  // from one head to the next
    bool heads_inside;          // each head in front of its row; else all heads together
};

// Up to this size of a row, its head's line is read with it at no cost.
constexpr std::uint64_t largest_row_behind_its_head = 256;

// A row of 48 bytes and its head fill a cache line. Smaller ones never lie across two; larger ones
// may, rather than take half a line more.
constexpr RecordLayout record_layout(std::uint64_t row_bytes) {
    if (row_bytes > largest_row_behind_its_head) {
        return {round_up(row_bytes, 64), sizeof(SlotHead), false};
    }
    const std::uint64_t bytes = sizeof(SlotHead) + row_bytes;
    const std::uint64_t stride = bytes <= 32 ? 32 : bytes <= 64 ? 64 : round_up(bytes, 16);
    return {stride, stride, true};
}
static_assert(record_layout(44).stride == 64 && record_layout(48).stride == 64);

// Sources: 16 bytes apart at least, for vectors; their heads apart from them.
constexpr RecordLayout source_layout(std::uint64_t source_bytes) {
    return {round_up(source_bytes, 16), sizeof(SlotHead), false};
}

// Leaves lie in groups of a cache line; those beyond the capacity stay 0.
constexpr std::uint64_t leaves_per_group = 16;
constexpr std::uint64_t padded_leaves(std::uint64_t capacity) {
    return round_up(capacity, leaves_per_group);
}

// How many sources a ring holds, and how far back a row may refer. With M sources, a row is retired
// when more than M - A have been claimed since it was born; what it refers to is at most A older
// than it, and so is still there until then. `brought` is how many all rows bring, as a rule.
constexpr std::uint64_t fewest_sources = 16;
constexpr std::uint64_t most_sources = std::uint64_t{1} << 31;  // references are 32 bits

constexpr std::uint64_t frames_for(std::uint64_t rows, std::uint64_t references) {
    const std::uint64_t roomy = rows + rows / 16 + 2048;
    return std::max({std::min(roomy, 8 * rows + 64), 4 * references, fewest_sources});
}
// Of steps there are many times as many as rows: their number varies less.
constexpr std::uint64_t fewest_steps_per_step_of_a_sequence = 16;
constexpr std::uint64_t steps_for(std::uint64_t brought, std::uint64_t steps_of_a_sequence) {
    const std::uint64_t roomy = brought + brought / 32 + 1024;
    return std::max(std::min(roomy, 8 * brought + 64),
                    fewest_steps_per_step_of_a_sequence * steps_of_a_sequence);
}
// At least twice what one row refers to, where that is not more than an eighth of the ring.
constexpr std::uint64_t reference_age(std::uint64_t brought, std::uint64_t sources,
                                      std::uint64_t references) {
    const std::uint64_t spare = sources > brought ? (sources - brought) / 2 : 0;
    const std::uint64_t wanted = std::max<std::uint64_t>(1024, 2 * references);
    return std::max(spare, std::min(sources / 8, wanted));
}

namespace filled_word {
constexpr std::uint64_t count_mask = (std::uint64_t{1} << 48) - 1;
constexpr std::uint64_t recount(std::uint64_t word) { return word >> 48; }
constexpr std::uint64_t count(std::uint64_t word) { return word & count_mask; }
constexpr std::uint64_t next(std::uint64_t word, std::uint64_t count) {
    return ((recount(word) + 1) << 48) | count;
}
}  // namespace filled_word

}  // namespace mpbuffer
