#include "select/weights_of_draws.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "select/powers.hpp"

namespace mpbuffer {

namespace {

constexpr std::size_t at_once = 128;

// results[i] = base(i)^exponent for i < count.
template <class Base>
void powers_of(std::size_t count, double exponent, float* results, Base&& base) {
    std::array<double, at_once> bases;
    for (std::size_t first = 0; first < count; first += at_once) {
        const std::size_t some = std::min(at_once, count - first);
        for (std::size_t i = 0; i < some; ++i) bases[i] = base(first + i);
        powers()(bases.data(), some, exponent, results + first);
    }
}

}  // namespace

void importance_weights(const float* leaves, std::size_t count, double unit, double beta,
                        float* weights) {
    constexpr float largest = std::numeric_limits<float>::max();
    const double scale = 1 / unit;
    powers_of(count, -beta, weights, [=](std::size_t i) { return double{leaves[i]} * scale; });
    for (std::size_t i = 0; i < count; ++i) weights[i] = std::min(weights[i], largest);
}

void leaves_of(std::span<const double> priorities, double alpha, double eps, float* leaves) {
    constexpr float smallest = std::numeric_limits<float>::min();
    powers_of(priorities.size(), alpha, leaves, [=](std::size_t i) { return priorities[i] + eps; });
    for (std::size_t i = 0; i < priorities.size(); ++i) {
        const bool rounded_up = leaves[i] < smallest && priorities[i] + eps > 0;
        leaves[i] = rounded_up ? smallest : leaves[i];
    }
}

double priority_of(float leaf, double alpha, double eps) {
    if (!(alpha > 0)) return 1;
    const double base = std::pow(double{leaf}, 1 / alpha);
    return std::clamp(base - eps, 0.0, std::numeric_limits<double>::max());
}

float leaf_of(double priority, double alpha, double eps) {
    float leaf = 0;
    leaves_of({&priority, 1}, alpha, eps, &leaf);
    return leaf;
}

}  // namespace mpbuffer
