// How a row is given and how it is stored. A field's value is its own, in the row's record, or it
// is shared: cut into planes, each of which lies in a source of a source ring, to which the record
// refers. Either each plane is a frame, a whole source; or the row is a sequence of steps, each
// step with all its fields a source, and a plane is one step's value of the field.
//
// The record of a row with shared fields:
//
//   born          8 bytes for each source ring: its cursor, as it was before the row was claimed
//   fields        in their order: an own value at its alignment; of a shared one 4 bytes a plane,
//                 born - position, modulo 2^32
//
// That of a sequence of at most T steps:
//
//   born          8 bytes: the cursor of source ring 1
//   about         4 bytes: the number of steps, times 2; plus 1 if they begin an episode
//   steps         4 bytes for each of T: born - position, modulo 2^32; 0 behind the last
//
// A row without shared fields is stored as it is given.
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
    std::size_t given;   // its offset in a row, or a step, as it is given
    std::size_t stored;  // and in the record: of the value, or of the references; in a source that
                         // is a step: of the step's value
    std::size_t bytes;   // of the value
    PlaneCut cut;

    bool shared() const { return cut.ring != 0; }
    std::size_t plane_bytes() const { return bytes / cut.planes; }
};

// Sequences of at most `steps` steps, of which each brings `period` that no other has.
struct SequenceShape {
    std::size_t steps;
    std::size_t period;
    std::vector<bool> from_first;  // for each field: whether it is the first step's alone
};

class RowLayout {
  public:
    static constexpr std::size_t most_frames = 256;  // that a row refers to
    static constexpr std::size_t most_steps = 65536;
    static constexpr std::size_t about_at = 8;  // in a sequence's record
    static constexpr std::size_t steps_at = 12;

    // Rows as the schema lays them out.
    explicit RowLayout(const Schema& schema);
    // With a cut for each field. InvalidArgument if the planes of a ring differ in size, a ring of
    // a lower number has none, or there are more than most_frames planes.
    RowLayout(const Schema& schema, const std::vector<PlaneCut>& cuts);
    // Sequences of steps that the schema lays out. InvalidArgument if there are no steps, or more
    // than most_steps, or more of them are new than there are.
    RowLayout(const Schema& step, const SequenceShape& shape);

    const std::vector<StoredField>& fields() const { return fields_; }
    std::size_t given_bytes() const { return given_bytes_; }
    std::size_t stored_bytes() const { return stored_bytes_; }
    // The bytes of a source, of each source ring; none if no field is shared.
    const std::vector<std::uint64_t>& source_bytes() const { return source_bytes_; }
    std::size_t references() const { return references_; }
    // The most steps of a sequence; 0: rows are no sequences.
    std::size_t steps() const { return steps_; }
    // How many new sources a row refers to, as a rule.
    std::size_t sources_per_row() const { return sources_per_row_; }

  private:
    std::vector<StoredField> fields_;
    std::size_t given_bytes_;
    std::size_t stored_bytes_;
    std::vector<std::uint64_t> source_bytes_;
    std::size_t references_ = 0;
    std::size_t steps_ = 0;
    std::size_t sources_per_row_ = 1;
};

}  // namespace mpbuffer
