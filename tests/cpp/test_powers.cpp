#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "select/powers.hpp"
#include "select/random.hpp"

using namespace mpbuffer;

namespace {

// Bases of all sizes, and those that no polynomial takes.
std::vector<double> bases(std::size_t count) {
    Generator generator(8, 1, 1);
    std::vector<double> all;
    while (all.size() < count) {
        switch (generator.below(4)) {
            case 0: all.push_back(std::exp2(2090 * generator.uniform() - 1060)); break;
            case 1: all.push_back(std::exp2(40 * generator.uniform() - 20)); break;
            case 2: all.push_back(1 + (generator.uniform() - 0.5) * std::exp2(-50)); break;
            case 3: all.push_back(static_cast<double>(generator.below(1000)) / 8); break;
        }
    }
    all.insert(all.end(),
               {0.0, 5e-324, 1e-310, 0x1p-1022, 1.0, std::sqrt(0.5), 0x1p1023,
                std::numeric_limits<double>::max(), std::numeric_limits<double>::infinity()});
    return all;
}

}  // namespace

TEST_CASE("powers are within 1 ulp of the exact ones, for all bases and exponents") {
    const std::vector<double> all = bases(100'000);
    std::vector<float> results(all.size());
    for (const double exponent :
         {0.0, 1e-9, 0.1, 0.4, 0.6, 1.0, 2.0, 7.3, 300.0, -0.4, -1.0, -8.0}) {
        powers()(all.data(), all.size(), exponent, results.data());
        for (std::size_t i = 0; i < all.size(); ++i) {
            CAPTURE(all[i]);
            CAPTURE(exponent);
            const long double exact = std::pow(static_cast<long double>(all[i]), 1.0L * exponent);
            const auto rounded = static_cast<float>(exact);
            constexpr float infinity = std::numeric_limits<float>::infinity();
            REQUIRE(results[i] >= std::nextafter(rounded, 0.0F));
            REQUIRE(results[i] <= std::nextafter(rounded, infinity));
        }
    }
}

TEST_CASE("a float's first power is that float, and any power of 1 is 1") {
    const std::vector<double> all = bases(100'000);
    std::vector<double> floats;
    for (const double each : all) {
        const auto narrow = static_cast<float>(each);
        if (std::isnormal(narrow)) floats.push_back(double{narrow});
    }
    std::vector<float> results(floats.size());
    powers()(floats.data(), floats.size(), 1.0, results.data());
    for (std::size_t i = 0; i < floats.size(); ++i) REQUIRE(double{results[i]} == floats[i]);
    const double one = 1;
    for (const double exponent : {0.3, 5.0, -0.4}) {
        powers()(&one, 1, exponent, results.data());
        CHECK(results[0] == 1.0F);
    }
}

TEST_CASE("both twins give the same bits") {
    if (avx2_powers() == nullptr) {
        MESSAGE("skipped: this processor has one only");
        return;
    }
    const std::vector<double> all = bases(50'003);
    std::vector<float> one(all.size());
    std::vector<float> other(all.size());
    for (const double exponent : {0.0, 0.4, 0.6, 1.0, 3.5, -0.4, -1.0, -50.0}) {
        portable_powers()(all.data(), all.size(), exponent, one.data());
        avx2_powers()(all.data(), all.size(), exponent, other.data());
        CHECK(std::memcmp(one.data(), other.data(), one.size() * sizeof(float)) == 0);
    }
}
