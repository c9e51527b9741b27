#include "write/row_writer.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace mpbuffer {

StagedRows::Local::Local(const NstepRule& rule, std::size_t environments)
    : windows(environments, EpisodeWindow(rule)), finished(rule.stride), spare(rule.stride) {}

StagedRows::StagedRows(NstepRule rule, std::size_t environments)
    : rule_(std::move(rule)),
      environments_(environments),
      local_(std::make_unique<Local>(rule_, environments)) {
    watch();
}

StagedRows::~StagedRows() { unwatch(); }

void StagedRows::after_fork_in_child() noexcept {
    // Not freed: a thread of the parent may have been changing it.
    (void)local_.release();
    mutex_.renew_in_child();
}

StagedRows::Local& StagedRows::local() {
    if (!local_) local_ = std::make_unique<Local>(rule_, environments_);
    return *local_;
}

PushOutcome StagedRows::push(const Steps& steps) {
    const CoreCall call;
    let_others_copy(steps.count * rule_.stride);
    const Guard guard(mutex_);
    Local& here = local();
    const auto window = [&](std::uint64_t i) -> EpisodeWindow& {
        if (steps.environments != nullptr) {
            return here.windows[static_cast<std::size_t>(steps.environments[i])];
        }
        return here.windows[environments_ == 1 ? 0 : i];
    };
    here.finished.reserve(steps.count + here.waiting + here.in_flight);
    if (environments_ == 1) {
        here.windows[0].reserve(steps.count);
    } else {
        for (std::uint64_t i = 0; i < steps.count; ++i) window(i).reserve(steps.count);
    }
    const auto of = [](const double* numbers, std::uint64_t i) {
        return numbers == nullptr ? not_given : numbers[i];
    };
    bool ended = false;
    const std::size_t finished_before = here.finished.rows();
    for (std::uint64_t i = 0; i < steps.count; ++i) {
        const StepNumbers numbers{of(steps.priorities, i), of(steps.q, i), of(steps.v, i),
                                  of(steps.next_v, i)};
        if (window(i).push(steps.fields, i, numbers, here.finished)) ended = true;
    }
    here.steps += steps.count;
    here.waiting += steps.count - (here.finished.rows() - finished_before);
    return {ended, here.finished.rows()};
}

void StagedRows::cut_off(std::span<const std::int64_t> environments) {
    const Guard guard(mutex_);
    for (const std::int64_t each : environments) cut_off(static_cast<std::size_t>(each));
}

void StagedRows::cut_off_all() {
    const Guard guard(mutex_);
    for (std::size_t each = 0; each < environments_; ++each) cut_off(each);
}

void StagedRows::cut_off(std::size_t environment) {
    Local& here = local();
    EpisodeWindow& window = here.windows[environment];
    const std::size_t rows = window.waiting();
    here.finished.reserve(rows + here.in_flight);
    window.cut_off(here.finished);
    here.waiting -= rows;
}

void StagedRows::drop() {
    const Guard guard(mutex_);
    Local& here = local();
    for (EpisodeWindow& window : here.windows) window.drop();
    here.finished.clear();
    here.waiting = 0;
}

std::size_t StagedRows::finished() {
    const Guard guard(mutex_);
    return local().finished.rows();
}

RowBatch StagedRows::take() {
    const Guard guard(mutex_);
    Local& here = local();
    here.spare.reserve(here.in_flight + here.finished.rows());
    RowBatch batch =
        std::exchange(here.finished, std::exchange(here.spare, RowBatch(rule_.stride)));
    here.in_flight += batch.rows();
    batch.generation = fork_generation();
    return batch;
}

void StagedRows::give_back(RowBatch batch) noexcept {
    const Guard guard(mutex_);
    if (batch.generation != fork_generation()) return;
    Local& here = *local_;
    here.in_flight -= batch.rows();
    here.written += batch.written;
    here.finished.prepend_unwritten(batch);
    batch.clear();
    here.spare = std::move(batch);
}

StagingCounts StagedRows::counts() {
    const Guard guard(mutex_);
    const Local& here = local();
    return {here.steps, here.finished.rows() + here.waiting + here.in_flight, here.written};
}

std::uint64_t write_rows(ReplayBuffer& buffer, RowBatch& batch,
                         const std::function<void()>& give_way) {
    const std::uint64_t rows = batch.rows();
    const std::vector<double>& priorities = batch.priorities();
    std::vector<float> leaves;
    double& largest = batch.largest;
    const auto given = [](double priority) { return !std::isnan(priority); };
    if (buffer.prioritized() && std::any_of(priorities.begin(), priorities.end(), given)) {
        const PriorityRule rule = buffer.priority_rule();
        double until_now = buffer.max_priority();
        float its_leaf = rule.leaf(until_now);
        leaves.resize(rows, its_leaf);
        for (std::uint64_t i = 0; i < rows; ++i) {
            leaves[i] = its_leaf;
            // One that was computed need not be finite; with alpha 0 its leaf is.
            if (!std::isfinite(priorities[i])) continue;
            const float leaf = rule.leaf(priorities[i]);
            if (!std::isfinite(leaf)) continue;
            leaves[i] = leaf;
            largest = std::max(largest, priorities[i]);
            if (priorities[i] > until_now) {
                until_now = priorities[i];
                its_leaf = leaf;
            }
        }
    }
    std::uint64_t first = 0;
    bool any = false;
    while (batch.written < rows) {
        const std::uint64_t at_once = std::min(rows - batch.written, buffer.capacity());
        const std::uint64_t slot =
            buffer.add_records(at_once, batch.record(batch.written), batch.stride(),
                               leaves.empty() ? nullptr : leaves.data() + batch.written, largest,
                               batch.written, give_way);
        if (!any) first = slot;
        any = true;
    }
    return first;
}

}  // namespace mpbuffer
