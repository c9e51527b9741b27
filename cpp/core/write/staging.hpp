// Steps of one process on their way into a buffer: a window for each environment, and the rows that
// are finished and not yet written. Rows are n-step rows (row_writer.hpp) or sequences
// (staged_sequences.hpp).
//
// Private memory of one process. A child of a fork starts with empty windows and no rows: what is
// here is its parent's to write. Several threads may call; a batch that was taken belongs to who
// took it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/guard.hpp"
#include "base/shared_copy.hpp"
#include "buffer/replay_buffer.hpp"
#include "os/fork_watch.hpp"
#include "write/step_window.hpp"

namespace mpbuffer {

struct StagingCounts {
    std::uint64_t steps = 0;    // taken
    std::uint64_t staged = 0;   // steps and rows not yet written
    std::uint64_t written = 0;  // rows
};

struct PushOutcome {
    bool ended;            // whether any step ended an episode
    std::size_t finished;  // rows that can be written now
};

struct WrittenRows {
    std::uint64_t rows = 0;
    std::uint64_t first_slot = 0;
};

// Steps to be staged: fields as ReplayBuffer::add takes them, and beside them, where it is not
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
    const double* td = nullptr;
};

class Staging : protected ForkWatched {
  public:
    virtual ~Staging() = default;

    virtual std::size_t environments() const = 0;
    // Takes the steps in their order, each the next one of its environment. If it throws, for want
    // of memory, no step was taken.
    virtual PushOutcome push(const Steps& steps) = 0;
    // Ends the episodes of these environments, or of all, where they are.
    virtual void cut_off(std::span<const std::int64_t> environments) = 0;
    virtual void cut_off_all() = 0;
    // Forgets all steps and rows that are not yet written.
    virtual void drop() = 0;

    virtual std::size_t finished() = 0;
    // Writes all finished rows. `set_priorities`, if given, is called for those of n-step rows. It
    // and `give_way`, as for ReplayBuffer::add, may throw: then rows that are not written stay
    // staged. In a child that was forked meanwhile nothing more is written: they are its parent's.
    using SetPriorities = std::function<void(RowBatch&)>;
    virtual WrittenRows write(ReplayBuffer& buffer, const std::function<void()>& give_way = {},
                              const SetPriorities& set_priorities = {}) = 0;
    virtual StagingCounts counts() = 0;
};

// Writes the rows of the batch that are not yet written, in their order, and counts them in
// batch.written, also if it throws as ReplayBuffer::add does. A row without a priority gets the
// largest until then, those before it in the batch included; so does one whose leaf float32 cannot
// hold. Returns the slot of the first one; 0 of an empty batch.
template <class Batch>
std::uint64_t write_rows(ReplayBuffer& buffer, Batch& batch,
                         const std::function<void()>& give_way = {});

// What n-step rows and sequences have in common: all but push().
template <class Rule, class Window, class Batch>
class StagedIn : public Staging {
  public:
    StagedIn(Rule rule, std::size_t environments)
        : rule_(std::move(rule)),
          environments_(environments),
          local_(std::make_unique<Local>(rule_, environments)) {
        watch();
    }
    ~StagedIn() override { unwatch(); }

    const Rule& rule() const { return rule_; }
    std::size_t environments() const final { return environments_; }

    void cut_off(std::span<const std::int64_t> environments) final {
        const Guard guard(mutex_);
        for (const std::int64_t each : environments) cut_off(static_cast<std::size_t>(each));
    }
    void cut_off_all() final {
        const Guard guard(mutex_);
        for (std::size_t each = 0; each < environments_; ++each) cut_off(each);
    }
    void drop() final {
        const Guard guard(mutex_);
        Local& here = local();
        for (Window& window : here.windows) window.drop();
        here.finished.clear();
        here.waiting = 0;
    }

    std::size_t finished() final {
        const Guard guard(mutex_);
        return local().finished.rows();
    }
    // The finished rows, to be written; there may be none. To be given back in any case. If it
    // throws, for want of memory, none was taken.
    Batch take() {
        const Guard guard(mutex_);
        Local& here = local();
        here.spare.reserve(here.in_flight + here.finished.rows());
        Batch batch = std::exchange(here.finished, std::exchange(here.spare, batch_for(rule_)));
        here.in_flight += batch.rows();
        batch.generation = fork_generation();
        return batch;
    }
    // Takes back a batch, and stages before all others the rows of it that are not yet written:
    // there is always room for those in flight. Of a batch that was taken before a fork the child
    // forgets all.
    void give_back(Batch batch) noexcept {
        const Guard guard(mutex_);
        if (batch.generation != fork_generation()) return;
        Local& here = *local_;
        here.in_flight -= batch.rows();
        here.written += batch.written;
        here.finished.prepend_unwritten(batch);
        batch.clear();
        here.spare = std::move(batch);
    }
    WrittenRows write(ReplayBuffer& buffer, const std::function<void()>& give_way,
                      const SetPriorities& set_priorities) final;
    StagingCounts counts() final {
        const Guard guard(mutex_);
        const Local& here = local();
        return {here.steps, here.finished.rows() + here.waiting + here.in_flight, here.written};
    }

  protected:
    struct Local {
        std::vector<Window> windows;
        Batch finished;
        Batch spare;
        std::uint64_t waiting = 0;    // steps in the windows that are in no row yet
        std::uint64_t in_flight = 0;  // rows that were taken and not given back
        std::uint64_t steps = 0;
        std::uint64_t written = 0;
        Local(const Rule& rule, std::size_t environments)
            : windows(environments, Window(rule)),
              finished(batch_for(rule)),
              spare(batch_for(rule)) {}

        // Of step i of those.
        Window& window(const Steps& given, std::uint64_t i) {
            if (given.environments != nullptr) {
                return windows[static_cast<std::size_t>(given.environments[i])];
            }
            return windows[windows.size() == 1 ? 0 : i];
        }
    };

    // Under the mutex.
    Local& local() {
        if (!local_) local_ = std::make_unique<Local>(rule_, environments_);
        return *local_;
    }

    Mutex mutex_;

  private:
    void after_fork_in_child() noexcept final {
        // Not freed: a thread of the parent may have been changing it.
        (void)local_.release();
        mutex_.renew_in_child();
    }
    void cut_off(std::size_t environment) {
        Local& here = local();
        Window& window = here.windows[environment];
        const std::size_t steps = window.waiting();
        here.finished.reserve(steps + here.in_flight);
        window.cut_off(here.finished);
        here.waiting -= steps;
    }

    const Rule rule_;
    const std::size_t environments_;
    std::unique_ptr<Local> local_;
};

template <class Rule, class Window, class Batch>
WrittenRows StagedIn<Rule, Window, Batch>::write(ReplayBuffer& buffer,
                                                 const std::function<void()>& give_way,
                                                 const SetPriorities& set_priorities) {
    struct RowsOfParent {};
    if (finished() == 0) return {};
    Batch batch = take();
    WrittenRows outcome;
    const auto give_all_back = [&] {
        outcome.rows = batch.written;
        give_back(std::move(batch));
    };
    if (batch.rows() == 0) {  // another thread was faster
        give_all_back();
        return {};
    }
    const auto require_own_rows = [&batch] {
        if (batch.generation != fork_generation()) throw RowsOfParent();
    };
    try {
        if constexpr (std::is_same_v<Batch, RowBatch>) {
            if (set_priorities) set_priorities(batch);
        }
        require_own_rows();
        outcome.first_slot = write_rows(buffer, batch, [&] {
            if (give_way) give_way();
            require_own_rows();
        });
    } catch (const RowsOfParent&) {
        return {};
    } catch (...) {
        give_all_back();
        throw;
    }
    give_all_back();
    return outcome;
}

// The leaves of rows with these priorities, as write_rows() says; none if none is given. Raises
// `largest` to the largest of them.
std::vector<float> leaves_of(const ReplayBuffer& buffer, const std::vector<double>& priorities,
                             double& largest);

template <class Batch>
std::uint64_t write_rows(ReplayBuffer& buffer, Batch& batch,
                         const std::function<void()>& give_way) {
    const std::uint64_t rows = batch.rows();
    const std::vector<float> leaves = leaves_of(buffer, batch.priorities(), batch.largest);
    std::uint64_t first = 0;
    bool any = false;
    while (batch.written < rows) {
        const std::uint64_t slot =
            add_next(buffer, batch, std::min(rows - batch.written, buffer.capacity()),
                     leaves.empty() ? nullptr : leaves.data() + batch.written, give_way);
        if (!any) first = slot;
        any = true;
    }
    return first;
}

}  // namespace mpbuffer
