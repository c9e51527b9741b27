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

}  // namespace mpbuffer
