// Looks at a segment without becoming part of it: the file is mapped read-only, no lock is taken,
// no process number either, and the name stays whatever comes of it. So it may look at segments
// that are in use, dead, or damaged.
//
// What is in motion is not damage: whatever looks wrong is looked at again, several times, and only
// what was wrong at each look is told. Nothing in the segment is believed beyond its header, whose
// every number is checked first; the time taken is bounded by the file's size.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "format/header.hpp"
#include "format/role_line.hpp"

namespace mpbuffer {

enum class Scrutiny {
    figures,    // counters and the process table: O(processes), O(capacity) after a clear
    every_slot  // and each slot word and leaf: O(capacity)
};

struct InspectedProcess {
    unsigned number;
    std::uint64_t pid;
    char state;  // of /proc/PID/stat; 'X': gone; '?': alive, cannot be looked at
    std::uint64_t rows;
    std::uint64_t skips;
    std::uint64_t steals;
    std::uint64_t registered_at;  // ns since the epoch
    bool busy;                    // inside a call that claims, or died in one
};

struct InspectedRole {
    bool held;      // now, by whoever
    bool whole;     // the line was not being written, or left half written
    RoleLine line;  // process 0: gave the role up, or never was there
};

struct InspectedWeights {
    std::uint64_t version;   // that readers get
    std::uint64_t newest;    // larger while a version waits for a slot
    std::uint64_t age;       // ns since `version` was published
    std::uint64_t reads;     // through all handles that are open, or were last open
    std::uint64_t repeats;   // of their copies, that were overwritten
    std::uint64_t in_reads;  // handles that are in the middle of a copy
};

// A ring of what rows refer to.
struct InspectedSources {
    std::uint64_t capacity;
    std::uint64_t bytes;    // of one
    std::uint64_t claimed;  // positions ever taken
    std::uint64_t written;  // and sources committed there, by all processes
    // Of every slot only.
    std::uint64_t stored = 0;            // that are there
    std::uint64_t claims = 0;            // being written
    std::uint64_t abandoned_claims = 0;  // their owners are dead
};

struct Inspection {
    std::string name;
    std::string path;  // of nameless memory: of a process that has it open
    bool nameless = false;
    std::uint64_t bytes = 0;
    unsigned mode = 0;
    bool live = false;    // somebody has it open
    std::string refusal;  // why nobody can attach; then nothing below `damage` is filled in

    std::uint64_t damages = 0;
    std::vector<std::string> damage;  // a sentence each; the first max_told of them
    std::vector<std::string> notes;   // worth knowing, and no damage

    SegmentHeader header{};
    std::string description;
    std::uint64_t position = 0;
    std::uint64_t clear_before = 0;
    std::uint64_t counted_rows = 0;  // as `filled` says, right or wrong
    std::uint64_t rows = 0;          // complete; exact while nobody is adding
    double max_priority = 0;
    std::uint64_t rows_added = 0;
    std::uint64_t early = 0;                // rows retired
    std::vector<InspectedSources> sources;  // in the order of their rings; none: rows share nothing
    std::vector<InspectedProcess> processes;
    InspectedRole role{};        // of the learner, or of the publisher of weights
    InspectedWeights weights{};  // of weights only; then `rows` of a process are its reads

    // Of every slot only.
    std::uint64_t claims = 0;            // being written
    std::uint64_t abandoned_claims = 0;  // their owners are dead

    static constexpr std::size_t max_told = 100;
};

// Throws SegmentNotFound, SegmentMismatch (what has that name is no regular file, or somebody
// else's), InvalidArgument (no name), SystemFailure. A damaged segment is no error but a finding.
// pause: between looks at what looks wrong.
Inspection inspect_segment(const std::string& name, Scrutiny scrutiny,
                           const std::string& directory = "/dev/shm",
                           std::chrono::microseconds pause = std::chrono::milliseconds(2));

}  // namespace mpbuffer
