// How a row is given and how it is stored. A field's value is its own, in the row's record, or it
// is shared: cut into planes, each a frame of a source ring, to which the record refers.
//
// The record of a row with shared fields:
//
//   born          8 bytes for each source ring: its cursor, as it was before the row was claimed
//   fields        in their order: an own value at its alignment; of a shared one 4 bytes a plane,
//                 born - position, modulo 2^32
//
// A row without them is stored as it is given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "format/row_schema.hpp"

namespace mpbuffer {

// How a field is cut: `planes` frames that lie one behind the other, or, along the last axis, one
// element of each in turn. ring 0: it is not; else the number of a ring of the segment.
struct PlaneCut {
    unsigned ring = 0;
    std::size_t planes = 1;
    bool last_axis = false;
    std::size_t element_bytes = 1;
};

struct StoredField {
    std::size_t given;   // its offset in a row as it is given
    std::size_t stored;  // and in the record: of the value, or of the references
    std::size_t bytes;   // of the value
    PlaneCut cut;

    bool shared() const { return cut.ring != 0; }
    std::size_t plane_bytes() const { return bytes / cut.planes; }
};

class RowLayout {
  public:
    static constexpr std::size_t most_references = 256;

    // Rows as the schema lays them out.
    explicit RowLayout(const Schema& schema);
    // With a cut for each field. InvalidArgument if the planes of a ring differ in size, a ring of
    // a lower number has none, or there are more than most_references planes.
    RowLayout(const Schema& schema, const std::vector<PlaneCut>& cuts);

    const std::vector<StoredField>& fields() const { return fields_; }
    std::size_t given_bytes() const { return given_bytes_; }
    std::size_t stored_bytes() const { return stored_bytes_; }
    // The bytes of a frame, of each source ring; none if no field is shared.
    const std::vector<std::uint64_t>& frame_bytes() const { return frame_bytes_; }
    std::size_t references() const { return references_; }

  private:
    std::vector<StoredField> fields_;
    std::size_t given_bytes_;
    std::size_t stored_bytes_;
    std::vector<std::uint64_t> frame_bytes_;
    std::size_t references_ = 0;
};

}  // namespace mpbuffer
