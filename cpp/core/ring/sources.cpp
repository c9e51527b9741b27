#include "ring/sources.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "base/guard.hpp"
#include "ring/frames.hpp"
#include "ring/sequences.hpp"

namespace mpbuffer {

namespace {

constexpr int most_retirements = 64;  // while others retire or clear

}  // namespace

Sources::Sources(std::byte* segment, const SegmentHeader& header) : rows_(header.ring[0].capacity) {
    for (unsigned i = 1; i < max_ring_entries && header.ring[i].used != 0; ++i) {
        const RingEntry& entry = header.ring[i];
        rings_.emplace_back(reinterpret_cast<RingCounters*>(segment + entry.counters_offset),
                            segment + entry.heads_offset, segment + entry.records_offset,
                            entry.capacity, source_layout(entry.row_bytes));
    }
}

void Sources::describe(RowLayout layout) {
    for (const SlotRing& ring : rings_) {
        ages_.push_back(
            reference_age(rows_ * layout.sources_per_row(), ring.capacity(), layout.references()));
    }
    layout_.emplace_back(std::move(layout));
}

bool Sources::copy(std::span<const FieldTarget> fields, std::size_t i,
                   const std::byte* record) const {
    return layout().steps() == 0 ? copy_frames(*this, fields, i, record)
                                 : copy_sequence(*this, fields, i, record);
}

void Sources::prefetch(const std::byte* record) const {
    if (layout().steps() == 0) {
        prefetch_frames(*this, record);
    } else {
        prefetch_sequence(*this, record);
    }
}

std::uint64_t Sources::retire(const SlotRing& rows) const {
    std::array<std::uint64_t, max_ring_entries> oldest_birth{};  // of a row that stays
    for (int attempt = 0; attempt < most_retirements; ++attempt) {
        for (std::size_t i = 0; i < rings_.size(); ++i) {
            const std::uint64_t cursor =
                rings_[i].counters().cursor.load(std::memory_order_acquire);
            const std::uint64_t kept = rings_[i].capacity() - ages_[i];
            oldest_birth[i] = cursor - std::min(cursor, kept);
        }
        const auto [cleared, position] = rows.bounds();
        const std::uint64_t first =
            std::max(cleared, position - std::min(position, rows.capacity()));
        std::uint64_t end = 0;
        std::uint64_t count = 0;
        for (std::uint64_t seq = first; seq < position; ++seq) {
            bool due = false;
            const bool there = rows.read(seq % rows.capacity(), seq, [&](const std::byte* record) {
                for (std::size_t i = 0; i < rings_.size(); ++i) {
                    due = due || born_in(record, static_cast<unsigned>(i + 1)) < oldest_birth[i];
                }
            });
            if (!there) continue;
            if (!due) break;
            if (++count == slots_worth_releasing) let_others_run();
            end = seq + 1;
        }
        if (end == 0) return 0;
        if (rows.retire(cleared, end, count)) return count;
    }
    return 0;
}

void Sources::expel(const SlotRing& rows, std::uint64_t slot) const {
    retire(rows);
    const auto [cleared, position] = rows.bounds();
    const std::uint64_t word = rows.word(slot).load(std::memory_order_acquire);
    const std::uint64_t seq = slot_word::seq(word);
    if (slot_word::is_committed(word) && seq >= cleared && seq + rows.capacity() < position) {
        rows.retire(cleared, seq + 1, 1);
    }
}

}  // namespace mpbuffer
