// What the holder of a segment's role says of itself, under a SeqLock: who it is, and, if it is a
// buffer's learner, how far it has come.
#pragma once

#include <cstdint>

#include "base/seqlock.hpp"

namespace mpbuffer {

struct RoleHolder {
    std::uint64_t process;  // its number in the process table; 0: nobody
    std::uint64_t pid;
    std::uint64_t since;  // ns since the epoch
};

struct LearnerFigures {
    std::uint64_t folded;  // the position that it has reached
    std::uint64_t sampleable;
    double total;
    double least_leaf;
    std::uint64_t updates;
    std::uint64_t stale;
    std::uint64_t draws;
    std::uint64_t nodes_visited;
    std::uint64_t published_at;  // ns since the epoch
    std::uint64_t rows_folded;   // by this learner
};

struct RoleLine {
    RoleHolder holder;
    LearnerFigures figures;  // of a publisher of weights: all 0
};

using SharedRoleLine = SeqLock<RoleLine>;
static_assert(sizeof(SharedRoleLine) == 128);

}  // namespace mpbuffer
