#include "ring/sequences.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "ring/columns.hpp"

namespace mpbuffer {

namespace {

// Steps are copied field by field, so many between two looks at their words.
constexpr std::size_t steps_in_a_block = 64;
constexpr std::size_t steps_prefetched = 40;

// Finds slots of positions without a division where one is not far from the last.
class SlotFinder {
  public:
    explicit SlotFinder(std::uint64_t capacity) : capacity_(capacity) {}

    std::uint64_t operator()(std::uint64_t position) {
        const std::uint64_t ahead = position - position_;
        if (ahead < capacity_) {
            slot_ += ahead;
            if (slot_ >= capacity_) slot_ -= capacity_;
        } else {
            slot_ = position % capacity_;
        }
        position_ = position;
        return slot_;
    }

  private:
    std::uint64_t capacity_;
    std::uint64_t position_ = 0;
    std::uint64_t slot_ = 0;
};

// The values of row `i` of one target, a value for each step.
struct StepValues {
    std::byte* first;
    std::size_t bytes;  // of one
    std::size_t step;   // from one to the next

    StepValues(const FieldTarget& target, std::size_t i, std::size_t steps)
        : bytes(target.bytes / steps) {
        first = target.values + i * (target.across == 0 ? target.bytes : bytes);
        step = target.across == 0 ? bytes : target.across * bytes;
    }
    std::byte* at(std::size_t k) const { return first + k * step; }
    void fill(std::size_t begin, std::size_t end, int value) const {
        if (step == bytes) {
            std::memset(at(begin), value, (end - begin) * bytes);
        } else {
            for (std::size_t k = begin; k < end; ++k) std::memset(at(k), value, bytes);
        }
    }
};

struct About {
    std::size_t steps;
    bool begins_episode;
};

// Of a record that is being overwritten it may be anything, but not more than `most` steps.
About about(const std::byte* record, std::size_t most) {
    std::uint32_t word = 0;
    load_from_record(reinterpret_cast<std::byte*>(&word), record + RowLayout::about_at,
                     sizeof word);
    return {std::min<std::size_t>(word >> 1, most), (word & 1) != 0};
}

}  // namespace

bool copy_sequence(const Sources& sources, std::span<const FieldTarget> fields, std::size_t i,
                   const std::byte* record) {
    const RowLayout& layout = sources.layout();
    const std::size_t most = layout.steps();
    const SlotRing& ring = sources.ring(1);
    const auto [steps, begins_episode] = about(record, most);
    if (steps == 0) return false;
    const std::uint64_t born = born_in(record, 1);
    std::array<const std::byte*, steps_in_a_block> records;
    std::array<std::atomic<std::uint64_t>*, steps_in_a_block> words;
    std::array<std::uint64_t, steps_in_a_block> expected;
    SlotFinder slot_of(ring.capacity());
    for (std::size_t first = 0; first < steps; first += steps_in_a_block) {
        const std::size_t count = std::min(steps - first, steps_in_a_block);
        for (std::size_t k = 0; k < count; ++k) {
            const std::uint64_t position =
                position_at(record + RowLayout::steps_at + 4 * (first + k), born);
            const std::uint64_t slot = slot_of(position);
            words[k] = &ring.word(slot);
            expected[k] = slot_word::committed(position);
            if (words[k]->load(std::memory_order_acquire) != expected[k]) return false;  // R1
            records[k] = ring.record(slot);
        }
        for (std::size_t f = 0; f < layout.fields().size(); ++f) {
            const StoredField& field = layout.fields()[f];
            const StepValues values(fields[f], i, field.cut.planes);
            const std::size_t wanted = field.cut.planes == most ? count : first == 0 ? 1 : 0;
            copy_column({records.data(), wanted}, field.stored, values.bytes, values.at(first),
                        values.step);
        }
        for (std::size_t k = 0; k < count; ++k) {
            if (unchanged(*words[k], expected[k])) continue;  // R2
            // Whoever retires next sees the cursor of the claim that was seen here.
            acquire_fence();
            return false;
        }
    }
    for (std::size_t f = 0; f < layout.fields().size(); ++f) {
        if (layout.fields()[f].cut.planes != most || steps == most) continue;
        StepValues(fields[f], i, most).fill(steps, most, 0);
    }
    const StepValues mask(fields[layout.fields().size()], i, most);
    mask.fill(0, steps, 1);
    mask.fill(steps, most, 0);
    const StepValues is_first(fields[layout.fields().size() + 1], i, most);
    is_first.fill(0, most, 0);
    *is_first.first = begins_episode ? std::byte{1} : std::byte{0};
    return true;
}

void prefetch_sequence(const Sources& sources, const std::byte* record) {
    const SlotRing& ring = sources.ring(1);
    const std::size_t steps = about(record, sources.layout().steps()).steps;
    const std::uint64_t born = born_in(record, 1);
    const std::size_t bytes = sources.layout().source_bytes()[0];
    // Of small steps, several are in a line.
    const std::size_t step = std::max<std::size_t>(1, 64 / bytes);
    const std::size_t end = std::min(steps, steps_prefetched * step);
    SlotFinder slot_of(ring.capacity());
    for (std::size_t k = 0; k < end; k += step) {
        ring.prefetch(slot_of(position_at(record + RowLayout::steps_at + 4 * k, born)), bytes);
    }
}

}  // namespace mpbuffer
