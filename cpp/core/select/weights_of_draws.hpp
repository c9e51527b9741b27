// The formulas of prioritized replay: the leaf of a priority, and the weight of a draw.
#pragma once

#include <cstddef>
#include <limits>

namespace mpbuffer {

// Importance weights (Schaul et al., "Prioritized experience replay", 2016, section 3.4) divided by
// the largest one in the whole buffer: (N P(i))^-beta / max_j (N P(j))^-beta = (leaf /
// least)^-beta. Leaves are those of drawn rows, so above 0.
void importance_weights(const float* leaves, std::size_t count, float least, double beta,
                        float* weights);

// The leaf of a priority: (priority + eps)^alpha. A row of a leaf above 0 can be drawn, so the
// power of a base above 0 is rounded up to the smallest normal float if it is smaller. A base of 0
// has leaf 0, and is never drawn; with alpha 0 it has leaf 1, as every base. Not finite if the
// priority is too large for a float32 leaf.
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
    bool is_leaf(float leaf) const { return mpbuffer::is_leaf(leaf, alpha, eps); }
};

}  // namespace mpbuffer
