#include "ring/gather.hpp"

#include <algorithm>
#include <array>
#include <thread>

#include "base/guard.hpp"
#include "os/threads.hpp"
#include "ring/columns.hpp"

namespace mpbuffer {

namespace {

// How far ahead of the row being copied the next ones are asked for.
constexpr std::size_t rows_prefetched = 256;

// A thread costs some 30 us to start; more of them than this find the memory busy.
constexpr std::size_t bytes_worth_a_thread = std::size_t{2} << 20;
constexpr std::size_t most_threads = 4;
constexpr std::size_t bytes_in_a_piece = std::size_t{256} << 10;

// Rows of this many bytes in all are copied between two looks at their words, field by field.
constexpr std::size_t bytes_in_a_block = 4096;
constexpr std::size_t most_rows_in_a_block = 16;

// Copies the rows drawn for the places [first, last), and lists those that are gone.
void copy_block(const SlotRing& ring, std::size_t first, std::size_t last, Draws& draws,
                const SampleTarget& target) {
    std::array<const std::byte*, most_rows_in_a_block> records;
    std::array<std::uint64_t, most_rows_in_a_block> words;
    const std::size_t count = last - first;
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t slot = draws.slots[first + i];
        words[i] = ring.word(slot).load(std::memory_order_acquire);  // R1
        records[i] = ring.record(slot);
    }
    for (const FieldTarget& field : target.fields) {
        copy_column({records.data(), count}, field.offset, field.bytes,
                    field.values + first * field.bytes, field.bytes);
    }
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t place = first + i;
        const std::uint64_t seq = slot_word::seq(words[i]);
        const bool wanted = slot_word::is_committed(words[i]) && seq >= draws.cleared &&
                            (draws.any_row || seq == draws.seqs[place]);
        stop_point(StopPoint::row_copied);
        if (!wanted || !unchanged(ring.word(draws.slots[place]), words[i])) {  // R2
            draws.missed.push_back(place);
            continue;
        }
        target.indexes[place] = static_cast<std::int64_t>(draws.slots[place]);
        target.generations[place] = seq;
    }
}

// How many rows ahead their sources are asked for, whose places are in the rows.
constexpr std::size_t sourced_rows_ahead = 4;

// False if a source of the row is gone.
inline bool copy_fields(const Sources* sources, std::span<const FieldTarget> fields,
                        std::size_t place, const std::byte* record) {
    if (sources != nullptr) [[unlikely]]
        return sources->copy(fields, place, record);
    for (const FieldTarget& field : fields) {
        load_from_record(field.values + place * field.bytes, record + field.offset, field.bytes);
    }
    return true;
}

std::size_t given_bytes(std::size_t row_bytes, const SampleTarget& target) {
    return target.sources == nullptr ? row_bytes : target.sources->layout().given_bytes();
}

// Asks for the rows and the sources that are copied soon after `place`.
inline void prefetch_behind(const SlotRing& ring, std::size_t row_bytes, std::size_t place,
                            const Draws& draws, const SampleTarget& target) {
    const std::size_t count = draws.slots.size();
    if (place + rows_prefetched < count) {
        ring.prefetch(draws.slots[place + rows_prefetched], row_bytes);
    }
    if (place + sourced_rows_ahead < count) {
        target.sources->prefetch(ring.record(draws.slots[place + sourced_rows_ahead]));
    }
}

void copy_shared(const SlotRing& ring, std::size_t row_bytes, std::size_t threads, Draws& draws,
                 const SampleTarget& target) {
    Mutex missed_mutex;
    draws.missed.reserve(draws.slots.size());
    const std::size_t piece = bytes_in_a_piece / given_bytes(row_bytes, target) + 1;
    share_work(draws.slots.size(), piece, threads - 1, [&](std::size_t first, std::size_t last) {
        for (std::size_t place = first; place < last; ++place) {
            if (target.sources != nullptr) prefetch_behind(ring, row_bytes, place, draws, target);
            if (copy_row(ring, place, draws, target)) continue;
            const Guard guard(missed_mutex);
            draws.missed.push_back(place);
        }
    });
    std::sort(draws.missed.begin(), draws.missed.end());
}

}  // namespace

bool copy_row(const SlotRing& ring, std::size_t place, const Draws& draws,
              const SampleTarget& target) {
    const std::uint64_t slot = draws.slots[place];
    bool whole = true;
    const auto copy = [&target, &whole, place](const std::byte* record) {
        return whole = copy_fields(target.sources, target.fields, place, record);
    };
    std::uint64_t seq = 0;
    if (draws.any_row) {
        seq = ring.read_any(slot, draws.cleared, copy);
    } else if (draws.seqs[place] >= draws.cleared && ring.read(slot, draws.seqs[place], copy)) {
        seq = draws.seqs[place];
    }
    if (seq == 0) {
        if (!whole) target.sources->expel(ring, slot);
        return false;
    }
    target.indexes[place] = static_cast<std::int64_t>(slot);
    target.generations[place] = seq;
    return true;
}

std::uint64_t read_row(const SlotRing& ring, const Sources* sources, std::uint64_t slot,
                       std::size_t i, std::span<const FieldTarget> fields) {
    const std::uint64_t cleared = ring.clear_before();
    for (int attempt = 0; attempt < most_readings; ++attempt) {
        const std::uint64_t word = ring.word(slot).load(std::memory_order_relaxed);
        if (slot_word::seq(word) < cleared) return 0;
        bool whole = true;
        const auto copy = [&](const std::byte* record) {
            return whole = copy_fields(sources, fields, i, record);
        };
        if (const std::uint64_t seq = ring.read_any(slot, cleared, copy)) return seq;
        if (!whole && ring.word(slot).load(std::memory_order_relaxed) == word) {
            sources->expel(ring, slot);
            return 0;
        }
        std::this_thread::yield();
    }
    return 0;
}

void prefetch_rows(const SlotRing& ring, std::size_t row_bytes, const Draws& draws) {
    const std::size_t count = std::min(draws.slots.size(), rows_prefetched);
    for (std::size_t place = 0; place < count; ++place) {
        ring.prefetch(draws.slots[place], row_bytes);
    }
}

void copy_rows(const SlotRing& ring, std::size_t row_bytes, Draws& draws,
               const SampleTarget& target) {
    const std::size_t count = draws.slots.size();
    draws.missed.clear();
    const std::size_t worth =
        std::min(count * given_bytes(row_bytes, target) / bytes_worth_a_thread, most_threads);
    if (worth > 1) {
        const std::size_t threads = std::min(worth, usable_processors());
        if (threads > 1) return copy_shared(ring, row_bytes, threads, draws, target);
    }
    if (target.sources != nullptr) {
        for (std::size_t place = 0; place < count; ++place) {
            prefetch_behind(ring, row_bytes, place, draws, target);
            if (!copy_row(ring, place, draws, target)) draws.missed.push_back(place);
        }
        return;
    }
    const std::size_t at_once = std::clamp<std::size_t>(
        bytes_in_a_block / std::max<std::size_t>(row_bytes, 1), 1, most_rows_in_a_block);
    for (std::size_t first = 0; first < count; first += at_once) {
        const std::size_t last = std::min(first + at_once, count);
        for (std::size_t place = first + rows_prefetched;
             place < std::min(last + rows_prefetched, count); ++place) {
            ring.prefetch(draws.slots[place], row_bytes);
        }
        copy_block(ring, first, last, draws, target);
    }
}

}  // namespace mpbuffer
