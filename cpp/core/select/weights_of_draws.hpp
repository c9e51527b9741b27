// The formulas of prioritized replay: the leaf of a priority, and the weight of a draw.
#pragma once

#include <cstddef>
#include <limits>
#include <span>

namespace mpbuffer {

// Importance weights (Schaul et al., "Prioritized experience replay", 2016, section 3.4) divided by
// the largest one in the whole buffer: (N P(i))^-beta / max_j (N P(j))^-beta = (leaf /
// least)^-beta. Leaves are those of drawn rows, so above 0.
void importance_weights(const float* leaves, std::size_t count, float least, double beta,
                        float* weights);

// The leaves of priorities: (priority + eps)^alpha, within 1 ulp of float32. A row of a leaf above
// 0 can be drawn, so the power of a base above 0 is rounded up to the smallest normal float if it
// is smaller. A base of 0 has leaf 0, and is never drawn; with alpha 0 it has leaf 1, as every
// base. Not finite if the priority is too large for a float32 leaf.
void leaves_of(std::span<const double> priorities, double alpha, double eps, float* leaves);
float leaf_of(double priority, double alpha, double eps);

// Whether some priority has this leaf.
inline bool is_leaf(float leaf, double alpha, double eps) {
    if (leaf >= std::numeric_limits<float>::min()) [[likely]] {
        return leaf <= std::numeric_limits<float>::max();
    }
    return leaf == 0 && alpha > 0 && eps == 0;
}

struct PriorityRule {
    double alpha;
    double eps;
    float leaf(double priority) const { return leaf_of(priority, alpha, eps); }
    void leaves(std::span<const double> priorities, float* leaves) const {
        leaves_of(priorities, alpha, eps, leaves);
    }
    bool is_leaf(float leaf) const { return mpbuffer::is_leaf(leaf, alpha, eps); }
};

}  // namespace mpbuffer
