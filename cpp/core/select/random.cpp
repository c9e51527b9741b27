#include "select/random.hpp"

#include <bit>
#include <cmath>
#include <limits>

namespace mpbuffer {

namespace {

std::uint64_t splitmix64(std::uint64_t& state) {
    state += 0x9e3779b97f4a7c15u;
    std::uint64_t mixed = state;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
    return mixed ^ (mixed >> 31);
}

// Where the base lies between these two, and the exponent between -1 and 1, float32's power is
// within 1e-6 of the exact one, and takes less than half the time of double's.
constexpr double least_base = 0x1p-16;
constexpr double largest_base = 0x1p16;

[[gnu::noinline]] float leaf_by_double(double base, double alpha) {
    constexpr float smallest = std::numeric_limits<float>::min();
    const auto leaf = static_cast<float>(std::pow(base, alpha));
    return base > 0 && leaf < smallest ? smallest : leaf;
}

}  // namespace

Generator::Generator(std::uint64_t seed, std::uint64_t process, std::uint64_t epoch) {
    std::uint64_t mixer = seed;
    mixer = splitmix64(mixer) ^ process;
    mixer = splitmix64(mixer) ^ epoch;
    for (std::uint64_t& word : state_) word = splitmix64(mixer);
}

std::uint64_t Generator::next() {
    const std::uint64_t result = std::rotl(state_[0] + state_[3], 23) + state_[0];
    const std::uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = std::rotl(state_[3], 45);
    return result;
}

// Lemire's multiplication method, with its rejection step: exactly uniform.
std::uint64_t Generator::below(std::uint64_t bound) {
    __extension__ using Wide = unsigned __int128;
    Wide product = Wide{next()} * bound;
    if (static_cast<std::uint64_t>(product) < bound) {
        const std::uint64_t threshold = (0 - bound) % bound;
        while (static_cast<std::uint64_t>(product) < threshold) product = Wide{next()} * bound;
    }
    return static_cast<std::uint64_t>(product >> 64);
}

void importance_weights(const float* leaves, std::size_t count, float least, double beta,
                        float* weights) {
    const auto exponent = static_cast<float>(-beta);
    const double largest = beta <= 1 ? largest_base : 0;
    for (std::size_t i = 0; i < count; ++i) {
        const double ratio = double{leaves[i]} / double{least};  // at least 1
        weights[i] = ratio <= largest ? std::pow(static_cast<float>(ratio), exponent)
                                      : static_cast<float>(std::pow(ratio, -beta));
    }
}

float leaf_of(double priority, double alpha, double eps) {
    const double base = priority + eps;
    if (base >= least_base && base <= largest_base && alpha <= 1) [[likely]] {
        return std::pow(static_cast<float>(base), static_cast<float>(alpha));
    }
    return leaf_by_double(base, alpha);
}

}  // namespace mpbuffer
