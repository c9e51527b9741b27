// Explorers whose lock bytes alone prove nothing: those of other pid namespaces, that no outsider
// can prove dead, and those that replace themselves by another program, whose pid lives on.
#pragma once

#include <cstdint>

#include "base/stop_points.hpp"
#include "chaos.hpp"

namespace stops {

// The copy twice: between two fields is the middle.
constexpr mpbuffer::StopPoint steps_inside_add[] = {
    mpbuffer::StopPoint::busy_raised,     mpbuffer::StopPoint::position_taken,
    mpbuffer::StopPoint::slot_looked_at,  mpbuffer::StopPoint::claim_taken,
    mpbuffer::StopPoint::field_copied,    mpbuffer::StopPoint::field_copied,
    mpbuffer::StopPoint::leaf_in_stored,  mpbuffer::StopPoint::row_committed,
    mpbuffer::StopPoint::filled_to_raise,
};

// Whether this process may make pid namespaces.
bool may_make_pid_namespaces();

// Explorers, each in a pid namespace of its own, that stand still at a step of an add, some with
// all their descriptors closed, and go on or are killed later; others are killed at random moments.
ChaosResult run_namespaces(std::uint64_t kills, Findings& findings, Random& random);

// Explorers that, at steps of an add and at random moments, become another run of this program, or
// another program that stays; killed at random moments.
ChaosResult run_execs(std::uint64_t kills, Findings& findings, Random& random);

// What such a run of this program does: main() gives it the arguments that follow --exec-explorer.
int explore_after_exec(char** arguments);

}  // namespace stops
