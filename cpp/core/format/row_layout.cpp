#include "format/row_layout.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "base/round_up.hpp"
#include "format/header.hpp"

namespace mpbuffer {

RowLayout::RowLayout(const Schema& schema) : RowLayout(schema, std::vector<PlaneCut>()) {}

RowLayout::RowLayout(const Schema& schema, const std::vector<PlaneCut>& cuts)
    : given_bytes_(schema.row_bytes()), stored_bytes_(schema.row_bytes()) {
    const auto refuse = [](const Field& field, const char* why) {
        throw InvalidArgument("cannot cut field '" + field.name + "' into frames: " + why);
    };
    for (std::size_t i = 0; i < schema.fields().size(); ++i) {
        const Field& field = schema.fields()[i];
        const PlaneCut cut = cuts.empty() ? PlaneCut() : cuts[i];
        fields_.push_back({field.offset, field.offset, field.bytes, cut});
        if (cut.ring == 0) continue;
        if (cut.ring >= max_ring_entries || cut.ring > source_bytes_.size() + 1) {
            refuse(field, "its ring is none of the segment's");
        }
        if (cut.planes == 0 || cut.element_bytes == 0 ||
            field.bytes % (cut.planes * cut.element_bytes) != 0) {
            refuse(field, "its planes are of different sizes");
        }
        const std::uint64_t bytes = field.bytes / cut.planes;
        if (cut.ring > source_bytes_.size()) source_bytes_.push_back(bytes);
        if (source_bytes_[cut.ring - 1] != bytes) {
            refuse(field, "its planes and those of other fields differ in size");
        }
        references_ += cut.planes;
        if (references_ > most_frames) refuse(field, "it has too many planes");
    }
    if (source_bytes_.empty()) return;
    stored_bytes_ = 8 * source_bytes_.size();
    for (std::size_t i = 0; i < fields_.size(); ++i) {
        StoredField& field = fields_[i];
        const std::size_t alignment = field.shared() ? 4 : schema.fields()[i].alignment;
        field.stored = round_up(stored_bytes_, alignment);
        stored_bytes_ = field.stored + (field.shared() ? 4 * field.cut.planes : field.bytes);
    }
}

RowLayout::RowLayout(const Schema& step, const SequenceShape& shape)
    : given_bytes_(2 * shape.steps),  // the mask, and where an episode begins
      stored_bytes_(steps_at + 4 * shape.steps),
      source_bytes_{step.row_bytes()},
      references_(shape.steps),
      steps_(shape.steps),
      sources_per_row_(shape.period) {
    if (shape.steps < 1 || shape.steps > most_steps || shape.period < 1 ||
        shape.period > shape.steps || shape.from_first.size() != step.fields().size()) {
        throw InvalidArgument("cannot lay out sequences of " + std::to_string(shape.steps) +
                              " steps, one every " + std::to_string(shape.period) +
                              ": 1 to 65536 steps are possible, and not more than those between");
    }
    for (std::size_t i = 0; i < step.fields().size(); ++i) {
        const Field& field = step.fields()[i];
        const std::size_t planes = shape.from_first[i] ? 1 : shape.steps;
        fields_.push_back(
            {field.offset, field.offset, field.bytes * planes, {1, planes, false, 1}});
        given_bytes_ += field.bytes * planes;
    }
}

}  // namespace mpbuffer
