// The learner's side of a prioritized ring: fold, draw, update. One holder of the learner role at a
// time, one thread at a time; the caller sees to both.
//
// Leaves and laps lie in shared memory and are written here alone; the nodes above them and the
// list of pending slots are private, and rebuilt from the slot words by `take_over`. So a
// learner that dies at any instruction leaves nothing that its successor trusts. A call that runs
// out of memory throws, and the next fold goes on from there.
//
// A row is in the tree if its lap, seq / capacity, is the lap in its slot's head and the slot's
// word says that it is still there. Its leaf is 0 if its priority is: it is never drawn, and may be
// updated as any other. Any other row's leaf is set to 0 once it is known to be gone.
//
// What holds after every fold, for each committed row s not older than the last clear: s has not
// been folded yet, or its lap is in the head, or the slot is pending with a position of at least s.
// A pending slot is looked at again by every fold; a hole is never given up.
//
// Ordering: a new row's leaf is stored before its lap (release) [L1], so that a successor, who
// keeps a leaf only where lap and slot word agree, never pairs a row with another row's leaf.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "os/pages.hpp"
#include "ring/gather.hpp"
#include "ring/own_rows.hpp"
#include "ring/slot_ring.hpp"
#include "segment/role.hpp"
#include "select/laps.hpp"
#include "select/random.hpp"
#include "select/recent_draws.hpp"
#include "select/sum_tree.hpp"
#include "select/weights_of_draws.hpp"

namespace mpbuffer {

// What a handle keeps from one time that it has the role to the next, so that the copy of an index
// of a recent batch never means a row that came after the one it was sampled with.
struct LearnerMemory {
    RecentDraws recent;
    OwnRows own_rows;
};

class Learner {
  public:
    // Takes over from whoever was the learner before: reads every slot word once, O(capacity).
    // `role` and `memory` must outlive it, and `sources`, null where rows have none.
    Learner(SlotRing ring, float* leaves, Role& role, PriorityRule rule, std::size_t row_bytes,
            LearnerMemory& memory, const Sources* sources = nullptr);

    // Takes over what was added since the last fold: O(rows added, pending slots).
    void fold();

    // A sample of `count` rows by priority, stratified, in steps, `copy_rows` being the second:
    // folds and draws; then draws again, from the same strata, what copy_rows has missed, and
    // computes the weights. What else the learner does in between changes nothing of what was
    // drawn. EmptyBuffer if there is no row, or none whose leaf is above 0.
    void draw(std::size_t count, Generator& generator, Draws& draws);
    void finish(Weighting weighting, Generator& generator, Draws& draws,
                const SampleTarget& target);

    // Sets priorities[i] for the row that slots[i] means: its generation where one is given (not 0,
    // and of this slot), else the seq sampled there lately, else generation(). Rows that are gone,
    // or not in the tree and not this handle's own, are left alone; returns how many were. Slots
    // and priorities are valid.
    std::uint64_t update(std::span<const std::int64_t> slots,
                         std::span<const std::uint64_t> generations,
                         std::span<const double> priorities, std::span<const float> leaves);

    // The seq of the row that the slot means: of one that this handle has added since the last
    // fold, if it sampled no row there lately; else of the one that the last fold saw; 0 if none.
    std::uint64_t generation(std::uint64_t slot);

    double total() const { return tree_.total(); }
    // What each fold, sample and update publishes through the role.
    LearnerFigures figures() const;

  private:
    void take_over();
    void move_to(std::uint64_t position);
    // The seq of the row whose leaf is in the tree; before a first one, one of lap 0, which is no
    // row's.
    std::uint64_t seq_in_tree(std::uint64_t slot) const {
        return laps_.seq(slot, ring_.head(slot).lap.load(std::memory_order_relaxed));
    }
    bool is_folded(std::uint64_t slot, std::uint32_t lap) const;
    bool is_folded(std::uint64_t slot, std::uint64_t seq) const;
    bool fold_row(std::uint64_t slot, std::uint64_t seq);
    // Forced inline: most of what a fold costs; its count of sampleable rows stays in a register.
    [[gnu::always_inline]] inline bool fold_row(std::uint64_t slot, std::uint64_t seq,
                                                std::uint32_t lap, std::uint64_t& sampleable);
    bool own_row(std::uint64_t slot, std::uint64_t seq);
    void store_leaf(std::uint64_t slot, float leaf) { store_leaf(slot, leaf, sampleable_); }
    [[gnu::always_inline]] void store_leaf(std::uint64_t slot, float leaf,
                                           std::uint64_t& sampleable) {
        const bool before = tree_.leaf(slot) > 0;
        tree_.store_leaf(slot, leaf);
        sampleable += static_cast<std::uint64_t>(leaf > 0) - static_cast<std::uint64_t>(before);
    }
    void mark_pending(std::uint64_t slot, std::uint64_t seq);
    void fold_range(std::uint64_t first, std::uint64_t last);
    void retire();
    void fold_clear(std::uint64_t cleared);
    void recheck_pending();
    void require_rows();
    const char* why_no_row() const;
    void look_up(std::size_t i, Draws& draws) const;
    void note_tree(Draws& draws) const;
    bool draw_newer(std::size_t place, Draws& draws);
    void draw_again(std::span<const std::size_t> places, Generator& generator, Draws& draws);

    SlotRing ring_;
    Role& role_;
    PriorityRule rule_;
    std::size_t row_bytes_;
    const Sources* sources_;
    PrivateMemory nodes_;
    SumTree tree_;
    LearnerMemory& memory_;
    Laps laps_;
    std::unordered_map<std::uint64_t, std::uint64_t>
        pending_;  // slot -> the position expected there
    std::uint64_t folded_ = 0;
    std::uint64_t cleared_ = 0;
    std::uint64_t sampleable_ = 0;
    std::uint64_t updates_ = 0;
    std::uint64_t stale_ = 0;
    std::uint64_t draws_ = 0;
    std::uint64_t rows_folded_ = 0;
    std::vector<std::uint64_t> touched_;
};

}  // namespace mpbuffer
