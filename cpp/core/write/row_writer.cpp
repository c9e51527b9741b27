#include "write/row_writer.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace mpbuffer {

PushOutcome StagedRows::push(const Steps& steps) {
    const CoreCall call;
    let_others_copy(steps.count * rule().stride);
    const Guard guard(mutex_);
    Local& here = local();
    here.finished.reserve(steps.count + here.waiting + here.in_flight);
    if (environments() == 1) {
        here.windows[0].reserve(steps.count);
    } else {
        for (std::uint64_t i = 0; i < steps.count; ++i) {
            here.window(steps, i).reserve(steps.count);
        }
    }
    const auto of = [](const double* numbers, std::uint64_t i) {
        return numbers == nullptr ? not_given : numbers[i];
    };
    bool ended = false;
    const std::size_t finished_before = here.finished.rows();
    for (std::uint64_t i = 0; i < steps.count; ++i) {
        const StepNumbers numbers{of(steps.priorities, i), of(steps.q, i), of(steps.v, i),
                                  of(steps.next_v, i)};
        if (here.window(steps, i).push(steps.fields, i, numbers, here.finished)) ended = true;
    }
    here.steps += steps.count;
    here.waiting += steps.count - (here.finished.rows() - finished_before);
    return {ended, here.finished.rows()};
}

std::vector<float> leaves_of(const ReplayBuffer& buffer, const std::vector<double>& priorities,
                             double& largest) {
    std::vector<float> leaves;
    const auto given = [](double priority) { return !std::isnan(priority); };
    if (!buffer.prioritized() || std::none_of(priorities.begin(), priorities.end(), given)) {
        return leaves;
    }
    const PriorityRule rule = buffer.priority_rule();
    double until_now = buffer.max_priority();
    float its_leaf = rule.leaf(until_now);
    leaves.resize(priorities.size(), its_leaf);
    for (std::size_t i = 0; i < priorities.size(); ++i) {
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
    return leaves;
}

std::uint64_t add_next(ReplayBuffer& buffer, RowBatch& batch, std::uint64_t count,
                       const float* leaves, const std::function<void()>& give_way) {
    return buffer.add_records(count, batch.record(batch.written), batch.stride(), leaves,
                              batch.largest, batch.written, give_way);
}

}  // namespace mpbuffer
