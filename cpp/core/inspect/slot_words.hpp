// What the words of a ring's slots say, looked at from outside: of rows, or of sources.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "format/slot_word.hpp"
#include "inspect/file.hpp"
#include "segment/process_table.hpp"

namespace mpbuffer {

class SlotWords {
  public:
    // `thing`: what a slot holds, "row" or "source".
    SlotWords(const ReadOnlyFile& file, const SegmentHeader& header, std::uint64_t capacity,
              std::string thing)
        : file_(file),
          thing_(std::move(thing)),
          processes_(file.data() + header.process_table_offset, header.max_handles),
          capacity_(capacity) {}

    // Whether a claim's owner is dead. Asked once for each owner and epoch; a death meanwhile is
    // told by the next inspection.
    bool is_dead(std::uint64_t word);
    // Empty if the slot may have this word, while positions below `position` are taken.
    std::string suspicion(std::uint64_t slot, std::uint64_t word, std::uint64_t position) const;

  private:
    const ReadOnlyFile& file_;
    std::string thing_;
    ProcessTable processes_;
    std::uint64_t capacity_;
    std::array<std::array<std::optional<bool>, 1u << slot_word::epoch_bits>,
               1u << slot_word::owner_bits>
        dead_{};
};

// Tells of each of so many slots what `suspicion_of` says at the last of several looks, if it says
// something at each. `where`: "slot " or the like, in front of the slot's number.
void tell_suspect_slots(const std::string& where, std::uint64_t slots,
                        std::chrono::microseconds pause,
                        const std::function<std::string(std::uint64_t)>& suspicion_of,
                        Inspection& report);

}  // namespace mpbuffer
