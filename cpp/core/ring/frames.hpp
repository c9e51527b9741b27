// Rows that have frames in common: the frames are sources (sources.hpp), each field of them a few
// references of the row. frame_writer.hpp writes such rows.
#pragma once

#include <cstddef>
#include <span>

#include "base/shared_copy.hpp"
#include "ring/sources.hpp"

namespace mpbuffer {

// As Sources::copy and Sources::prefetch, of such a row.
bool copy_frames(const Sources& sources, std::span<const FieldTarget> fields, std::size_t i,
                 const std::byte* record);
void prefetch_frames(const Sources& sources, const std::byte* record);

// What the record of such a row holds, in place `i`: own values as they are; of a shared field the
// positions of its frames, 8 bytes each, whether they are still there or not; and in `births` the
// row's `born`, of each source ring.
void read_references(const Sources& sources, std::span<const FieldTarget> fields,
                     std::uint64_t* births, std::size_t i, const std::byte* record);
// Writes such a row into a record that nobody else sees.
void store_references(const Sources& sources, std::span<const FieldSource> fields,
                      const std::uint64_t* births, std::size_t i, std::byte* record);

}  // namespace mpbuffer
