// The last steps of one environment's episode, folded into n-step rows.
//
// A step is a record in private memory, in the layout of a buffer's records. The row that begins
// with step t of an episode is made of the steps t to t+m-1, where m is n, or fewer where the
// episode ends before:
//
// - a reward is the sum over k < m of gamma^k r[t+k]: in double, in ascending k, gamma^k by
// repeated
//   multiplication, rounded once into the field;
// - what is taken from the last step, flags included, is that of step t+m-1, all else that of t;
// - the discount, if there is a field for it, is gamma^m, or 0 where the last step terminates: the
//   target is reward + discount * V(next).
//
// An episode ends by the step one of whose flags is not 0, and by cut_off(). It terminates by
// `terminated`; by `done` too, unless the same step is `truncated` and not terminated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "base/shared_copy.hpp"
#include "write/episode_flag.hpp"

namespace mpbuffer {

struct StepField {
    std::size_t offset;
    std::size_t bytes;
    bool from_last;  // else from the first step
};

struct FloatField {
    std::size_t offset;
    std::size_t count;
    bool is_double;  // else float32
};

struct ByteRange {
    std::size_t offset;
    std::size_t bytes;
};

struct NstepRule : EpisodeFlags {
    std::uint64_t steps = 1;
    double gamma = 1;
    std::size_t stride = 0;             // from one record to the next
    std::vector<ByteRange> from_first;  // these two by take_fields
    std::vector<ByteRange> from_last;
    std::vector<FloatField> rewards;
    std::optional<FloatField> discount;
    // Whether a row's priority is |reward + discount * V(next) - Q(first)| (Horgan et al.,
    // "Distributed prioritized experience replay", 2018), of one reward: V(next) comes with the
    // next step, so that a row is finished one step later. Where the episode was cut off, it is
    // next_v of its last step, or v of that step if next_v is not known.
    bool priority_from_values = false;

    // Whether a step is a row as it comes.
    bool passes_through() const { return steps == 1 && !priority_from_values; }
    // What a row takes from where, in as few copies as there can be.
    void take_fields(std::vector<StepField> fields);
};

constexpr double not_given = std::numeric_limits<double>::quiet_NaN();

// What comes with a step beside its fields; NaN: not given.
struct StepNumbers {
    double priority = not_given;
    double q = not_given;       // of the action taken
    double v = not_given;       // of the state it was taken in
    double next_v = not_given;  // of the state it led to
};

// Rows in private memory, one record after another, and their priorities (NaN: none).
class RowBatch {
  public:
    RowBatch() = default;
    explicit RowBatch(std::size_t stride) : stride_(stride) {}

    // Makes room for `more` rows: the next so many calls of append() do not throw.
    void reserve(std::size_t more);
    // A further row's record, to be written to; zero where no row has been.
    std::byte* append(double priority);
    // Puts the rows of `earlier` that are not written before its own; does not throw if there is
    // room for them.
    void prepend_unwritten(const RowBatch& earlier);
    void clear();
    std::size_t rows() const { return priorities_.size(); }
    std::size_t stride() const { return stride_; }
    std::byte* record(std::size_t row) { return records_.data() + row * stride_; }
    const std::byte* record(std::size_t row) const { return records_.data() + row * stride_; }
    const std::vector<double>& priorities() const { return priorities_; }
    void set_priority(std::size_t row, double priority) { priorities_[row] = priority; }

    // How many rows, from the first, have been written into a buffer.
    std::uint64_t written = 0;
    // The largest priority of those.
    double largest = 0;
    // The fork generation it was taken in, to be written.
    std::uint64_t generation = 0;

  private:
    std::size_t stride_ = 0;
    std::vector<std::byte> records_;
    std::vector<double> priorities_;
};

class EpisodeWindow {
  public:
    // The rule must outlive the window.
    explicit EpisodeWindow(const NstepRule& rule) : rule_(&rule) {}

    // Makes room for `more` steps: the next so many calls of push() do not throw, if the batch has
    // room too.
    void reserve(std::size_t more);
    // Takes the next step, its fields being row i of the sources; appends the rows that this
    // finishes: at most waiting() + 1. Returns whether the episode has ended.
    bool push(std::span<const FieldSource> fields, std::size_t i, const StepNumbers& numbers,
              RowBatch& finished);
    // Ends the episode where it is, as if truncated. Appends waiting() rows.
    void cut_off(RowBatch& finished);
    void drop() { first_ = count_ = 0; }

    // The steps whose rows are not finished.
    std::size_t waiting() const { return count_; }

  private:
    std::byte* record(std::size_t i);
    StepNumbers& numbers(std::size_t i) { return numbers_[(first_ + i) & (numbers_.size() - 1)]; }
    void finish_first(std::size_t steps, bool terminates, double value, RowBatch& finished);
    void finish_all(bool terminates, RowBatch& finished);
    double fold_rewards(std::size_t steps, std::byte* row);

    const NstepRule* rule_;
    // A ring of steps, as long as a power of two.
    std::vector<std::byte> records_;
    std::vector<StepNumbers> numbers_;
    std::size_t first_ = 0;
    std::size_t count_ = 0;
};

}  // namespace mpbuffer
