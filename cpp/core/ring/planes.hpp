// Values that are stacked along their last axis: planes of one element in turn. Private memory on
// one side or both; the caller sees to what other processes may be writing.
#pragma once

#include <cstddef>
#include <span>

namespace mpbuffer {

// Writes the value whose planes these are, each of `elements` elements of `element_bytes`.
void interleave(std::byte* value, std::span<const std::byte* const> planes, std::size_t elements,
                std::size_t element_bytes);

// Writes the planes of a value, one behind the other.
void separate(std::byte* planes, const std::byte* value, std::size_t count, std::size_t elements,
              std::size_t element_bytes);

}  // namespace mpbuffer
