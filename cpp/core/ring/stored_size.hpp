// How many complete rows a ring holds, as one handle knows it: the count that all commits keep,
// less what is just being overwritten.
//
// A process that dies between a commit and its raise of the count leaves it too low. Whoever finds
// that out requests a recount (SlotRing::request_recount), and so does a clear by its mark; each
// handle then counts all slots once, and again for each further request. O(1) without one.
#pragma once

#include <cstdint>
#include <vector>

#include "ring/slot_ring.hpp"

namespace mpbuffer {

class StoredSize {
  public:
    explicit StoredSize(std::uint64_t capacity) : cleared_seen_(capacity) {}

    // Exact while nobody is adding.
    std::uint64_t count(const SlotRing& ring);

  private:
    std::uint64_t recount(const SlotRing& ring, std::uint64_t requests);

    std::uint64_t requests_seen_ = 0;
    std::uint64_t cleared_seen_;  // at the last recount; capacity is where a ring starts
    struct SeenClaim {
        std::uint64_t slot;
        std::uint64_t word;
    };
    // Claims of counted slots that the last recount met: not complete while unchanged.
    std::vector<SeenClaim> claims_;
};

}  // namespace mpbuffer
