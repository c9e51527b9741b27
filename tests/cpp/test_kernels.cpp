#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <random>
#include <vector>

#include "select/kernels.hpp"

using namespace mpbuffer;

namespace {

constexpr std::size_t nodes = 64;
constexpr std::size_t draws = 4096;

struct Outcome {
    std::vector<std::uint64_t> slots;
    std::vector<double> masses;
    bool operator==(const Outcome&) const = default;
};

Outcome children(const TreeKernels& kernels, const std::vector<double>& sums, Outcome start) {
    const std::vector<std::byte> below(nodes * 8 * 64);
    kernels.children(sums.data(), start.masses.data(), start.slots.data(), start.slots.size(),
                     below.data());
    return start;
}

Outcome leaves(const TreeKernels& kernels, const std::vector<float>& values, Outcome start) {
    kernels.leaves(values.data(), start.masses.data(), start.slots.data(), start.slots.size());
    return start;
}

// Parts of very different sizes, many of them 0; some nodes are 0 as a whole.
template <class Value>
std::vector<Value> random_parts(std::mt19937_64& random, std::size_t width) {
    std::uniform_real_distribution<double> exponent(-30, 30);
    std::vector<Value> parts(nodes * width);
    for (std::size_t node = 0; node < nodes; ++node) {
        const unsigned kind = random() % 4;
        for (std::size_t i = 0; i < width; ++i) {
            const bool zero =
                node % 16 == 5 || (kind == 1 && random() % 2 == 0) || (kind == 2 && i + 2 > width);
            const double value = kind == 3 ? 1.0 : std::exp2(exponent(random));
            parts[node * width + i] = zero ? Value{0} : static_cast<Value>(value);
        }
    }
    return parts;
}

template <class Value>
Outcome random_start(std::mt19937_64& random, const std::vector<Value>& parts, std::size_t width) {
    std::uniform_real_distribution<double> share(0, 1);
    Outcome start;
    for (std::size_t i = 0; i < draws; ++i) {
        const std::uint64_t node = random() % nodes;
        double total = 0;
        double edge = 0;
        const std::size_t stop = random() % (width + 1);
        for (std::size_t k = 0; k < width; ++k) {
            total += double{parts[node * width + k]};
            if (k < stop) edge = total;
        }
        const std::array<double, 5> masses{share(random) * total, edge, total,
                                           std::nextafter(edge, 0.0), std::nextafter(total, 1e300)};
        start.slots.push_back(node);
        start.masses.push_back(masses[random() % masses.size()]);
    }
    return start;
}

}  // namespace

TEST_CASE("the part of a running sum that holds a mass, against a plain loop") {
    const TreeKernels& kernels = portable_kernels();
    const std::vector<double> sums{1, 0, 2, 0, 0, 4, 8, 0};
    const std::array<std::pair<double, std::pair<unsigned, double>>, 9> cases{{{0, {0, 0}},
                                                                               {0.5, {0, 0.5}},
                                                                               {1, {2, 0}},
                                                                               {2.5, {2, 1.5}},
                                                                               {3, {5, 0}},
                                                                               {7, {6, 0}},
                                                                               {14.5, {6, 7.5}},
                                                                               {15, {6, 8}},
                                                                               {99, {6, 92}}}};
    for (const auto& [mass, expected] : cases) {
        CAPTURE(mass);
        const Outcome found = children(kernels, sums, {{0}, {mass}});
        CHECK(found.slots[0] == expected.first);
        CHECK(found.masses[0] == expected.second);
    }
}

TEST_CASE("both twins find the same parts, to the last bit") {
    const TreeKernels* wide = avx2_kernels();
    CHECK(&tree_kernels() == (wide != nullptr ? wide : &portable_kernels()));
    if (wide == nullptr) {
        MESSAGE("skipped: this processor has no AVX2");
        return;
    }
    std::mt19937_64 random(7);
    for (int round = 0; round < 20; ++round) {
        const auto sums = random_parts<double>(random, 8);
        const Outcome start = random_start(random, sums, 8);
        CHECK(children(*wide, sums, start) == children(portable_kernels(), sums, start));
        const auto values = random_parts<float>(random, 16);
        const Outcome start_of_leaves = random_start(random, values, 16);
        CHECK(leaves(*wide, values, start_of_leaves) ==
              leaves(portable_kernels(), values, start_of_leaves));
    }
}

TEST_CASE("both twins sum a group the same, whatever is in it") {
    if (avx2_kernels() == nullptr) return;
    std::mt19937_64 random(5);
    const std::array<float, 6> odd{0.0f, -1.0f, NAN, INFINITY, -INFINITY, 1e-45f};
    for (int round = 0; round < 200; ++round) {
        auto values = random_parts<float>(random, 16);
        for (std::size_t i = 0; i < values.size(); ++i) {
            if (round > 100 && random() % 8 == 0) values[i] = odd[random() % odd.size()];
        }
        for (std::size_t node = 0; node < nodes; ++node) {
            double sums[2] = {-1, -2};
            float least[2] = {-1, -2};
            portable_kernels().group(&values[node * 16], sums[0], least[0]);
            avx2_kernels()->group(&values[node * 16], sums[1], least[1]);
            CHECK(sums[0] == sums[1]);
            CHECK(least[0] == least[1]);
            CHECK(sums[0] >= 0);
            CHECK(least[0] > 0);
        }
    }
}

TEST_CASE("a part of 0 is never chosen where another is above 0") {
    std::mt19937_64 random(11);
    for (const TreeKernels* twin : {&portable_kernels(), avx2_kernels()}) {
        if (twin == nullptr) continue;
        const auto sums = random_parts<double>(random, 8);
        const Outcome start = random_start(random, sums, 8);
        const Outcome found = children(*twin, sums, start);
        for (std::size_t i = 0; i < draws; ++i) {
            double total = 0;
            for (std::size_t k = 0; k < 8; ++k) total += sums[start.slots[i] * 8 + k];
            if (total > 0) CHECK(sums[found.slots[i]] > 0);
        }
    }
}
