// Sources: what is stored once, and referred to by rows. A row in one ring refers to them in
// others, the source rings: frames that rows have in common (frames.hpp), or the steps of sequences
// (sequences.hpp). This is the readers' side; source_writer.hpp is the writers'.
//
// A source ring has the slots and the protocol of a ring of rows, but nobody counts or clears it:
// what no row refers to lies there until it is overwritten. It has M sources, and A is the greatest
// age of a reference.
//
// - Reading a row: its word is committed; its references; each source's word is the commit of the
//   position referred to; copy; the source's word, and at the end the row's, are unchanged. So
//   never is another source returned in a lost one's place; a row whose sources are gone counts as
//   gone.
// - Writing one: claim, copy and commit its sources; load the source cursor, `born`; claim the row;
//   load the source cursor again, c. A source older than c - A is written once more, under the
//   claim. So every row at or behind position p refers to nothing older than born(p) - A.
// - Retiring: while the oldest row was born more than M - A sources ago, rows up to it are gone, by
//   clear_before. Behind the first row that was not, every row has all its sources. So a row whose
//   sources are gone is one that the next retirement takes: whoever misses a source retires, then
//   draws again.
//
// Writers that stop or die need nothing: a claim that they leave in either ring is passed over, or
// taken over, as in any ring, and sources that no row refers to are overwritten in their turn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/shared_copy.hpp"
#include "format/row_layout.hpp"
#include "ring/slot_ring.hpp"

namespace mpbuffer {

class Sources {
  public:
    // The source rings of a segment; none if its rows refer to nothing.
    Sources(std::byte* segment, const SegmentHeader& header);

    bool any() const { return !rings_.empty(); }
    // How rows are given: from then on they can be written and read. For fields in this order.
    void describe(RowLayout layout);
    const RowLayout& layout() const { return layout_.front(); }

    SlotRing& ring(unsigned number) { return rings_[number - 1]; }
    const SlotRing& ring(unsigned number) const { return rings_[number - 1]; }
    std::size_t rings() const { return rings_.size(); }
    std::uint64_t age(unsigned number) const { return ages_[number - 1]; }

    // Copies the row with this record into place `i` of the fields; false if a source of it is
    // gone.
    bool copy(std::span<const FieldTarget> fields, std::size_t i, const std::byte* record) const;
    // Asks for the sources of a row that is copied soon.
    void prefetch(const std::byte* record) const;

    // Ends rows whose sources may be gone; returns how many. One look if there are none.
    std::uint64_t retire(const SlotRing& rows) const;
    // The same, by whoever has missed a source of the row in this slot. A row of an earlier lap,
    // left because the claim of the later one was given up, is no longer looked at by retire(): it
    // goes with all that are older.
    void expel(const SlotRing& rows, std::uint64_t slot) const;

  private:
    std::uint64_t rows_;  // of the ring that refers to them
    std::vector<SlotRing> rings_;
    std::vector<std::uint64_t> ages_;  // once it is described
    std::vector<RowLayout> layout_;    // one, once it is described
};

// When a row was born, in the cursor of this source ring.
inline std::uint64_t born_in(const std::byte* record, unsigned ring) {
    std::uint64_t born = 0;
    load_from_record(reinterpret_cast<std::byte*>(&born), record + 8 * std::size_t{ring - 1},
                     sizeof born);
    return born;
}

// The position of the source that is referred to at `reference`. Of a record that is being
// overwritten it may be anything.
inline std::uint64_t position_at(const std::byte* reference, std::uint64_t born) {
    std::int32_t back = 0;
    load_from_record(reinterpret_cast<std::byte*>(&back), reference, sizeof back);
    return born - static_cast<std::uint64_t>(std::int64_t{back});
}

}  // namespace mpbuffer
