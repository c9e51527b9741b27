#include "ring/stored_size.hpp"

#include <algorithm>

#include "base/guard.hpp"

namespace mpbuffer {

std::uint64_t StoredSize::count(const SlotRing& ring) {
    const RingCounters& counters = ring.counters();
    const std::uint64_t requests = counters.recount_requests.load(std::memory_order_acquire);
    const std::uint64_t cleared = ring.clear_before();
    if (requests != requests_seen_ || cleared != cleared_seen_) return recount(ring, requests);
    const std::uint64_t counted =
        filled_word::count(counters.filled.load(std::memory_order_acquire));
    std::erase_if(claims_, [&ring, cleared](const SeenClaim& claim) {
        return ring.word(claim.slot).load(std::memory_order_acquire) != claim.word ||
               slot_word::seq(claim.word) < cleared;
    });
    // Fewer are counted than known claims only while somebody is clearing.
    return counted - std::min<std::uint64_t>(counted, claims_.size());
}

// A slot counts if it holds a row, or a claim that a counted row gave way to: that claim's commit
// will not raise the count. A claim of an empty slot raises it itself.
std::uint64_t StoredSize::recount(const SlotRing& ring, std::uint64_t requests) {
    let_others_scan(ring.capacity());
    RingCounters& counters = ring.counters();
    std::uint64_t before = counters.filled.load(std::memory_order_acquire);
    const std::uint64_t cleared = ring.clear_before();
    std::uint64_t counted = 0;
    claims_.clear();
    for (std::uint64_t slot = 0; slot < ring.capacity(); ++slot) {
        const std::uint64_t word = ring.word(slot).load(std::memory_order_acquire);
        if (slot_word::seq(word) < cleared) continue;
        if (slot_word::is_committed(word)) {
            ++counted;
        } else if (!slot_word::fresh(word)) {
            ++counted;
            claims_.push_back({slot, word});
        }
    }
    // A raise since `before` fails the exchange; a commit since then whose raise is still to come
    // meets a changed recount and requests another: so the exchange is made even where the count is
    // right already. Acq_rel: pairs with the acquire load in add().
    if (counters.filled.compare_exchange_strong(before, filled_word::next(before, counted),
                                                std::memory_order_acq_rel)) {
        requests_seen_ = requests;
        cleared_seen_ = cleared;
    }
    return counted - claims_.size();
}

}  // namespace mpbuffer
