#include "ring/sequence_writer.hpp"

#include "base/stop_points.hpp"

namespace mpbuffer {

namespace {

constexpr unsigned step_ring = 1;

}  // namespace

std::uint64_t SequenceWriter::prepare(std::span<const Sequence> sequences, const PutSource& put) {
    const std::uint64_t count = writer_.few_enough(sequences.size());
    std::uint64_t ready = 0;
    bool all = true;
    for (; ready < count && all; ready += all) {
        writer_.look();
        for (const std::shared_ptr<StoredStep>& step : sequences[ready].steps) {
            if (step->position != 0 && !writer_.soon_too_old(step_ring, step->position)) continue;
            const std::uint64_t position = put(step_ring, step->bytes.get());
            all = position != 0;
            if (!all) break;
            step->position = position;
        }
    }
    writer_.note_birth();
    return ready;
}

bool SequenceWriter::store(const Sequence& sequence, std::byte* record, const PutSource& put) {
    writer_.look();  // after the claim: see sources.hpp
    writer_.store_birth(record);
    const auto about =
        static_cast<std::uint32_t>(2 * sequence.steps.size() + sequence.begins_episode);
    store_to_record(record + RowLayout::about_at, reinterpret_cast<const std::byte*>(&about),
                    sizeof about);
    stop_point(StopPoint::field_copied);
    std::byte* reference = record + RowLayout::steps_at;
    for (const std::shared_ptr<StoredStep>& step : sequence.steps) {
        if (writer_.too_old(step_ring, step->position)) {
            const std::uint64_t position = put(step_ring, step->bytes.get());
            if (position == 0) return false;
            step->position = position;
        }
        writer_.store_reference(reference, step_ring, step->position);
        reference += 4;
    }
    stop_point(StopPoint::field_copied);
    constexpr std::int32_t none = 0;
    for (std::byte* const end = record + sources_.layout().stored_bytes(); reference < end;
         reference += 4) {
        store_to_record(reference, reinterpret_cast<const std::byte*>(&none), sizeof none);
    }
    return true;
}

}  // namespace mpbuffer
