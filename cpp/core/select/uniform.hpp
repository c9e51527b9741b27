// Uniform draws: each complete row of a ring with the same probability. Any process may make them.
//
// Places are drawn among all slots that were claimed; where a slot turns out to hold no row, the
// draw is made again. So it is exact however few rows are complete. Every loop is bounded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ring/gather.hpp"
#include "ring/slot_ring.hpp"
#include "select/random.hpp"

namespace mpbuffer {

// Draws `count` slots; what they hold is found out by copy_rows. EmptyBuffer if none was claimed.
void draw_uniform(const SlotRing& ring, std::size_t count, Generator& generator, Draws& draws);

// Draws again, and copies, what copy_rows has missed. EmptyBuffer if no row is complete.
void finish_uniform(const SlotRing& ring, Generator& generator, Draws& draws,
                    const SampleTarget& target);

// The slots that hold a complete row now, ascending.
std::vector<std::uint64_t> find_filled_slots(const SlotRing& ring);

}  // namespace mpbuffer
