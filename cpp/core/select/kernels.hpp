// The inner loops of the tree: which part of a running sum a mass falls into, and what a group of
// leaves sums up to.
//
// Two twins: one in portable C++, one for AVX2. They add in the same order, so that their results
// are the same to the last bit; `tree_kernels()` is whichever this processor runs faster.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mpbuffer {

struct TreeKernels {
    // For each i: sums[8 * slots[i] ...] are the sums of a node's eight children. Replaces slots[i]
    // by the number of the child whose part of them holds masses[i], masses[i] by its distance into
    // that part, and asks for the line `below + 64 * slots[i]`.
    void (*children)(const double* sums, double* masses, std::uint64_t* slots, std::size_t count,
                     const std::byte* below);
    // The same for groups of sixteen leaves; masses are left as they fall.
    void (*leaves)(const float* leaves, double* masses, std::uint64_t* slots, std::size_t count);
    // The sum of sixteen leaves, and the smallest: of those above 0; 0 and infinity if none is.
    void (*group)(const float* leaves, double& sum, float& least);
};

// Rounding can leave a mass at or above the sum of all parts: then the last that is not 0 is
// chosen.
const TreeKernels& portable_kernels();
const TreeKernels* avx2_kernels();  // nullptr where there is none, or this processor lacks it
const TreeKernels& tree_kernels();

}  // namespace mpbuffer
