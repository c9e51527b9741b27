// The last steps of one environment's episode, cut into sequences.
//
// A sequence has `length` steps of one episode, and the next one begins `period` steps later. Where
// the episode ends, what no sequence has yet becomes one that is shorter: with `pad`, and if it has
// steps beyond the burn-in. An episode ends by the step one of whose flags is not 0, and by
// cut_off().
//
// Priority of a sequence: eta * max |td| + (1 - eta) * mean |td|, of its steps behind the burn-in
// (Kapturowski et al., "Recurrent experience replay in distributed reinforcement learning", 2019,
// section 3); NaN unless all of these were given. In double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ring/sequence_writer.hpp"
#include "write/episode_flag.hpp"

namespace mpbuffer {

struct SequenceRule : EpisodeFlags {
    std::size_t length = 1;
    std::size_t period = 1;  // at most the length
    std::size_t burn_in = 0;
    bool pad = true;
    double eta = 0.9;
    std::size_t stride = 0;  // bytes of a step

    bool ends(const std::byte* step) const {
        return raised(done, step) || raised(terminated, step) || raised(truncated, step);
    }
    double priority(const StoredSteps& steps) const;
};

// Sequences in private memory, and their priorities (NaN: none).
class SequenceBatch {
  public:
    // Makes room for `more` sequences: the next so many calls of append() do not throw.
    void reserve(std::size_t more);
    void append(Sequence sequence, double priority) noexcept;
    // Moves the sequences of `earlier` that are not written before its own; does not throw if there
    // is room for them.
    void prepend_unwritten(SequenceBatch& earlier);
    void clear();
    std::size_t rows() const { return sequences_.size(); }
    const std::vector<Sequence>& sequences() const { return sequences_; }
    const std::vector<double>& priorities() const { return priorities_; }

    // As RowBatch has them.
    std::uint64_t written = 0;
    double largest = 0;
    std::uint64_t generation = 0;

  private:
    std::vector<Sequence> sequences_;
    std::vector<double> priorities_;
};

class EpisodeSequences {
  public:
    // The rule must outlive it.
    explicit EpisodeSequences(const SequenceRule& rule) : rule_(&rule) {}

    // Before steps are taken: plan(), then for each step plan_next(), which appends to `rooms` an
    // empty list for each sequence that the step will finish, with room for its steps. Then so many
    // calls of push() do not throw, if the batch has room too.
    void plan();
    void plan_next(bool ends, std::vector<StoredSteps>& rooms);
    // Takes the next step; `room` points to the first list that was made for it, and is moved on.
    void push(std::shared_ptr<StoredStep> step, bool ends, StoredSteps*& room,
              SequenceBatch& finished) noexcept;
    // Ends the episode where it is. Appends at most one sequence.
    void cut_off(SequenceBatch& finished);
    void drop() noexcept;

    // The steps that are in no sequence yet.
    std::size_t waiting() const { return progress_.fresh; }

  private:
    struct Progress {
        std::size_t steps = 0;  // that a next sequence may have
        std::size_t fresh = 0;  // those of them that none has had
    };
    // How many steps the sequences have that the next step finishes: one of full length, and the
    // last one of the episode. 0: none.
    struct Finished {
        std::size_t full;
        std::size_t last;
    };
    Finished advance(Progress& progress, bool ends) const;
    std::size_t last_of(const Progress& progress) const;
    void finish(std::size_t steps, StoredSteps room, SequenceBatch& finished) noexcept;

    const SequenceRule* rule_;
    StoredSteps steps_;  // as many as progress_ says
    bool begins_episode_ = true;
    Progress progress_;
    Progress planned_;
};

}  // namespace mpbuffer
