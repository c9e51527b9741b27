#include <algorithm>

#include "base/guard.hpp"
#include "base/stop_points.hpp"
#include "select/prioritized.hpp"

namespace mpbuffer {

namespace {

// How far ahead of a pass over slots their heads are asked for.
constexpr std::uint64_t heads_ahead = 24;

}  // namespace

Learner::Learner(SlotRing ring, float* leaves, Role& role, PriorityRule rule, std::size_t row_bytes,
                 LearnerMemory& memory, const Sources* sources)
    : ring_(ring),
      role_(role),
      rule_(rule),
      row_bytes_(row_bytes),
      sources_(sources),
      nodes_(SumTree::bytes_required(ring.capacity())),
      tree_(leaves, ring.capacity(), nodes_.data()),
      memory_(memory),
      laps_(ring.capacity()) {
    take_over();
}

void Learner::take_over() {
    const std::uint64_t capacity = ring_.capacity();
    let_others_scan(capacity);
    retire();
    // First: whatever is claimed after this look is left to the next fold.
    const auto [cleared, position] = ring_.bounds();
    cleared_ = cleared;
    move_to(position);
    std::uint64_t sampleable = 0;
    const std::uint64_t lap = position - position % capacity;
    for (std::uint64_t slot = 0; slot < capacity; ++slot) {
        stop_point(StopPoint::take_over_slot);
        ring_.prefetch_head(std::min(slot + heads_ahead, capacity - 1));
        const std::uint64_t word = ring_.word(slot).load(std::memory_order_acquire);
        const std::uint64_t seq = slot_word::seq(word);
        const bool present = slot_word::is_committed(word) && seq >= cleared_ &&
                             (is_folded(slot, seq) || fold_row(slot, seq));
        if (!present && tree_.leaf(slot) != 0) tree_.store_leaf(slot, 0);
        sampleable += tree_.leaf(slot) > 0 ? 1 : 0;
        const std::uint64_t newest = lap + slot < position ? lap + slot : lap + slot - capacity;
        if (newest >= cleared_ && !(present && seq >= newest)) mark_pending(slot, newest);
    }
    // Nobody writes the leaves behind the last slot; but a damaged file may have some.
    for (std::uint64_t slot = capacity; slot < padded_leaves(capacity); ++slot) {
        if (tree_.leaf(slot) != 0) tree_.store_leaf(slot, 0);
    }
    sampleable_ = sampleable;
    tree_.rebuild();
}

void Learner::move_to(std::uint64_t position) {
    folded_ = position;
    laps_.move_to(position);
}

inline bool Learner::is_folded(std::uint64_t slot, std::uint32_t lap) const {
    return ring_.head(slot).lap.load(std::memory_order_relaxed) == lap &&
           rule_.is_leaf(tree_.leaf(slot));
}

bool Learner::is_folded(std::uint64_t slot, std::uint64_t seq) const {
    return is_folded(slot, laps_.of(seq));
}

// Takes the leaf that came with row `seq`; false if the row is not there (any more).
inline bool Learner::fold_row(std::uint64_t slot, std::uint64_t seq, std::uint32_t lap,
                              std::uint64_t& sampleable) {
    float leaf = 0;
    if (!ring_.read_leaf_in(slot, seq, leaf)) return false;
    if (!rule_.is_leaf(leaf)) [[unlikely]]
        leaf = rule_.leaf(ring_.max_priority());
    store_leaf(slot, leaf, sampleable);
    stop_point(StopPoint::leaf_stored);
    ring_.head(slot).lap.store(lap, std::memory_order_release);  // L1
    stop_point(StopPoint::lap_stored);
    return true;
}

bool Learner::fold_row(std::uint64_t slot, std::uint64_t seq) {
    return fold_row(slot, seq, laps_.of(seq), sampleable_);
}

void Learner::mark_pending(std::uint64_t slot, std::uint64_t seq) {
    std::uint64_t& expected = pending_[slot];
    expected = std::max(expected, seq);
}

// Rows whose sources are gone are no longer there.
void Learner::retire() {
    if (sources_ != nullptr) sources_->retire(ring_);
}

void Learner::fold() {
    retire();
    const auto [cleared, position] = ring_.bounds();
    if (cleared != cleared_) fold_clear(cleared);
    const std::uint64_t capacity = ring_.capacity();
    const std::uint64_t oldest = position - std::min(position, capacity);
    const std::uint64_t first = std::max({folded_, oldest, cleared_});
    if (first < position) fold_range(first, position);
    move_to(std::max(position, folded_));
    memory_.own_rows.forget_before(folded_);
    if (!pending_.empty()) recheck_pending();
    role_.store_figures(figures());
}

// If it throws, the next fold does the same range again.
void Learner::fold_range(std::uint64_t first, std::uint64_t last) {
    let_others_scan(last - first);
    const std::uint64_t capacity = ring_.capacity();
    const std::uint64_t first_slot = first % capacity;
    auto lap = static_cast<std::uint32_t>(first / capacity);
    std::uint64_t slot = first_slot;
    std::uint64_t ahead = (first_slot + heads_ahead) % capacity;
    std::uint64_t sampleable = sampleable_;
    for (std::uint64_t seq = first; seq < last; ++seq) {
        ring_.prefetch_head(ahead);
        if (++ahead == capacity) ahead = 0;
        if (!is_folded(slot, lap) && !fold_row(slot, seq, lap, sampleable)) [[unlikely]] {
            const std::uint64_t word = ring_.word(slot).load(std::memory_order_acquire);
            // A later claim is left to the fold that reaches it.
            if (slot_word::seq(word) <= seq) {
                if (!slot_word::is_committed(word)) store_leaf(slot, 0, sampleable);
                sampleable_ = sampleable;  // before what may throw
                mark_pending(slot, seq);
            }
        }
        if (++slot == capacity) {
            slot = 0;
            ++lap;
        }
    }
    sampleable_ = sampleable;
    stop_point(StopPoint::fold_to_refresh);
    const std::uint64_t count = last - first;
    rows_folded_ += count;
    if (count >= capacity) {
        tree_.rebuild();
    } else if (first_slot + count <= capacity) {
        tree_.refresh_range(first_slot, first_slot + count);
    } else {
        tree_.refresh_range(first_slot, capacity);
        tree_.refresh_range(0, first_slot + count - capacity);
    }
}

// A retirement is of a few rows: looks at these alone, unless they are many.
void Learner::fold_clear(std::uint64_t cleared) {
    const std::uint64_t capacity = ring_.capacity();
    if (cleared - cleared_ <= capacity / 16 && cleared <= folded_) {
        touched_.clear();
        touched_.reserve(cleared - cleared_);
        for (std::uint64_t seq = cleared_; seq < cleared; ++seq) {
            const std::uint64_t slot = seq % capacity;
            if (!(tree_.leaf(slot) > 0) || seq_in_tree(slot) >= cleared) continue;
            store_leaf(slot, 0);
            touched_.push_back(slot);
        }
        if (!touched_.empty()) tree_.refresh_slots(touched_);
    } else {
        let_others_scan(capacity);
        for (std::uint64_t slot = 0; slot < capacity; ++slot) {
            ring_.prefetch_head(std::min(slot + heads_ahead, capacity - 1));
            if (seq_in_tree(slot) < cleared) store_leaf(slot, 0);
        }
        tree_.rebuild();
    }
    std::erase_if(pending_, [cleared](const auto& each) { return each.second < cleared; });
    cleared_ = cleared;
}

void Learner::recheck_pending() {
    touched_.clear();
    touched_.reserve(pending_.size());
    std::erase_if(pending_, [this](const auto& each) {
        const auto [slot, expected] = each;
        const std::uint64_t word = ring_.word(slot).load(std::memory_order_acquire);
        const std::uint64_t seq = slot_word::seq(word);
        if (!slot_word::is_committed(word)) {
            if (tree_.leaf(slot) > 0) {
                store_leaf(slot, 0);
                touched_.push_back(slot);
            }
            return false;
        }
        if (seq < cleared_) return false;
        if (!is_folded(slot, seq)) {
            if (!fold_row(slot, seq)) return false;
            touched_.push_back(slot);
        }
        return seq >= expected;
    });
    if (!touched_.empty()) tree_.refresh_slots(touched_);
}

}  // namespace mpbuffer
