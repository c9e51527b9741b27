// Every step of the protocol x every signal.
#pragma once

#include <cstdint>
#include <string>

#include "arena.hpp"
#include "base/stop_points.hpp"

namespace stops {

enum class Fate { kill, stop, stop_and_continue };
constexpr const char* fate_names[] = {"SIGKILL", "SIGSTOP", "SIGSTOP+CONT"};

struct CellResult {
    std::uint64_t hits = 0;
    std::uint64_t not_reached = 0;  // children who ended before they got to the step
    std::uint64_t claims_left = 0;
    std::uint64_t verifications = 0;
};

CellResult run_cell(mpbuffer::StopPoint point, Fate fate, std::uint64_t hits, Findings& findings,
                    Random& random);

// Writers stand still with every slot, then die or go on.
CellResult run_all_slots_held(std::uint64_t rounds, Findings& findings, Random& random);

}  // namespace stops
