#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "buffer/replay_buffer.hpp"
#include "select/random.hpp"
#include "select/uniform.hpp"

namespace mpbuffer {

namespace {

// How much is copied, counting 64 bytes more a row, before a long read calls back.
constexpr std::size_t bytes_at_once = std::size_t{16} << 20;

}  // namespace

std::vector<std::uint64_t> ReplayBuffer::filled_slots(bool shuffle) {
    const Guard guard(learner_mutex_);
    ready();
    retire();
    std::vector<std::uint64_t> filled = find_filled_slots(ring_);
    if (shuffle) {
        Generator& draws = generator();
        for (std::size_t i = filled.size(); i > 1; --i) {
            std::swap(filled[i - 1], filled[draws.below(i)]);
        }
    }
    return filled;
}

bool ReplayBuffer::read_slot(std::uint64_t slot, std::size_t i,
                             std::span<const FieldTarget> fields) {
    const GuardOfMany stays_open(copying_);
    ready();
    return read_row(ring_, sources(), slot, i, fields) != 0;
}

// The leaf that the learner has set for row `seq`, else the one that it came with; false if the row
// is gone. A leaf of another row is found only after the slot's word has changed: the learner sets
// it when it has seen that word.
bool ReplayBuffer::leaf_of_row(std::uint64_t slot, std::uint64_t seq, std::uint32_t lap,
                               float& leaf) const {
    const PriorityRule rule = priority_rule();
    if (ring_.head(slot).lap.load(std::memory_order_acquire) == lap) {  // pairs with L1
        std::atomic_ref<float> current(at<float>(shape().leaf_offset)[slot]);
        leaf = current.load(std::memory_order_relaxed);  // L2, with the fence of unchanged()
        if (!unchanged(ring_.word(slot), slot_word::committed(seq))) return false;
        // 0 is also what a clear leaves of it.
        if (leaf == 0 && seq < ring_.clear_before()) return false;
        if (rule.is_leaf(leaf)) return true;
    }
    if (!ring_.read_leaf_in(slot, seq, leaf)) return false;
    if (!rule.is_leaf(leaf)) leaf = rule.leaf(ring_.max_priority());
    return true;
}

bool ReplayBuffer::mark_row(std::uint64_t slot, std::uint64_t seq, RowMarks& marks) const {
    if (prioritized()) {
        float leaf = 0;
        if (!leaf_of_row(slot, seq, leaf)) return false;
        marks.priorities.push_back(priority_rule().priority(leaf));
    }
    marks.seqs.push_back(seq);
    return true;
}

std::size_t ReplayBuffer::read_slots(std::span<const std::uint64_t> slots,
                                     std::span<const FieldTarget> fields,
                                     const std::function<void()>& give_way, WithoutRow without_row,
                                     RowMarks* marks) {
    const CoreCall call;
    let_others_copy(slots.size() * given_bytes());
    const std::size_t at_once = bytes_at_once / (given_bytes() + 64) + 1;
    std::size_t rows = 0;
    for (std::size_t first = 0; first < slots.size(); first += at_once) {
        if (first != 0 && give_way) call_back(give_way);
        const GuardOfMany stays_open(copying_);
        ready();
        for (const std::uint64_t slot :
             slots.subspan(first, std::min(at_once, slots.size() - first))) {
            std::uint64_t seq = read_row(ring_, sources(), slot, rows, fields);
            for (int attempt = 0; marks != nullptr && seq != 0; ++attempt) {
                if (mark_row(slot, seq, *marks)) break;
                // Overwritten since it was read.
                seq = attempt < most_readings ? read_row(ring_, sources(), slot, rows, fields) : 0;
            }
            if (seq != 0) {
                ++rows;
            } else if (without_row == WithoutRow::zeros) {
                for (const FieldTarget& field : fields) {
                    std::memset(field.values + rows * field.bytes, 0, field.bytes);
                }
                ++rows;
            }
        }
    }
    return rows;
}

std::size_t ReplayBuffer::read_all(bool shuffle, const MakeRoom& make_room,
                                   const std::function<void()>& give_way, RowMarks* marks) {
    const CoreCall call;
    const std::vector<std::uint64_t> slots = filled_slots(shuffle);
    const std::span<const FieldTarget> fields = call_back([&] { return make_room(slots.size()); });
    return read_slots(slots, fields, give_way, WithoutRow::left_out, marks);
}

void ReplayBuffer::read_priorities(std::span<const std::int64_t> slots,
                                   std::span<double> priorities) const {
    const GuardOfMany stays_open(copying_);
    ready();
    let_others_scan(slots.size());
    const std::uint64_t cleared = ring_.clear_before();
    for (std::size_t i = 0; i < slots.size(); ++i) {
        const auto slot = static_cast<std::uint64_t>(slots[i]);
        priorities[i] = std::numeric_limits<double>::quiet_NaN();
        for (int attempt = 0; attempt < most_readings; ++attempt) {
            const std::uint64_t word = ring_.word(slot).load(std::memory_order_acquire);
            float leaf = 0;
            if (!slot_word::is_committed(word) || slot_word::seq(word) < cleared) break;
            if (!leaf_of_row(slot, slot_word::seq(word), leaf)) continue;
            priorities[i] = priority_rule().priority(leaf);
            break;
        }
    }
}

}  // namespace mpbuffer
