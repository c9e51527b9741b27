#include "ring/frames.hpp"

#include <algorithm>

#include "base/guard.hpp"
#include "base/stop_points.hpp"
#include "base/tsan.hpp"
#include "ring/planes.hpp"

namespace mpbuffer {

namespace {

constexpr int most_retirements = 64;  // while others retire or clear

std::uint64_t number_at(const std::byte* record) {
    std::uint64_t number = 0;
    load_from_record(reinterpret_cast<std::byte*>(&number), record, sizeof number);
    return number;
}

}  // namespace

Frames::Frames(std::byte* segment, const SegmentHeader& header) {
    for (unsigned i = 1; i < max_ring_entries && header.ring[i].used != 0; ++i) {
        const RingEntry& entry = header.ring[i];
        rings_.emplace_back(reinterpret_cast<RingCounters*>(segment + entry.counters_offset),
                            segment + entry.heads_offset, segment + entry.records_offset,
                            entry.capacity, source_layout(entry.row_bytes));
        ages_.push_back(reference_age(header.ring[0].capacity, entry.capacity));
    }
}

// The positions that the record refers to, in the order of the fields; returns how many. Of a
// record that is being overwritten they may be anything.
std::size_t Frames::find(const std::byte* record, Positions& positions) const {
    std::array<std::uint64_t, max_ring_entries> born;
    for (std::size_t i = 0; i < rings_.size(); ++i) born[i] = number_at(record + 8 * i);
    std::size_t count = 0;
    for (const StoredField& field : layout().fields()) {
        if (!field.shared()) continue;
        for (std::size_t k = 0; k < field.cut.planes; ++k) {
            std::int32_t back = 0;
            load_from_record(reinterpret_cast<std::byte*>(&back), record + field.stored + 4 * k,
                             sizeof back);
            positions[count++] =
                born[field.cut.ring - 1] - static_cast<std::uint64_t>(std::int64_t{back});
        }
    }
    return count;
}

bool Frames::copy(std::span<const FieldTarget> fields, std::size_t i,
                  const std::byte* record) const {
    Positions positions;
    const std::size_t count = find(record, positions);
    const auto all_there = [&](auto&& there) {
        std::size_t at = 0;
        for (const StoredField& field : layout().fields()) {
            if (!field.shared()) continue;
            const SlotRing& from = ring_of(field);
            for (std::size_t k = 0; k < field.cut.planes; ++k, ++at) {
                const std::uint64_t position = positions[at];
                std::atomic<std::uint64_t>& word = from.word(position % from.capacity());
                if (!there(word, slot_word::committed(position))) return false;
            }
        }
        return true;
    };
    if (!all_there([](const std::atomic<std::uint64_t>& word, std::uint64_t expected) {
            return word.load(std::memory_order_acquire) == expected;  // R1
        })) {
        return false;
    }
    // A frame that several fields have is copied to all of them while it is in the cache.
    std::array<bool, RowLayout::most_references> done;
    std::fill_n(done.begin(), count, false);
    std::size_t first = 0;
    const std::vector<StoredField>& stored = layout().fields();
    for (std::size_t f = 0; f < stored.size(); ++f) {
        const StoredField& field = stored[f];
        std::byte* const value = fields[f].values + i * field.bytes;
        if (!field.shared()) {
            load_from_record(value, record + field.stored, field.bytes);
            continue;
        }
        const std::size_t planes = field.cut.planes;
        const std::size_t bytes = field.plane_bytes();
        if (field.cut.last_axis) {
            std::array<const std::byte*, RowLayout::most_references> from;
            for (std::size_t k = 0; k < planes; ++k) from[k] = frame(field, positions[first + k]);
#if MPBUFFER_TSAN
            std::vector<std::byte> copies(planes * bytes);
            for (std::size_t k = 0; k < planes; ++k) {
                load_from_record(copies.data() + k * bytes, from[k], bytes);
                from[k] = copies.data() + k * bytes;
            }
#endif
            interleave(value, {from.data(), planes}, bytes / field.cut.element_bytes,
                       field.cut.element_bytes);
            first += planes;
            continue;
        }
        for (std::size_t k = 0; k < planes; ++k) {
            if (done[first + k]) continue;
            const std::byte* const from = frame(field, positions[first + k]);
            load_from_record(value + k * bytes, from, bytes);
            stop_point(StopPoint::frame_copied);
            std::size_t other = first + planes;
            for (std::size_t g = f + 1; g < stored.size() && other < count; ++g) {
                if (!stored[g].shared()) continue;
                const std::size_t end = other + stored[g].cut.planes;
                const bool same = stored[g].cut.ring == field.cut.ring && !stored[g].cut.last_axis;
                for (std::size_t at = other; same && at < end; ++at) {
                    if (positions[at] != positions[first + k]) continue;
                    load_from_record(fields[g].values + i * stored[g].bytes + (at - other) * bytes,
                                     from, bytes);
                    done[at] = true;
                }
                other = end;
            }
        }
        first += planes;
    }
    if (all_there([](std::atomic<std::uint64_t>& word, std::uint64_t expected) {
            return unchanged(word, expected);  // R2
        })) {
        return true;
    }
    // Whoever retires next sees the cursor of the claim that was seen here.
    acquire_fence();
    return false;
}

void Frames::prefetch(const std::byte* record) const {
    Positions positions;
    find(record, positions);
    std::size_t at = 0;
    for (const StoredField& field : layout().fields()) {
        if (!field.shared()) continue;
        for (std::size_t k = 0; k < field.cut.planes; ++k, ++at) {
            const std::uint64_t slot = positions[at] % ring_of(field).capacity();
            ring_of(field).prefetch(slot, field.plane_bytes());
        }
    }
}

std::uint64_t Frames::retire(const SlotRing& rows) const {
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
                    due = due || number_at(record + 8 * i) < oldest_birth[i];
                }
            });
            if (!there) continue;
            if (!due) break;
            if (++count == slots_worth_releasing) let_others_run();
            end = seq + 1;
        }
        if (end == 0) return 0;
        if (rows.retire(cleared, end)) return count;
    }
    return 0;
}

void Frames::expel(const SlotRing& rows, std::uint64_t slot) const {
    retire(rows);
    const auto [cleared, position] = rows.bounds();
    const std::uint64_t word = rows.word(slot).load(std::memory_order_acquire);
    const std::uint64_t seq = slot_word::seq(word);
    if (slot_word::is_committed(word) && seq >= cleared && seq + rows.capacity() < position) {
        rows.retire(cleared, seq + 1);
    }
}

}  // namespace mpbuffer
