// The formulas of prioritized replay: the leaf of a priority, and the weight of a draw.
#pragma once

#include <cstddef>
#include <limits>
#include <span>

namespace mpbuffer {

// What importance weights are divided by: the largest one of the rows that can be drawn, the
// largest one of the batch, or nothing.
enum class WeightNorm { buffer, batch, none };

struct Weighting {
    double beta;
    WeightNorm norm;
    // Not explicit: a beta alone is cpprb's weighting.
    Weighting(double beta, WeightNorm norm = WeightNorm::buffer) : beta(beta), norm(norm) {}
};

// Importance weights (Schaul et al., "Prioritized experience replay", 2016, section 3.4):
// (N P(i))^-beta / (N P(j))^-beta = (leaf / unit)^-beta, where `unit` is the leaf of weight 1: the
// smallest one for the largest weight as the norm, the mean one for none. Leaves are those of drawn
// rows, so above 0. A weight beyond float32 is the largest float.
void importance_weights(const float* leaves, std::size_t count, double unit, double beta,
                        float* weights);

// The leaves of priorities: (priority + eps)^alpha, within 1 ulp of float32. A row of a leaf above
// 0 can be drawn, so the power of a base above 0 is rounded up to the smallest normal float if it
// is smaller. A base of 0 has leaf 0, and is never drawn; with alpha 0 it has leaf 1, as every
// base. Not finite if the priority is too large for a float32 leaf.
void leaves_of(std::span<const double> priorities, double alpha, double eps, float* leaves);
float leaf_of(double priority, double alpha, double eps);

// The priority that a leaf belongs to, to the precision of a float32 of priority + eps; 1 with
// alpha 0, where all priorities have one leaf.
double priority_of(float leaf, double alpha, double eps);

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
    double priority(float leaf) const { return priority_of(leaf, alpha, eps); }
    bool is_leaf(float leaf) const { return mpbuffer::is_leaf(leaf, alpha, eps); }
};

}  // namespace mpbuffer
