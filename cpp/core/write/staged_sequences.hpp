// Sequences of one process on their way into a buffer.
#pragma once

#include <cstdint>
#include <functional>

#include "write/episode_sequences.hpp"
#include "write/staging.hpp"

namespace mpbuffer {

inline SequenceBatch batch_for(const SequenceRule&) { return SequenceBatch(); }

// Adds the next so many sequences of the batch.
std::uint64_t add_next(ReplayBuffer& buffer, SequenceBatch& batch, std::uint64_t count,
                       const float* leaves, const std::function<void()>& give_way);

class StagedSequences final : public StagedIn<SequenceRule, EpisodeSequences, SequenceBatch> {
  public:
    using StagedIn::StagedIn;
    PushOutcome push(const Steps& steps) override;
};

}  // namespace mpbuffer
