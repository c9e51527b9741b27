// Signals at random moments, from outside.
#pragma once

#include <cstdint>

#include "arena.hpp"

namespace stops {

struct ChaosResult {
    std::uint64_t kills = 0;
    std::uint64_t kills_of_learner = 0;
    std::uint64_t kills_in_fold_or_update = 0;
    std::uint64_t kills_with_claim_left = 0;
    std::uint64_t stops = 0;
    std::uint64_t forks = 0;
    std::uint64_t execs = 0;
    std::uint64_t verifications = 0;
    std::uint64_t rows_acknowledged = 0;
    std::uint64_t rows_sampled = 0;
    ChaosResult& operator+=(const ChaosResult& other);
};

void print(const ChaosResult& result);

// Explorers and a learner under SIGKILL, SIGSTOP and SIGCONT until both counts are reached.
ChaosResult run_chaos(std::uint64_t kills, std::uint64_t stops, Findings& findings, Random& random);

// Forks while other threads of the parent are inside add.
ChaosResult run_forks_beside_adds(std::uint64_t forks, Findings& findings, Random& random);

}  // namespace stops
