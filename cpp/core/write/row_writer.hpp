// N-step rows of one process on their way into a buffer.
#pragma once

#include <cstdint>
#include <functional>

#include "write/staging.hpp"
#include "write/step_window.hpp"

namespace mpbuffer {

inline RowBatch batch_for(const NstepRule& rule) { return RowBatch(rule.stride); }

// Adds the next so many rows of the batch.
std::uint64_t add_next(ReplayBuffer& buffer, RowBatch& batch, std::uint64_t count,
                       const float* leaves, const std::function<void()>& give_way);

class StagedRows final : public StagedIn<NstepRule, EpisodeWindow, RowBatch> {
  public:
    using StagedIn::StagedIn;
    PushOutcome push(const Steps& steps) override;
};

}  // namespace mpbuffer
