#include "format/row_layout.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "base/round_up.hpp"
#include "format/header.hpp"

namespace mpbuffer {

RowLayout::RowLayout(const Schema& schema) : RowLayout(schema, {}) {}

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
        if (cut.ring >= max_ring_entries || cut.ring > frame_bytes_.size() + 1) {
            refuse(field, "its ring is none of the segment's");
        }
        if (cut.planes == 0 || cut.element_bytes == 0 ||
            field.bytes % (cut.planes * cut.element_bytes) != 0) {
            refuse(field, "its planes are of different sizes");
        }
        const std::uint64_t bytes = field.bytes / cut.planes;
        if (cut.ring > frame_bytes_.size()) frame_bytes_.push_back(bytes);
        if (frame_bytes_[cut.ring - 1] != bytes) {
            refuse(field, "its planes and those of other fields differ in size");
        }
        references_ += cut.planes;
        if (references_ > most_references) refuse(field, "it has too many planes");
    }
    if (frame_bytes_.empty()) return;
    stored_bytes_ = 8 * frame_bytes_.size();
    for (std::size_t i = 0; i < fields_.size(); ++i) {
        StoredField& field = fields_[i];
        const std::size_t alignment = field.shared() ? 4 : schema.fields()[i].alignment;
        field.stored = round_up(stored_bytes_, alignment);
        stored_bytes_ = field.stored + (field.shared() ? 4 * field.cut.planes : field.bytes);
    }
}

}  // namespace mpbuffer
