#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include "select/random.hpp"

using namespace mpbuffer;

namespace {

// Chi-square of `draws` of below(bound) against a uniform distribution, as standard deviations
// beyond its mean: bound - 1 degrees of freedom, variance 2 (bound - 1).
double chi_square_deviation(Generator& generator, std::uint64_t bound, std::uint64_t draws) {
    std::vector<std::uint64_t> hits(bound, 0);
    for (std::uint64_t i = 0; i < draws; ++i) ++hits.at(generator.below(bound));
    const double expected = static_cast<double>(draws) / static_cast<double>(bound);
    double chi_square = 0;
    for (const std::uint64_t hit : hits) {
        const double difference = static_cast<double>(hit) - expected;
        chi_square += difference * difference / expected;
    }
    const auto freedom = static_cast<double>(bound - 1);
    return (chi_square - freedom) / std::sqrt(2 * freedom);
}

}  // namespace

TEST_CASE("one seed, one stream; any difference, another") {
    Generator first(7, 3, 2);
    Generator again(7, 3, 2);
    for (int i = 0; i < 1000; ++i) REQUIRE(first.next() == again.next());

    std::set<std::uint64_t> starts;
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
        for (std::uint64_t process = 0; process < 10; ++process) {
            for (std::uint64_t epoch = 0; epoch < 10; ++epoch) {
                starts.insert(Generator(seed, process, epoch).next());
            }
        }
    }
    CHECK(starts.size() == 1000);
}

TEST_CASE("the stream is the published algorithm's") {
    // xoshiro256++ whose state splitmix64 filled, as an independent program computed it.
    Generator generator(0, 0, 0);
    CHECK(generator.next() == 0x3ed1653f0682083a);
    CHECK(generator.next() == 0x852cecd8e7418ff7);
}

TEST_CASE("uniform draws lie in [0, 1) and fill it evenly") {
    Generator generator(1, 1, 1);
    double sum = 0;
    double least = 1;
    double largest = 0;
    constexpr int draws = 200'000;
    for (int i = 0; i < draws; ++i) {
        const double draw = generator.uniform();
        REQUIRE(draw >= 0);
        REQUIRE(draw < 1);
        sum += draw;
        least = std::min(least, draw);
        largest = std::max(largest, draw);
    }
    CHECK(std::abs(sum / draws - 0.5) < 5 * std::sqrt(1.0 / 12 / draws));
    CHECK(least < 1e-3);
    CHECK(largest > 1 - 1e-3);
}

TEST_CASE("below(bound) is uniform") {
    Generator generator(2, 1, 1);
    for (const std::uint64_t bound : {2, 3, 5, 16, 100, 1000}) {
        CAPTURE(bound);
        CHECK(std::abs(chi_square_deviation(generator, bound, 200'000)) < 5);
    }
    for (int i = 0; i < 100; ++i) CHECK(generator.below(1) == 0);
}

TEST_CASE("below(bound) has no bias where bound is a large part of 2^64") {
    // Without the rejection step four products fall on three values: here the multiples of 3 would
    // come twice as often as the others.
    Generator generator(3, 1, 1);
    const std::uint64_t bound = 3 * (std::uint64_t{1} << 62);
    constexpr int draws = 100'000;
    int thirds[3] = {};
    int multiples = 0;
    for (int i = 0; i < draws; ++i) {
        const std::uint64_t draw = generator.below(bound);
        REQUIRE(draw < bound);
        ++thirds[draw >> 62];
        multiples += draw % 3 == 0 ? 1 : 0;
    }
    for (const int third : thirds) {
        CHECK(std::abs(third - draws / 3.0) < 5 * std::sqrt(draws * 2 / 9.0));
    }
    CHECK(std::abs(multiples - draws / 3.0) < 5 * std::sqrt(draws * 2 / 9.0));
}

TEST_CASE("stratified masses: one in each stratum, ascending, never beyond the total") {
    Generator generator(4, 1, 1);
    for (const std::size_t count : {1, 2, 7, 64, 513}) {
        for (const double total : {1.0, 3e-38, 12345.678, 1e30}) {
            for (int round = 0; round < 20; ++round) {
                double previous = 0;
                for (std::size_t i = 0; i < count; ++i) {
                    const double mass = stratified_mass(generator, i, count, total);
                    const double width = total / static_cast<double>(count);
                    REQUIRE(mass >= previous);
                    REQUIRE(mass <= total);
                    REQUIRE(mass >= width * static_cast<double>(i) * (1 - 1e-12));
                    REQUIRE(mass <= width * static_cast<double>(i + 1) * (1 + 1e-12));
                    previous = mass;
                }
            }
        }
    }
}
