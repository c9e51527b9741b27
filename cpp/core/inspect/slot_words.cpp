#include "inspect/slot_words.hpp"

#include <thread>
#include <vector>

namespace mpbuffer {

bool SlotWords::is_dead(std::uint64_t word) {
    const unsigned owner = slot_word::owner(word);
    const std::uint64_t epoch = slot_word::epoch(word);
    std::optional<bool>& known = dead_.at(owner).at(epoch);
    if (!known) known = processes_.dead(owner, epoch, slot_word::epoch_bits, file_.descriptor());
    return *known;
}

std::string SlotWords::suspicion(std::uint64_t slot, std::uint64_t word,
                                 std::uint64_t position) const {
    if (word == 0) return {};
    const std::uint64_t seq = slot_word::seq(word);
    const unsigned owner = slot_word::owner(word);
    if (seq == 0) return "its word is " + std::to_string(word) + " without a " + thing_;
    if (seq < capacity_ || seq % capacity_ != slot) {
        return "it holds " + thing_ + " " + std::to_string(seq) + ", which belongs to slot " +
               std::to_string(seq % capacity_);
    }
    if (seq >= position) {
        return "it holds " + thing_ + " " + std::to_string(seq) + ", beyond the position " +
               std::to_string(position);
    }
    if (owner == 0) {
        if (word != slot_word::committed(seq)) {
            return "its word is that of no claim and no " + thing_;
        }
        return {};
    }
    if (owner > processes_.high_water() ||
        processes_.record(owner).epoch.load(std::memory_order_acquire) == 0) {
        return "process " + std::to_string(owner) + " is writing it, and never was there";
    }
    return {};
}

void tell_suspect_slots(const std::string& where, std::uint64_t slots,
                        std::chrono::microseconds pause,
                        const std::function<std::string(std::uint64_t)>& suspicion_of,
                        Inspection& report) {
    std::vector<std::uint64_t> suspects;
    for (std::uint64_t slot = 0; slot < slots; ++slot) {
        if (!suspicion_of(slot).empty()) suspects.push_back(slot);
    }
    for (int look = 1; look < looks && !suspects.empty(); ++look) {
        std::this_thread::sleep_for(pause);
        std::erase_if(suspects, [&](std::uint64_t slot) { return suspicion_of(slot).empty(); });
    }
    for (const std::uint64_t slot : suspects) {
        const std::string why = suspicion_of(slot);
        if (!why.empty()) tell_damage(report, where + std::to_string(slot) + ": " + why);
    }
}

}  // namespace mpbuffer
