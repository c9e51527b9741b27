// Rows that are sequences of steps: the steps are sources (sources.hpp), and each sequence refers
// to those it is made of. sequence_writer.hpp writes such rows.
#pragma once

#include <cstddef>
#include <span>

#include "base/shared_copy.hpp"
#include "ring/sources.hpp"

namespace mpbuffer {

// As Sources::copy, of a sequence. Behind the targets of the fields there are two more, of one byte
// for each step: the mask, 1 for each step that the sequence has; and 1 for the step that begins an
// episode. What lies behind the last step is 0 in all of them.
bool copy_sequence(const Sources& sources, std::span<const FieldTarget> fields, std::size_t i,
                   const std::byte* record);
void prefetch_sequence(const Sources& sources, const std::byte* record);

}  // namespace mpbuffer
