#include "select/prioritized.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/guard.hpp"
#include "base/stop_points.hpp"

namespace mpbuffer {

namespace {

// How often a sample that finds every row just being overwritten folds again before it gives up.
constexpr int max_refolds = 1000;
constexpr auto patience = std::chrono::milliseconds(500);

// How many rows of one sample may be found overwritten before it gives up: far more than a writer
// can cause who does not overwrite the whole buffer while a row is being copied.
constexpr std::uint64_t redraws_beside_count = 10'000;

// The leaf whose row has weight 1.
double unit_leaf(WeightNorm norm, const Draws& draws) {
    switch (norm) {
        case WeightNorm::batch: return *std::min_element(draws.leaves.begin(), draws.leaves.end());
        case WeightNorm::none: return draws.total / static_cast<double>(draws.drawable);
        default: return draws.least;
    }
}

}  // namespace

// Folds until a row can be drawn. A buffer without any row, or without one above priority 0, is
// told at once; one whose rows are all being overwritten at this moment after max_refolds.
void Learner::require_rows() {
    std::chrono::steady_clock::time_point deadline{};
    for (int attempt = 0; !(tree_.total() > 0); ++attempt) {
        const bool hopeless = pending_.empty() && ring_.position() == folded_;
        // Beside the count, since on a busy machine each yield may take milliseconds.
        const auto now = std::chrono::steady_clock::now();
        if (attempt == 0) deadline = now + patience;
        if (hopeless || attempt == max_refolds || now >= deadline) {
            throw EmptyBuffer(why_no_row());
        }
        if (attempt > 0) std::this_thread::yield();
        fold();
    }
}

const char* Learner::why_no_row() const {
    const auto [cleared, position] = ring_.bounds();
    if (position == cleared) return ring_.why_empty();
    let_others_scan(ring_.capacity());
    for (std::uint64_t slot = 0; slot < ring_.capacity(); ++slot) {
        const std::uint64_t word = ring_.word(slot).load(std::memory_order_relaxed);
        if (slot_word::is_committed(word) && slot_word::seq(word) >= cleared) {
            return "every row has priority 0 and leaf 0, and is never drawn";
        }
    }
    return "no row is complete: every slot is empty or being written";
}

void Learner::draw(std::size_t count, Generator& generator, Draws& draws) {
    fold();
    require_rows();
    draws.masses.resize(count);
    draws.slots.resize(count);
    draws.seqs.resize(count);
    draws.leaves.resize(count);
    memory_.recent.reserve(count);
    draws.cleared = cleared_;
    draws.least = tree_.least();
    note_tree(draws);
    for (std::size_t i = 0; i < count; ++i) {
        draws.masses[i] = stratified_mass(generator, i, count, tree_.total());
    }
    tree_.find_prefix_sums(draws.masses.data(), draws.slots.data(), count);
    draws_ += count;
    prefetch_rows(ring_, row_bytes_, draws);
    for (std::size_t i = 0; i < count; ++i) look_up(i, draws);
}

// Notes which row place i has drawn: none, if damage let a leaf be drawn that is not above 0.
void Learner::look_up(std::size_t i, Draws& draws) const {
    const std::uint64_t slot = draws.slots[i];
    draws.leaves[i] = tree_.leaf(slot);
    draws.seqs[i] = draws.leaves[i] > 0 ? seq_in_tree(slot) : 0;
}

void Learner::note_tree(Draws& draws) const {
    draws.total = tree_.total();
    draws.drawable = sampleable_;
}

void Learner::finish(Weighting weighting, Generator& generator, Draws& draws,
                     const SampleTarget& target) {
    const std::size_t count = draws.slots.size();
    std::uint64_t redraws_left = redraws_beside_count + count;
    // Many at once share a fold; few at once are copied sooner after it.
    std::size_t at_once = draws.missed.size();
    while (!draws.missed.empty()) {
        at_once = std::clamp<std::size_t>(at_once, 1, draws.missed.size());
        if (at_once > redraws_left) throw EmptyBuffer("rows are overwritten faster than read");
        redraws_left -= at_once;
        draws.redraws += at_once;
        const auto first = draws.missed.end() - static_cast<std::ptrdiff_t>(at_once);
        draw_again({first, draws.missed.end()}, generator, draws);
        touched_.clear();
        touched_.reserve(at_once);
        const auto still_missed = std::remove_if(first, draws.missed.end(), [&](std::size_t place) {
            return copy_row(ring_, place, draws, target) ||
                   (draw_newer(place, draws) && copy_row(ring_, place, draws, target));
        });
        if (!touched_.empty()) tree_.refresh_slots(touched_);
        note_tree(draws);
        const auto copied = static_cast<std::size_t>(draws.missed.end() - still_missed);
        draws.missed.erase(still_missed, draws.missed.end());
        at_once = copied * 8 < at_once ? at_once / 2 : at_once * 2;
    }
    memory_.recent.remember(draws.slots, draws.seqs);
    importance_weights(draws.leaves.data(), count, unit_leaf(weighting.norm, draws), weighting.beta,
                       target.weights);
    if (target.probabilities != nullptr) {
        for (std::size_t i = 0; i < count; ++i) {
            const double probability = double{draws.leaves[i]} / draws.total;
            target.probabilities[i] = static_cast<float>(std::min(probability, 1.0));
        }
    }
    role_.store_figures(figures());
}

// Where a row is gone again that was drawn just after a fold, rows are overwritten faster than the
// tree can follow. Then the row that its slot holds by now will do, under its own leaf, unless that
// is 0.
bool Learner::draw_newer(std::size_t place, Draws& draws) {
    const std::uint64_t slot = draws.slots[place];
    const std::uint64_t word = ring_.word(slot).load(std::memory_order_relaxed);
    const std::uint64_t seq = slot_word::seq(word);
    if (!slot_word::is_committed(word) || seq < draws.cleared) return false;
    if (!is_folded(slot, seq)) {
        if (!fold_row(slot, seq)) return false;
        touched_.push_back(slot);
    }
    if (!(tree_.leaf(slot) > 0)) return false;
    draws.seqs[place] = seq;
    draws.leaves[place] = tree_.leaf(slot);
    draws.least = std::min(draws.least, draws.leaves[place]);
    return true;
}

// Takes the slots whose drawn rows are gone out of the tree, unless a fold since then has found
// newer rows there, and draws from the same strata of what is there now. Folds once, since where
// rows were overwritten, many may have been.
void Learner::draw_again(std::span<const std::size_t> places, Generator& generator, Draws& draws) {
    touched_.clear();
    touched_.reserve(places.size());
    for (const std::size_t place : places) {
        const std::uint64_t slot = draws.slots[place];
        if (!(tree_.leaf(slot) > 0) || seq_in_tree(slot) != draws.seqs[place]) continue;
        mark_pending(slot, slot_word::seq(ring_.word(slot).load(std::memory_order_acquire)));
        touched_.push_back(slot);
    }
    for (const std::uint64_t slot : touched_) {
        store_leaf(slot, 0);
        stop_point(StopPoint::draw_again_leaf_zeroed);
    }
    if (!touched_.empty()) tree_.refresh_slots(touched_);
    fold();
    require_rows();
    const std::size_t count = places.size();
    draws.masses.resize(count);
    touched_.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
        draws.masses[i] = stratified_mass(generator, places[i], draws.slots.size(), tree_.total());
    }
    tree_.find_prefix_sums(draws.masses.data(), touched_.data(), count);
    draws_ += count;
    for (std::size_t i = 0; i < count; ++i) {
        draws.slots[places[i]] = touched_[i];
        look_up(places[i], draws);
    }
    draws.cleared = std::max(draws.cleared, cleared_);
    draws.least = std::min(draws.least, tree_.least());
}

// Whether the row is this handle's own, and no index that was sampled in its slot can mean another.
bool Learner::own_row(std::uint64_t slot, std::uint64_t seq) {
    return memory_.recent.seq_in(slot) == 0 && memory_.own_rows.has(seq);
}

std::uint64_t Learner::update(std::span<const std::int64_t> slots,
                              std::span<const std::uint64_t> generations,
                              std::span<const double> priorities, std::span<const float> leaves) {
    const std::uint64_t cleared = ring_.clear_before();
    std::uint64_t stale = 0;
    double largest = 0;
    touched_.clear();
    touched_.reserve(slots.size());  // nothing below throws
    if (tree_.is_far()) {
        for (const std::int64_t each : slots) {
            const auto slot = static_cast<std::uint64_t>(each);
            ring_.prefetch_head(slot);
            tree_.prefetch(slot);
        }
    }
    for (std::size_t i = 0; i < slots.size(); ++i) {
        const auto slot = static_cast<std::uint64_t>(slots[i]);
        // The slot word tells of rows overwritten since the last fold; relaxed: nothing is read by
        // it.
        const std::uint64_t word = ring_.word(slot).load(std::memory_order_relaxed);
        std::uint64_t meant = generations.empty() ? 0 : generations[i];
        // One that is not the slot's was given for an index that was changed after sampling.
        if (word != slot_word::committed(meant) && !laps_.is_in(slot, meant)) meant = 0;
        if (meant == 0) meant = memory_.recent.seq_in(slot);
        if (meant == 0) meant = generation(slot);
        const bool there = word == slot_word::committed(meant);
        const bool in_tree =
            ring_.head(slot).lap.load(std::memory_order_relaxed) == laps_.of(meant);
        if (!there || meant < cleared ||
            !(in_tree || (own_row(slot, meant) && fold_row(slot, meant)))) {
            ++stale;
            continue;
        }
        stop_point(StopPoint::update_looked_at);
        store_leaf(slot, leaves[i]);
        stop_point(StopPoint::update_leaf_stored);
        largest = std::max(largest, priorities[i]);
        touched_.push_back(slot);
    }
    updates_ += touched_.size();
    stale_ += stale;
    if (!touched_.empty()) {
        stop_point(StopPoint::update_to_refresh);
        tree_.refresh_slots(touched_);
        ring_.raise_max_priority(largest);
    }
    role_.store_figures(figures());
    return stale;
}

std::uint64_t Learner::generation(std::uint64_t slot) {
    const std::uint64_t word = ring_.word(slot).load(std::memory_order_relaxed);
    const std::uint64_t newest = slot_word::seq(word);
    const std::uint64_t seen = seq_in_tree(slot);
    const bool is_new = newest != seen && slot_word::is_committed(word) && own_row(slot, newest);
    const std::uint64_t meant = is_new ? newest : seen;
    return meant >= ring_.clear_before() ? meant : 0;
}

LearnerFigures Learner::figures() const {
    return {folded_, sampleable_, tree_.total(),         double{tree_.least()},  updates_,
            stale_,  draws_,      tree_.nodes_visited(), coarse_wall_clock_ns(), rows_folded_};
}

}  // namespace mpbuffer
