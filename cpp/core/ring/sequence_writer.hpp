// The writers' side of sequences.hpp. A step is written when the first sequence that has it is;
// each later one refers to it, or, if it has become too old, has it written once more: for that its
// bytes are kept. In private memory; for one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ring/source_writer.hpp"

namespace mpbuffer {

struct StoredStep {
    std::unique_ptr<std::byte[]> bytes;  // as a source has them
    double td = 0;                       // its temporal-difference error; NaN: not known
    std::uint64_t position = 0;          // in the source ring; 0: it has not been written
};
using StoredSteps = std::vector<std::shared_ptr<StoredStep>>;

struct Sequence {
    StoredSteps steps;  // at least one
    bool begins_episode = false;
};

class SequenceWriter {
  public:
    explicit SequenceWriter(const Sources& sources) : sources_(sources), writer_(sources) {}

    // Sees to it that the steps of the first of these sequences lie in the source ring, and then
    // notes when they are born. Returns how many sequences are ready; fewer than all if they are
    // many, or if others hold all slots of the source ring.
    std::uint64_t prepare(std::span<const Sequence> sequences, const PutSource& put);
    // Writes one of them, which is now claimed, into its record. False if a step that has become
    // too old cannot be written once more.
    bool store(const Sequence& sequence, std::byte* record, const PutSource& put);

  private:
    const Sources& sources_;
    SourceWriter writer_;
};

}  // namespace mpbuffer
