#include "ring/frames.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/stop_points.hpp"
#include "base/tsan.hpp"
#include "ring/planes.hpp"

namespace mpbuffer {

namespace {

using Positions = std::array<std::uint64_t, RowLayout::most_frames>;

const std::byte* frame(const Sources& sources, const StoredField& field, std::uint64_t position) {
    const SlotRing& from = sources.ring(field.cut.ring);
    return from.record(position % from.capacity());
}

// The positions that the record refers to, in the order of the fields; returns how many. Of a
// record that is being overwritten they may be anything.
std::size_t find(const Sources& sources, const std::byte* record, Positions& positions) {
    std::array<std::uint64_t, max_ring_entries> born;
    for (unsigned ring = 1; ring <= sources.rings(); ++ring) born[ring] = born_in(record, ring);
    std::size_t count = 0;
    for (const StoredField& field : sources.layout().fields()) {
        if (!field.shared()) continue;
        for (std::size_t k = 0; k < field.cut.planes; ++k) {
            positions[count++] = position_at(record + field.stored + 4 * k, born[field.cut.ring]);
        }
    }
    return count;
}

}  // namespace

bool copy_frames(const Sources& sources, std::span<const FieldTarget> fields, std::size_t i,
                 const std::byte* record) {
    Positions positions;
    const std::size_t count = find(sources, record, positions);
    const auto all_there = [&](auto&& there) {
        std::size_t at = 0;
        for (const StoredField& field : sources.layout().fields()) {
            if (!field.shared()) continue;
            const SlotRing& from = sources.ring(field.cut.ring);
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
    std::array<bool, RowLayout::most_frames> done;
    std::fill_n(done.begin(), count, false);
    std::size_t first = 0;
    const std::vector<StoredField>& stored = sources.layout().fields();
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
            std::array<const std::byte*, RowLayout::most_frames> from;
            for (std::size_t k = 0; k < planes; ++k)
                from[k] = frame(sources, field, positions[first + k]);
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
            const std::byte* const from = frame(sources, field, positions[first + k]);
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

void read_references(const Sources& sources, std::span<const FieldTarget> fields,
                     std::uint64_t* births, std::size_t i, const std::byte* record) {
    Positions positions;
    find(sources, record, positions);
    for (std::size_t ring = 0; ring < sources.rings(); ++ring) {
        births[i * sources.rings() + ring] = born_in(record, static_cast<unsigned>(ring + 1));
    }
    const std::uint64_t* next = positions.data();
    for (std::size_t f = 0; f < fields.size(); ++f) {
        const StoredField& field = sources.layout().fields()[f];
        std::byte* const value = fields[f].values + i * fields[f].bytes;
        if (field.shared()) {
            std::memcpy(value, next, field.cut.planes * sizeof *next);
            next += field.cut.planes;
        } else {
            load_from_record(value, record + field.stored, field.bytes);
        }
    }
}

void store_references(const Sources& sources, std::span<const FieldSource> fields,
                      const std::uint64_t* births, std::size_t i, std::byte* record) {
    const std::uint64_t* const born = births + i * sources.rings();
    store_to_record(record, reinterpret_cast<const std::byte*>(born), 8 * sources.rings());
    for (std::size_t f = 0; f < fields.size(); ++f) {
        const StoredField& field = sources.layout().fields()[f];
        const std::byte* const value = fields[f].values + i * fields[f].step;
        if (!field.shared()) {
            store_to_record(record + field.stored, value, field.bytes);
            continue;
        }
        for (std::size_t k = 0; k < field.cut.planes; ++k) {
            std::uint64_t position = 0;
            std::memcpy(&position, value + k * sizeof position, sizeof position);
            const auto back = static_cast<std::int32_t>(born[field.cut.ring - 1] - position);
            store_to_record(record + field.stored + 4 * k,
                            reinterpret_cast<const std::byte*>(&back), sizeof back);
        }
    }
}

void prefetch_frames(const Sources& sources, const std::byte* record) {
    Positions positions;
    find(sources, record, positions);
    std::size_t at = 0;
    for (const StoredField& field : sources.layout().fields()) {
        if (!field.shared()) continue;
        for (std::size_t k = 0; k < field.cut.planes; ++k, ++at) {
            const std::uint64_t slot = positions[at] % sources.ring(field.cut.ring).capacity();
            sources.ring(field.cut.ring).prefetch(slot, field.plane_bytes());
        }
    }
}

}  // namespace mpbuffer
