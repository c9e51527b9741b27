// Rows of one process on their way into a buffer: an episode window for each environment, and the
// rows that are finished and not yet written.
//
// Private memory of one process. A child of a fork starts with empty windows and no rows: what is
// here is its parent's to write. Several threads may call; a batch that was taken belongs to who
// took it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/guard.hpp"
#include "base/shared_copy.hpp"
#include "buffer/replay_buffer.hpp"
#include "os/fork_watch.hpp"
#include "write/step_window.hpp"

namespace mpbuffer {

struct StagingCounts {
    std::uint64_t steps = 0;    // taken
    std::uint64_t staged = 0;   // rows not yet written, those of the windows included
    std::uint64_t written = 0;  // rows
};

struct PushOutcome {
    bool ended;            // whether any step ended an episode
    std::size_t finished;  // rows that can be written now
};

// Steps for StagedRows: fields as ReplayBuffer::add takes them, and beside them, where it is not
// null, what comes with each.
struct Steps {
    std::uint64_t count;
    std::span<const FieldSource> fields;
    const std::int64_t* environments =
        nullptr;  // null: 0, 1, 2... or, of one environment, 0 for all
    const double* priorities = nullptr;
    const double* q = nullptr;
    const double* v = nullptr;
    const double* next_v = nullptr;
};

class StagedRows final : private ForkWatched {
  public:
    StagedRows(NstepRule rule, std::size_t environments);
    ~StagedRows();

    const NstepRule& rule() const { return rule_; }
    std::size_t environments() const { return environments_; }

    // Takes the steps in their order, each the next one of its environment. If it throws, for want
    // of memory, no step was taken.
    PushOutcome push(const Steps& steps);
    // Ends the episodes of these environments, or of all, where they are.
    void cut_off(std::span<const std::int64_t> environments);
    void cut_off_all();
    // Forgets all steps and rows that are not yet written.
    void drop();

    std::size_t finished();
    // The finished rows, to be written; there may be none. To be given back in any case. If it
    // throws, for want of memory, none was taken.
    RowBatch take();
    // Takes back a batch, and stages before all others the rows of it that are not yet written:
    // there is always room for those in flight. Of a batch that was taken before a fork the child
    // forgets all.
    void give_back(RowBatch batch) noexcept;
    StagingCounts counts();

  private:
    struct Local {
        std::vector<EpisodeWindow> windows;
        RowBatch finished;
        RowBatch spare;
        std::uint64_t waiting = 0;    // steps in the windows
        std::uint64_t in_flight = 0;  // rows that were taken and not given back
        std::uint64_t steps = 0;
        std::uint64_t written = 0;
        Local(const NstepRule& rule, std::size_t environments);
    };

    void after_fork_in_child() noexcept override;
    Local& local();
    void cut_off(std::size_t environment);

    const NstepRule rule_;
    const std::size_t environments_;
    Mutex mutex_;
    std::unique_ptr<Local> local_;
};

// Writes the rows of the batch that are not yet written, in their order, and counts them in
// batch.written, also if it throws as ReplayBuffer::add does. A row without a priority gets the
// largest until then, those before it in the batch included; so does one whose leaf float32 cannot
// hold. Returns the slot of the first one; 0 of an empty batch.
std::uint64_t write_rows(ReplayBuffer& buffer, RowBatch& batch,
                         const std::function<void()>& give_way = {});

}  // namespace mpbuffer
