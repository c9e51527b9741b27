#include "select/sum_tree.hpp"

#include <algorithm>

#include "base/round_up.hpp"

namespace mpbuffer {

namespace {

// Nodes of each level from the groups up to the root.
std::vector<std::uint64_t> level_counts(std::uint64_t capacity) {
    std::vector<std::uint64_t> counts{round_up(capacity, leaves_per_group) / leaves_per_group};
    while (counts.back() > 1) {
        counts.push_back(round_up(counts.back(), SumTree::fanout) / SumTree::fanout);
    }
    return counts;
}

std::size_t padded_nodes(std::uint64_t count) { return round_up(count, 2 * SumTree::fanout); }

}  // namespace

std::size_t SumTree::bytes_required(std::uint64_t capacity) {
    std::size_t bytes = 0;
    for (const std::uint64_t count : level_counts(capacity)) {
        bytes += padded_nodes(count) * (sizeof(double) + sizeof(float));
    }
    return round_up(bytes, 64);
}

SumTree::SumTree(float* leaves, std::uint64_t capacity, std::byte* nodes)
    : leaves_(leaves), capacity_(capacity) {
    for (const std::uint64_t count : level_counts(capacity)) {
        Level level{};
        level.count = count;
        level.sums = reinterpret_cast<double*>(nodes);
        nodes += padded_nodes(count) * sizeof(double);
        levels_.push_back(level);
    }
    for (Level& level : levels_) {
        level.minima = reinterpret_cast<float*>(nodes);
        nodes += padded_nodes(level.count) * sizeof(float);
        std::fill_n(level.sums, padded_nodes(level.count), 0.0);
        std::fill_n(level.minima, padded_nodes(level.count),
                    std::numeric_limits<float>::infinity());
    }
}

void SumTree::recompute_group(std::uint64_t group) {
    kernels_->group(leaves_ + group * leaves_per_group, levels_[0].sums[group],
                    levels_[0].minima[group]);
}

void SumTree::recompute_node(std::size_t level, std::uint64_t node) {
    const double* sum = levels_[level - 1].sums + node * fanout;
    const float* least = levels_[level - 1].minima + node * fanout;
    levels_[level].sums[node] =
        ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
    levels_[level].minima[node] =
        std::min(std::min(std::min(least[0], least[1]), std::min(least[2], least[3])),
                 std::min(std::min(least[4], least[5]), std::min(least[6], least[7])));
}

void SumTree::rebuild() { refresh_range(0, capacity_); }

void SumTree::refresh_range(std::uint64_t first, std::uint64_t last) {
    if (first >= last) return;
    first /= leaves_per_group;
    last = (last + leaves_per_group - 1) / leaves_per_group;
    for (std::uint64_t group = first; group < last; ++group) recompute_group(group);
    for (std::size_t level = 1; level < levels_.size(); ++level) {
        first /= fanout;
        last = (last + fanout - 1) / fanout;
        for (std::uint64_t node = first; node < last; ++node) recompute_node(level, node);
    }
}

void SumTree::refresh_slots(std::vector<std::uint64_t>& slots) {
    // Each pass turns the list into that of the parents, runs of one parent folded into one.
    const auto to_parents = [&slots](std::uint64_t width) {
        std::size_t kept = 0;
        for (const std::uint64_t child : slots) {
            const std::uint64_t parent = child / width;
            if (kept == 0 || slots[kept - 1] != parent) slots[kept++] = parent;
        }
        slots.resize(kept);
    };
    to_parents(leaves_per_group);
    for (const std::uint64_t group : slots) recompute_group(group);
    for (std::size_t level = 1; level < levels_.size(); ++level) {
        to_parents(fanout);
        for (const std::uint64_t node : slots) recompute_node(level, node);
    }
}

// Finds each mass's node on the lowest level that has no more nodes than half the draws, by one
// walk over the nodes of that level. Returns the level.
std::size_t SumTree::enter(double* masses, std::uint64_t* slots, std::size_t count) {
    std::size_t entry = levels_.size() - 1;
    while (entry > 0 && levels_[entry - 1].count <= count / 2) --entry;
    const Level& level = levels_[entry];
    std::uint64_t last = level.count - 1;  // that is not 0, beyond which rounding must not lead
    while (last > 0 && !(level.sums[last] > 0)) --last;
    std::uint64_t node = 0;
    double before = 0;
    for (std::size_t i = 0; i < count; ++i) {
        if (masses[i] < before) {
            node = 0;
            before = 0;
        }
        while (node < last && masses[i] >= before + level.sums[node]) before += level.sums[node++];
        masses[i] -= before;
        slots[i] = node;
    }
    nodes_visited_ += (level.count - 1 + fanout - 1) / fanout;  // the root's sum is the total
    return entry;
}

void SumTree::find_prefix_sums(double* masses, std::uint64_t* slots, std::size_t count) {
    for (std::size_t level = enter(masses, slots, count); level-- > 0;) {
        // The lines of the next level down: eight doubles or sixteen floats, 64 bytes each.
        const void* below = level == 0 ? static_cast<const void*>(leaves_)
                                       : static_cast<const void*>(levels_[level - 1].sums);
        kernels_->children(levels_[level].sums, masses, slots, count,
                           static_cast<const std::byte*>(below));
        nodes_visited_ += count;
    }
    kernels_->leaves(leaves_, masses, slots, count);
    for (std::size_t i = 0; i < count; ++i) slots[i] = std::min(slots[i], capacity_ - 1);
    nodes_visited_ += count;
}

}  // namespace mpbuffer
