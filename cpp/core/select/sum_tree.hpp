// A wide tree of sums and minima over float leaves, on borrowed memory, for one thread at a time.
//
// Sixteen leaves make a group (one cache line); above them each node has eight children: sums in
// double, minima in float. A leaf of exactly 0 is not sampleable and counts in neither. Every node
// is always recomputed from its children, never incremented, so that rounding does not build up:
// the total differs from the exact sum of the leaves by the rounding of one summation only.
//
// set, refresh: O(leaves touched + log8(capacity)); total, least: O(1); one draw: one line of eight
// sums a level and one line of leaves, at most ceil(log8(capacity)) + 1 lines. Many draws at once
// share the walk over the upper levels.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "format/ring_records.hpp"
#include "select/kernels.hpp"

namespace mpbuffer {

class SumTree {
  public:
    static constexpr std::uint64_t fanout = 8;

    // Bytes of memory for the nodes, to be aligned to 64.
    static std::size_t bytes_required(std::uint64_t capacity);

    SumTree() = default;
    // leaves: padded_leaves(capacity) of them. Nothing is valid before the first rebuild().
    SumTree(float* leaves, std::uint64_t capacity, std::byte* nodes);

    float leaf(std::uint64_t slot) const { return leaves_[slot]; }
    const float* leaves() const { return leaves_; }
    double total() const { return levels_.back().sums[0]; }
    // The smallest leaf that is not 0; infinity if there is none.
    float least() const { return levels_.back().minima[0]; }

    // Writes a leaf without touching the nodes; a refresh that covers the slot must follow.
    // Release [L2]: whoever reads the leaf of a newer row beside the learner finds that row's word
    // changed, too.
    void store_leaf(std::uint64_t slot, float leaf) {
        std::atomic_ref(leaves_[slot]).store(leaf, std::memory_order_release);
    }

    // Whether leaves and lowest nodes are more than the caches near a core hold.
    bool is_far() const { return capacity_ > std::uint64_t{1} << 16; }
    // Asks for what a store_leaf and a refresh of the slot will touch beyond the upper levels.
    [[gnu::always_inline]] void prefetch(std::uint64_t slot) const {
        __builtin_prefetch(&leaves_[slot], 1);
        __builtin_prefetch(&levels_.front().sums[slot / leaves_per_group], 1);
    }

    void rebuild();
    // Recomputes what stands above the leaves [first, last).
    void refresh_range(std::uint64_t first, std::uint64_t last);
    // Recomputes what stands above each of the slots; cheapest when they are ascending. The list is
    // used as scratch space.
    void refresh_slots(std::vector<std::uint64_t>& slots);

    // For each mass in [0, total): the slot at which the running sum of leaves first exceeds it.
    // Never a slot whose leaf is 0, unless total() is 0. Cheapest where masses ascend. They are
    // used as scratch space.
    void find_prefix_sums(double* masses, std::uint64_t* slots, std::size_t count);

    // Lines of nodes and leaves looked at by find_prefix_sums so far.
    std::uint64_t nodes_visited() const { return nodes_visited_; }

  private:
    struct Level {
        double* sums;
        float* minima;
        std::uint64_t
            count;  // nodes in use; padded to a multiple of the fanout with 0 and infinity
    };

    std::size_t enter(double* masses, std::uint64_t* slots, std::size_t count);
    void recompute_group(std::uint64_t group);
    void recompute_node(std::size_t level, std::uint64_t node);

    const TreeKernels* kernels_ = &tree_kernels();
    float* leaves_ = nullptr;
    std::uint64_t capacity_ = 0;
    std::vector<Level> levels_;  // levels_[0]: one node a group; the last: the root alone
    std::uint64_t nodes_visited_ = 0;
};

}  // namespace mpbuffer
