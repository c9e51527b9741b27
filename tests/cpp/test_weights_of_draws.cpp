#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "select/random.hpp"
#include "select/weights_of_draws.hpp"

using namespace mpbuffer;

namespace {

constexpr float smallest_leaf = std::numeric_limits<float>::min();

}  // namespace

TEST_CASE("weights agree with the formula of the paper in double") {
    Generator generator(5, 1, 1);
    std::vector<float> leaves(1000);
    for (float& leaf : leaves) {
        leaf = static_cast<float>(std::pow(10.0, 6 * generator.uniform() - 3));
    }
    const float least = *std::min_element(leaves.begin(), leaves.end());
    double total = 0;
    for (const float leaf : leaves) total += double{leaf};
    for (const double beta : {0.0, 0.4, 0.5, 1.0}) {
        CAPTURE(beta);
        std::vector<float> weights(leaves.size());
        importance_weights(leaves.data(), leaves.size(), least, beta, weights.data());
        const auto size = static_cast<double>(leaves.size());
        const double largest = std::pow(size * double{least} / total, -beta);
        for (std::size_t i = 0; i < leaves.size(); ++i) {
            const double exact = std::pow(size * double{leaves[i]} / total, -beta) / largest;
            REQUIRE(double{weights[i]} == doctest::Approx(exact).epsilon(3e-6));
            REQUIRE(weights[i] <= 1.0F);
            REQUIRE(weights[i] > 0.0F);
        }
    }
}

TEST_CASE("weights of leaves below the unit are above 1, and finite") {
    const float leaves[] = {smallest_leaf, 1e-3F, 0.5F, 1.0F, 4.0F};
    for (const double beta : {0.0, 0.4, 1.0, 8.0}) {
        CAPTURE(beta);
        float weights[5];
        importance_weights(leaves, 5, 1.0, beta, weights);
        for (int i = 0; i < 5; ++i) {
            const double exact = std::min(std::pow(double{leaves[i]}, -beta),
                                          double{std::numeric_limits<float>::max()});
            REQUIRE(double{weights[i]} == doctest::Approx(exact).epsilon(3e-6));
        }
    }
}

TEST_CASE("the priority of a leaf is the one that it was made of") {
    for (const double alpha : {0.3, 0.6, 1.0, 2.0}) {
        for (const double priority : {0.0, 0.01, 1.0, 7.5, 1e4}) {
            const PriorityRule rule{alpha, 1e-4};
            CHECK(rule.priority(rule.leaf(priority)) ==
                  doctest::Approx(priority).epsilon(1e-5).scale(1e-2));
        }
    }
    CHECK(PriorityRule{0.0, 1e-4}.priority(1.0F) == 1.0);
    CHECK(PriorityRule{0.5, 0.0}.priority(0.0F) == 0.0);
    CHECK(std::isfinite(PriorityRule{0.1, 0.0}.priority(3e38F)));
}

TEST_CASE("the row of the least leaf has weight 1") {
    const float leaves[] = {smallest_leaf, 1.0F, 3e38F};
    float weights[3];
    importance_weights(leaves, 3, smallest_leaf, 0.4, weights);
    CHECK(weights[0] == 1.0F);
    CHECK(weights[1] < 1.0F);
    CHECK(weights[2] <= weights[1]);
    importance_weights(leaves, 3, smallest_leaf, 0.0, weights);
    for (const float weight : weights) CHECK(weight == 1.0F);
}

TEST_CASE("a leaf is (priority + eps)^alpha in float32") {
    for (const double alpha : {0.0, 0.3, 0.6, 1.0}) {
        for (const double priority : {0.0, 1e-6, 0.01, 1.0, 7.5, 1e4, 1e6}) {
            const double exact = std::pow(priority + 1e-4, alpha);
            CHECK(double{leaf_of(priority, alpha, 1e-4)} == doctest::Approx(exact).epsilon(2e-6));
        }
    }
}

TEST_CASE("a leaf is exact in float32 for every priority that float64 holds") {
    constexpr double largest = std::numeric_limits<double>::max();
    CHECK(leaf_of(1e-50, 0.1, 0.0) == doctest::Approx(1e-5).epsilon(1e-6));
    CHECK(leaf_of(5e-324, 0.1, 0.0) == doctest::Approx(std::pow(5e-324L, 0.1L)).epsilon(1e-6));
    CHECK(leaf_of(largest, 0.1, 0.0) ==
          doctest::Approx(std::pow(1.0L * largest, 0.1L)).epsilon(1e-6));
    Generator generator(6, 1, 1);
    for (int i = 0; i < 200'000; ++i) {
        const double priority = std::pow(10.0, 630 * generator.uniform() - 322);
        const double eps = i % 3 == 0 ? 0 : std::pow(10.0, 40 * generator.uniform() - 38);
        const double alpha = i % 5 == 0 ? 2 * generator.uniform() : generator.uniform();
        const long double exact = std::pow(static_cast<long double>(priority) + eps, 1.0L * alpha);
        const float leaf = leaf_of(priority, alpha, eps);
        CAPTURE(priority);
        CAPTURE(alpha);
        CAPTURE(eps);
        if (exact >= std::numeric_limits<float>::max()) {
            REQUIRE((leaf == std::numeric_limits<float>::infinity() ||
                     leaf == std::numeric_limits<float>::max()));
            REQUIRE(is_leaf(leaf, alpha, eps) == std::isfinite(leaf));
            continue;
        }
        REQUIRE(std::abs(leaf / std::max(exact, 1.0L * smallest_leaf) - 1) < 1e-6L);
        REQUIRE(is_leaf(leaf, alpha, eps));
    }
}

TEST_CASE("weights are exact in float32 for every pair of leaves") {
    Generator generator(7, 1, 1);
    const double span = std::log2(3e38 / double{smallest_leaf});
    for (int i = 0; i < 200'000; ++i) {
        const float least =
            static_cast<float>(smallest_leaf * std::exp2(span * generator.uniform()));
        const float leaf = static_cast<float>(
            least * std::exp2(std::log2(3e38 / double{least}) * generator.uniform()));
        const double beta = (i % 4 == 0 ? 4 : 1) * generator.uniform();
        float weight = 2;
        importance_weights(&leaf, 1, least, beta, &weight);
        const long double exact = std::pow(1.0L * leaf / least, -1.0L * beta);
        CAPTURE(leaf);
        CAPTURE(least);
        CAPTURE(beta);
        constexpr float denormal = std::numeric_limits<float>::denorm_min();
        REQUIRE(std::abs(weight - exact) <= std::max(1e-6L * exact, 1.0L * denormal));
        REQUIRE(weight <= 1.0F);
    }
    float weight = 0;
    const float largest = std::numeric_limits<float>::max();
    importance_weights(&largest, 1, smallest_leaf, 0.5, &weight);
    CHECK(weight == doctest::Approx(5.8774717e-39).epsilon(1e-6));
}

TEST_CASE("a priority above 0 has at least the smallest normal float for its leaf") {
    CHECK(leaf_of(1e-40, 1.0, 0.0) == smallest_leaf);
    CHECK(leaf_of(1e-300, 1.0, 0.0) == smallest_leaf);
    CHECK(leaf_of(1e-20, 2.0, 0.0) == smallest_leaf);
    CHECK(leaf_of(0.0, 3.0, 1e-20) == smallest_leaf);
    CHECK(leaf_of(1e-37, 1.0, 0.0) == doctest::Approx(1e-37F));
}

TEST_CASE("priority 0 has leaf 0 where eps is 0, but with alpha 0 all have leaf 1") {
    for (const double alpha : {1e-300, 0.1, 0.6, 1.0, 7.0}) {
        CHECK(leaf_of(0.0, alpha, 0.0) == 0);
        CHECK(is_leaf(0, alpha, 0.0));
        CHECK_FALSE(is_leaf(0, alpha, 1e-300));
    }
    for (const double priority : {0.0, 5e-324, 1.0, 1e308}) CHECK(leaf_of(priority, 0.0, 0.0) == 1);
    CHECK_FALSE(is_leaf(0, 0.0, 0.0));
}

TEST_CASE("what no priority has for its leaf is told") {
    for (const float bad : {-1.0F, 1e-40F, std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()}) {
        CHECK_FALSE(is_leaf(bad, 0.6, 0.0));
        CHECK_FALSE(is_leaf(bad, 0.6, 1e-4));
    }
    CHECK(is_leaf(smallest_leaf, 0.6, 0.0));
    CHECK(is_leaf(std::numeric_limits<float>::max(), 0.6, 1e-4));
}

TEST_CASE("a priority beyond float32 gives a leaf that is not finite, to be refused") {
    CHECK_FALSE(std::isfinite(leaf_of(1e39, 1.0, 0.0)));
    CHECK_FALSE(std::isfinite(leaf_of(1e30, 2.0, 0.0)));
    CHECK(std::isfinite(leaf_of(3e38, 1.0, 0.0)));
    CHECK(std::isfinite(leaf_of(1e38, 0.6, 1e-4)));
}
