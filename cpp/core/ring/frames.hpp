// Frames stored once: rows in one ring refer to them in others, the source rings. This is the
// readers' side; frame_writer.hpp is the writers'.
//
// A source ring has the slots and the protocol of a ring of rows, but nobody counts or clears it:
// what no row refers to lies there until it is overwritten. It has M frames, the ring of rows N,
// and A is reference_age(N, M).
//
// - Reading a row: its word is committed; its references; each frame's word is the commit of the
//   position referred to; copy; all words are unchanged. So never is another frame returned in a
//   lost one's place; a row whose frames are gone counts as gone.
// - Writing one: claim, copy and commit its frames; load the source cursor, `born`; claim the row;
//   load the source cursor again, c. A frame older than c - A is written once more, under the
//   claim. So every row at or behind position p refers to nothing older than born(p) - A.
// - Retiring: while the oldest row was born more than M - A frames ago, rows up to it are gone, by
//   clear_before. Behind the first row that was not, every row has all its frames. So a row whose
//   frames are gone is one that the next retirement takes: whoever misses a frame retires, then
//   draws again.
//
// Writers that stop or die need nothing: a claim that they leave in either ring is passed over, or
// taken over, as in any ring, and frames that no row refers to are overwritten in their turn.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/shared_copy.hpp"
#include "format/row_layout.hpp"
#include "ring/slot_ring.hpp"

namespace mpbuffer {

class Frames {
  public:
    // The source rings of a segment; none if its rows have no frames.
    Frames(std::byte* segment, const SegmentHeader& header);

    bool any() const { return !rings_.empty(); }
    // How rows are given: from then on they can be written and read. For fields in this order.
    void describe(RowLayout layout) { layout_.emplace_back(std::move(layout)); }
    const RowLayout& layout() const { return layout_.front(); }

    SlotRing& ring(unsigned number) { return rings_[number - 1]; }
    const SlotRing& ring(unsigned number) const { return rings_[number - 1]; }
    std::size_t rings() const { return rings_.size(); }
    std::uint64_t age(unsigned number) const { return ages_[number - 1]; }

    // Copies the row with this record into place `i` of the fields; false if a frame of it is gone.
    bool copy(std::span<const FieldTarget> fields, std::size_t i, const std::byte* record) const;
    // Asks for the frames of a row that is copied soon.
    void prefetch(const std::byte* record) const;

    // Ends rows whose frames may be gone; returns how many. One look if there are none.
    std::uint64_t retire(const SlotRing& rows) const;
    // The same, by whoever has missed a frame of the row in this slot. A row of an earlier lap,
    // left because the claim of the later one was given up, is no longer looked at by retire(): it
    // goes with all that are older.
    void expel(const SlotRing& rows, std::uint64_t slot) const;

  private:
    using Positions = std::array<std::uint64_t, RowLayout::most_references>;
    std::size_t find(const std::byte* record, Positions& positions) const;
    const SlotRing& ring_of(const StoredField& field) const { return ring(field.cut.ring); }
    const std::byte* frame(const StoredField& field, std::uint64_t position) const {
        const SlotRing& from = ring_of(field);
        return from.record(position % from.capacity());
    }

    std::vector<SlotRing> rings_;
    std::vector<std::uint64_t> ages_;
    std::vector<RowLayout> layout_;  // one, once it is described
};

}  // namespace mpbuffer
