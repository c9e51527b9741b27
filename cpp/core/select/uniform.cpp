#include "select/uniform.hpp"

#include <algorithm>
#include <thread>

#include "base/error.hpp"
#include "base/guard.hpp"

namespace mpbuffer {

namespace {

constexpr int max_redraws = 64;
constexpr int max_scans = 32;

std::uint64_t draw_slot(const SlotRing& ring, Generator& generator, const Draws& draws) {
    const std::uint64_t slot = draws.first_slot + generator.below(draws.slots_claimed);
    return slot < ring.capacity() ? slot : slot - ring.capacity();
}

// Looks which slots have been claimed.
void find_claimed(const SlotRing& ring, Draws& draws) {
    const auto [cleared, position] = ring.bounds();
    draws.cleared = cleared;
    const std::uint64_t oldest = std::max(cleared, position - std::min(position, ring.capacity()));
    if (position <= oldest) throw EmptyBuffer(ring.why_empty());
    draws.first_slot = oldest % ring.capacity();
    draws.slots_claimed = position - oldest;
}

}  // namespace

void draw_uniform(const SlotRing& ring, std::size_t count, Generator& generator, Draws& draws) {
    draws.any_row = true;
    find_claimed(ring, draws);
    draws.slots.resize(count);
    for (std::uint64_t& slot : draws.slots) slot = draw_slot(ring, generator, draws);
}

// At first among all slots that were claimed, then, since few rows are complete, among those that a
// scan has found.
void finish_uniform(const SlotRing& ring, Generator& generator, Draws& draws,
                    const SampleTarget& target) {
    std::vector<std::uint64_t> filled;
    if (target.sources != nullptr && !draws.missed.empty()) {
        target.sources->retire(ring);
        find_claimed(ring, draws);
    }
    for (const std::size_t place : draws.missed) {
        int redraws = filled.empty() ? 0 : max_redraws;
        do {
            if (redraws < max_redraws) {
                draws.slots[place] = draw_slot(ring, generator, draws);
            } else {
                if (redraws == max_redraws + max_scans) {
                    throw EmptyBuffer("no row is complete: every slot is empty or being written");
                }
                if (redraws > max_redraws) std::this_thread::yield();
                if (filled.empty() || redraws > max_redraws) {
                    if (target.sources != nullptr) target.sources->retire(ring);
                    filled = find_filled_slots(ring);
                }
                if (!filled.empty()) draws.slots[place] = filled[generator.below(filled.size())];
            }
            ++redraws;
            ++draws.redraws;
        } while (!copy_row(ring, place, draws, target));
    }
}

std::vector<std::uint64_t> find_filled_slots(const SlotRing& ring) {
    let_others_scan(ring.capacity());
    const std::uint64_t cleared = ring.clear_before();
    std::vector<std::uint64_t> filled;
    for (std::uint64_t slot = 0; slot < ring.capacity(); ++slot) {
        const std::uint64_t word = ring.word(slot).load(std::memory_order_acquire);
        if (slot_word::is_committed(word) && slot_word::seq(word) >= cleared) {
            filled.push_back(slot);
        }
    }
    return filled;
}

}  // namespace mpbuffer
