// Draws: one generator, stratified masses, uniform integers, importance weights.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace mpbuffer {

// xoshiro256++ (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2021), its
// state filled by splitmix64 from what makes a handle's stream its own.
class Generator {
  public:
    Generator() : Generator(0, 0, 0) {}
    Generator(std::uint64_t seed, std::uint64_t process, std::uint64_t epoch);

    std::uint64_t next();
    double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }  // [0, 1)
    std::uint64_t below(std::uint64_t bound);  // [0, bound), bound > 0

  private:
    std::array<std::uint64_t, 4> state_{};
};

// The mass of stratum `index` of `count` equal parts of [0, total): ascending in `index`.
inline double stratified_mass(Generator& generator, std::size_t index, std::size_t count,
                              double total) {
    const double mass =
        (static_cast<double>(index) + generator.uniform()) * (total / static_cast<double>(count));
    return mass < total ? mass : total;
}

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

}  // namespace mpbuffer
