#include "write/staged_sequences.hpp"

#include <span>
#include <utility>
#include <vector>

namespace mpbuffer {

namespace {

std::shared_ptr<StoredStep> stored_step(const Steps& steps, std::uint64_t i, std::size_t bytes) {
    auto step = std::make_shared<StoredStep>();
    step->bytes = std::make_unique<std::byte[]>(bytes);
    for (const FieldSource& field : steps.fields) {
        store_to_record(step->bytes.get() + field.offset, field.values + i * field.step,
                        field.bytes);
    }
    step->td = steps.td == nullptr ? not_given : steps.td[i];
    return step;
}

}  // namespace

PushOutcome StagedSequences::push(const Steps& steps) {
    const CoreCall call;
    let_others_copy(steps.count * rule().stride);
    const Guard guard(mutex_);
    Local& here = local();
    // All that may throw comes first.
    StoredSteps taken;
    taken.reserve(steps.count);
    for (std::uint64_t i = 0; i < steps.count; ++i) {
        taken.push_back(stored_step(steps, i, rule().stride));
        here.window(steps, i).plan();
    }
    std::vector<StoredSteps> rooms;
    bool ended = false;
    for (std::uint64_t i = 0; i < steps.count; ++i) {
        const bool ends = rule().ends(taken[i]->bytes.get());
        ended = ended || ends;
        here.window(steps, i).plan_next(ends, rooms);
    }
    here.finished.reserve(rooms.size() + here.in_flight);
    StoredSteps* room = rooms.data();
    for (std::uint64_t i = 0; i < steps.count; ++i) {
        EpisodeSequences& window = here.window(steps, i);
        const std::size_t before = window.waiting();
        window.push(taken[i], rule().ends(taken[i]->bytes.get()), room, here.finished);
        here.waiting += window.waiting() - before;
    }
    here.steps += steps.count;
    return {ended, here.finished.rows()};
}

std::uint64_t add_next(ReplayBuffer& buffer, SequenceBatch& batch, std::uint64_t count,
                       const float* leaves, const std::function<void()>& give_way) {
    return buffer.add_sequences(std::span(batch.sequences()).subspan(batch.written, count), leaves,
                                batch.largest, batch.written, give_way);
}

}  // namespace mpbuffer
