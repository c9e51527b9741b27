// Slots as they are stored, for snapshots, and back into a buffer that nobody else sees yet.
#include <algorithm>
#include <cstring>
#include <string>
#include <thread>

#include "base/error.hpp"
#include "buffer/replay_buffer.hpp"
#include "ring/frames.hpp"
#include "select/laps.hpp"

namespace mpbuffer {

namespace {

// A slot that is being written: how often it is looked at until it counts as one without a row.
constexpr int most_looks = 16;

void require_slots(const SlotRing& ring, std::uint64_t first, std::size_t count) {
    if (first <= ring.capacity() && count <= ring.capacity() - first) return;
    throw IndexOutOfRange("slots " + std::to_string(first) + " to " +
                          std::to_string(first + count) + " of " + std::to_string(ring.capacity()));
}

void require_seqs(const SlotRing& ring, std::uint64_t first, std::span<const std::uint64_t> seqs) {
    require_slots(ring, first, seqs.size());
    const std::uint64_t position = ring.counters().cursor.load(std::memory_order_relaxed);
    for (std::size_t i = 0; i < seqs.size(); ++i) {
        const bool fits = seqs[i] % ring.capacity() == first + i && seqs[i] >= ring.capacity() &&
                          seqs[i] < position;
        if (seqs[i] != 0 && !fits) {
            throw InvalidArgument("position " + std::to_string(seqs[i]) + " in slot " +
                                  std::to_string(first + i) + " of " +
                                  std::to_string(ring.capacity()) + ", at position " +
                                  std::to_string(position));
        }
    }
}

SeqBounds checked_bounds(const SlotRing& ring, const SeqBounds& bounds) {
    const auto is_position = [&ring](std::uint64_t value) {
        return value >= ring.capacity() && value < slot_word::max_seq - ring.capacity();
    };
    if (is_position(bounds.position) && is_position(bounds.cleared)) return bounds;
    throw InvalidArgument("position " + std::to_string(bounds.position) + ", cleared before " +
                          std::to_string(bounds.cleared) + ", of " +
                          std::to_string(ring.capacity()) + " slots");
}

}  // namespace

SavedCounters ReplayBuffer::counters() {
    const Guard guard(learner_mutex_);
    ready();
    retire();
    SavedCounters counters{ring_.bounds(), ring_.max_priority(), {}};
    for (unsigned i = 1; i <= sources_.rings(); ++i) {
        counters.sources.push_back(sources_.ring(i).position());
    }
    return counters;
}

std::optional<Generator::State> ReplayBuffer::generator_state() const {
    const Guard guard(learner_mutex_);
    ready();
    if (prioritized() && !has_role()) return {};
    return local_->generator.state();
}

void ReplayBuffer::read_stored(const SlotsRead& slots) const {
    require_slots(ring_, slots.first, slots.seqs.size());
    const GuardOfMany stays_open(copying_);
    ready();
    let_others_scan(slots.seqs.size());
    let_others_copy(slots.fields.empty() ? 0 : slots.seqs.size() * shape().row_bytes);
    const auto [cleared, position] = ring_.bounds();
    Laps laps(capacity());
    laps.move_to(position);
    for (std::size_t i = 0; i < slots.seqs.size(); ++i) {
        ring_.prefetch_head(std::min(slots.first + i + 24, capacity() - 1));
        slots.seqs[i] = read_stored(slots, i, cleared, laps);
        if (slots.seqs[i] != 0) continue;
        for (const FieldTarget& field : slots.fields) {
            std::memset(field.values + i * field.bytes, 0, field.bytes);
        }
        if (slots.births != nullptr) {
            std::fill_n(slots.births + i * sources_.rings(), sources_.rings(), 0);
        }
        if (slots.leaves != nullptr) slots.leaves[i] = 0;
    }
}

// Reads the row in place `i`; 0 if there is none.
std::uint64_t ReplayBuffer::read_stored(const SlotsRead& slots, std::size_t i,
                                        std::uint64_t cleared, const Laps& laps) const {
    const std::uint64_t slot = slots.first + i;
    const auto copy = [&](const std::byte* record) {
        if (slots.fields.empty()) return;
        if (sources_.any()) return read_references(sources_, slots.fields, slots.births, i, record);
        for (const FieldTarget& field : slots.fields) {
            load_from_record(field.values + i * field.bytes, record + field.offset, field.bytes);
        }
    };
    for (int look = 0; look < most_looks; ++look) {
        if (slot_word::seq(ring_.word(slot).load(std::memory_order_relaxed)) < cleared) return 0;
        const std::uint64_t seq = ring_.read_any(slot, cleared, copy);
        float leaf = 0;
        if (seq != 0 && (slots.leaves == nullptr || leaf_of_row(slot, seq, laps.of(seq), leaf))) {
            if (slots.leaves != nullptr) slots.leaves[i] = leaf;
            return seq;
        }
        std::this_thread::yield();
    }
    return 0;
}

void ReplayBuffer::read_frames(unsigned ring, std::uint64_t first, std::byte* frames,
                               std::span<std::uint64_t> seqs) const {
    const SlotRing& from = sources_.ring(ring);
    const std::uint64_t bytes = header_.ring[ring].row_bytes;
    require_slots(from, first, seqs.size());
    const GuardOfMany stays_open(copying_);
    ready();
    let_others_scan(seqs.size());
    let_others_copy(frames == nullptr ? 0 : seqs.size() * bytes);
    for (std::size_t i = 0; i < seqs.size(); ++i) {
        std::byte* const frame = frames == nullptr ? nullptr : frames + i * bytes;
        seqs[i] = 0;
        for (int look = 0; look < most_looks && seqs[i] == 0; ++look) {
            if (slot_word::seq(from.word(first + i).load(std::memory_order_relaxed)) == 0) break;
            if (look != 0) std::this_thread::yield();
            seqs[i] = from.read_any(first + i, from.capacity(), [&](const std::byte* record) {
                if (frame != nullptr) load_from_record(frame, record, bytes);
            });
        }
        if (seqs[i] == 0 && frame != nullptr) std::memset(frame, 0, bytes);
    }
}

void ReplayBuffer::require_hidden() const {
    ready();
    if (segment_.is_visible()) {
        throw InvalidArgument("cannot restore into '" + name_ + "': others may use it already");
    }
}

void ReplayBuffer::restore_counters(const SavedCounters& counters) {
    const Guard guard(learner_mutex_);
    require_hidden();
    if (counters.sources.size() != sources_.rings()) {
        throw InvalidArgument("positions of " + std::to_string(counters.sources.size()) +
                              " source rings, expected " + std::to_string(sources_.rings()));
    }
    const SeqBounds bounds = checked_bounds(ring_, counters.rows);
    for (unsigned i = 1; i <= sources_.rings(); ++i) {
        const std::uint64_t position = counters.sources[i - 1];
        checked_bounds(sources_.ring(i), {position, position});
    }
    ring_.initialise(bounds);
    for (unsigned i = 1; i <= sources_.rings(); ++i) {
        SlotRing& ring = sources_.ring(i);
        ring.initialise({ring.capacity(), counters.sources[i - 1]});
    }
}

void ReplayBuffer::restore_rows(const SlotsRestored& slots) {
    const CoreCall call;
    let_others_run();
    const Guard guard(add_mutex_);
    require_hidden();
    require_seqs(ring_, slots.first, slots.seqs);
    std::uint64_t restored = 0;
    for (std::size_t i = 0; i < slots.seqs.size(); ++i) {
        if (slots.seqs[i] == 0) continue;
        const std::uint64_t slot = slots.first + i;
        std::byte* const record = ring_.record(slot);
        if (sources_.any()) {
            store_references(sources_, slots.fields, slots.births, i, record);
        } else {
            for (const FieldSource& field : slots.fields) {
                store_to_record(record + field.offset, field.values + i * field.step, field.bytes);
            }
        }
        ring_.commit(slot, slots.seqs[i], slots.leaves == nullptr ? 0 : slots.leaves[i]);
        ++restored;
    }
    std::atomic<std::uint64_t>& rows = *writer().rows;
    rows.store(rows.load(std::memory_order_relaxed) + restored, std::memory_order_relaxed);
    ring_.request_recount();
}

void ReplayBuffer::restore_frames(unsigned ring, std::uint64_t first, const std::byte* frames,
                                  std::span<const std::uint64_t> seqs) {
    const CoreCall call;
    let_others_run();
    const Guard guard(add_mutex_);
    require_hidden();
    SlotRing& into = sources_.ring(ring);
    const std::uint64_t bytes = header_.ring[ring].row_bytes;
    require_seqs(into, first, seqs);
    for (std::size_t i = 0; i < seqs.size(); ++i) {
        if (seqs[i] == 0) continue;
        store_to_record(into.record(first + i), frames + i * bytes, bytes);
        into.commit(first + i, seqs[i], 0);
    }
}

void ReplayBuffer::restore_generator(const Generator::State& state) {
    const Guard guard(learner_mutex_);
    require_hidden();
    if (std::all_of(state.begin(), state.end(), [](std::uint64_t word) { return word == 0; })) {
        throw InvalidArgument("a generator's state of zeros");
    }
    local_->generator = Generator(state);
}

void ReplayBuffer::raise_max_priority(double priority) {
    const Guard guard(add_mutex_);
    require_hidden();
    ring_.raise_max_priority(priority);
}

}  // namespace mpbuffer
