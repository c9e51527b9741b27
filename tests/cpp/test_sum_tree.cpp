#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "select/sum_tree.hpp"

using namespace mpbuffer;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
const std::vector<std::uint64_t> capacities = {1,   2,   7,   15,  16,   17,   127,  128,  129,
                                               130, 255, 256, 257, 1000, 1024, 1025, 8193, 10007};

struct AlignedMemory {
    explicit AlignedMemory(std::size_t bytes)
        : memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64)) {
        if (memory == nullptr) throw std::bad_alloc();
    }
    AlignedMemory(const AlignedMemory&) = delete;
    AlignedMemory& operator=(const AlignedMemory&) = delete;
    ~AlignedMemory() { std::free(memory); }
    void* memory;
};

// A tree on memory of exactly the promised sizes, which a sanitizer guards.
struct HeapTree {
    AlignedMemory leaf_memory;
    AlignedMemory node_memory;
    float* leaves;
    std::uint64_t capacity;
    SumTree tree;

    explicit HeapTree(std::uint64_t rows)
        : leaf_memory(padded_leaves(rows) * sizeof(float)),
          node_memory(SumTree::bytes_required(rows)),
          leaves(static_cast<float*>(leaf_memory.memory)),
          capacity(rows) {
        std::fill_n(leaves, padded_leaves(rows), 0.0F);
        tree = SumTree(leaves, rows, static_cast<std::byte*>(node_memory.memory));
        tree.rebuild();
    }
};

void require_agreement(const HeapTree& heap) {
    double total = 0;
    float least = infinity;
    for (std::uint64_t slot = 0; slot < heap.capacity; ++slot) {
        total += double{heap.leaves[slot]};
        if (heap.leaves[slot] > 0) least = std::min(least, heap.leaves[slot]);
    }
    REQUIRE(heap.tree.total() == doctest::Approx(total).epsilon(1e-13));
    REQUIRE((heap.tree.total() > 0) == (total > 0));
    REQUIRE(heap.tree.least() == least);
}

// Six decades; a quarter of the leaves is 0.
float random_leaf(std::mt19937_64& random) {
    if (random() % 4 == 0) return 0.0F;
    const double exponent = std::uniform_real_distribution<double>(-3, 3)(random);
    return static_cast<float>(std::pow(10.0, exponent));
}

std::uint64_t ceil_log8(std::uint64_t value) {
    std::uint64_t levels = 0;
    for (std::uint64_t reach = 1; reach < value; reach *= 8) ++levels;
    return levels;
}

// Each drawn slot must hold its mass in the running sum of the leaves, but for the rounding of the
// sums that the way down compares.
void require_exact_draws(HeapTree& heap, std::vector<double> masses) {
    std::vector<long double> before(heap.capacity + 1, 0.0L);
    for (std::uint64_t slot = 0; slot < heap.capacity; ++slot) {
        before[slot + 1] = before[slot] + static_cast<long double>(heap.leaves[slot]);
    }
    const long double rounding = before.back() * 1e-14L;
    std::vector<std::uint64_t> slots(masses.size());
    std::vector<double> scratch = masses;
    heap.tree.find_prefix_sums(scratch.data(), slots.data(), slots.size());
    for (std::size_t i = 0; i < masses.size(); ++i) {
        CAPTURE(heap.capacity);
        CAPTURE(masses[i]);
        CAPTURE(slots[i]);
        REQUIRE(slots[i] < heap.capacity);
        REQUIRE(heap.leaves[slots[i]] > 0);
        const auto mass = static_cast<long double>(masses[i]);
        if (mass < before.back()) {
            REQUIRE(mass >= before[slots[i]] - rounding);
            REQUIRE(mass < before[slots[i] + 1] + rounding);
        }
    }
}

}  // namespace

TEST_CASE("an empty tree") {
    for (const std::uint64_t capacity : capacities) {
        HeapTree heap(capacity);
        CHECK(heap.tree.total() == 0);
        CHECK(heap.tree.least() == infinity);
        double mass = 0;
        std::uint64_t slot = 77;
        heap.tree.find_prefix_sums(&mass, &slot, 1);
        CHECK(slot < padded_leaves(capacity));
    }
}

TEST_CASE("a tree of any capacity agrees with a plain sum after a rebuild") {
    std::mt19937_64 random(3);
    for (const std::uint64_t capacity : capacities) {
        CAPTURE(capacity);
        HeapTree heap(capacity);
        for (int round = 0; round < 5; ++round) {
            for (std::uint64_t slot = 0; slot < capacity; ++slot) {
                heap.tree.store_leaf(slot, random_leaf(random));
            }
            heap.tree.rebuild();
            require_agreement(heap);
        }
    }
}

TEST_CASE("a single leaf anywhere is found, whatever its size") {
    for (const std::uint64_t capacity : capacities) {
        for (const std::uint64_t slot : {std::uint64_t{0}, capacity / 2, capacity - 1}) {
            for (const float leaf : {std::numeric_limits<float>::min(), 1.0F, 3e38F}) {
                HeapTree heap(capacity);
                heap.tree.store_leaf(slot, leaf);
                heap.tree.refresh_range(slot, slot + 1);
                require_agreement(heap);
                const double total = heap.tree.total();
                double masses[] = {0, total / 2, total, total * 2, 1e300};
                std::uint64_t slots[5];
                heap.tree.find_prefix_sums(masses, slots, 5);
                for (const std::uint64_t found : slots) REQUIRE(found == slot);
            }
        }
    }
}

TEST_CASE("refreshed ranges, also in two parts round the end") {
    std::mt19937_64 random(4);
    for (const std::uint64_t capacity : capacities) {
        CAPTURE(capacity);
        HeapTree heap(capacity);
        for (int round = 0; round < 60; ++round) {
            const std::uint64_t first = random() % capacity;
            const std::uint64_t count = random() % (capacity + 1);
            for (std::uint64_t i = 0; i < count; ++i) {
                heap.tree.store_leaf((first + i) % capacity, random_leaf(random));
            }
            if (first + count <= capacity) {
                heap.tree.refresh_range(first, first + count);
            } else {
                heap.tree.refresh_range(first, capacity);
                heap.tree.refresh_range(0, first + count - capacity);
            }
            require_agreement(heap);
        }
    }
}

TEST_CASE("refreshed slots, unsorted and with duplicates") {
    std::mt19937_64 random(5);
    for (const std::uint64_t capacity : capacities) {
        CAPTURE(capacity);
        HeapTree heap(capacity);
        std::vector<std::uint64_t> slots;
        for (int round = 0; round < 60; ++round) {
            slots.clear();
            const std::size_t count = random() % 40;
            for (std::size_t i = 0; i < count; ++i) {
                slots.push_back(i % 3 == 2 ? slots[random() % i] : random() % capacity);
                heap.tree.store_leaf(slots.back(), random_leaf(random));
            }
            if (round % 2 == 0) std::sort(slots.begin(), slots.end());
            heap.tree.refresh_slots(slots);
            require_agreement(heap);
        }
    }
}

TEST_CASE("sums do not drift: after many updates the tree equals a fresh one, bit for bit") {
    std::mt19937_64 random(6);
    HeapTree heap(1000);
    std::vector<std::uint64_t> slots;
    for (int round = 0; round < 3000; ++round) {
        slots.assign(8, 0);
        for (std::uint64_t& slot : slots) {
            slot = random() % 1000;
            heap.tree.store_leaf(slot, random_leaf(random));
        }
        heap.tree.refresh_slots(slots);
    }
    const double total = heap.tree.total();
    const float least = heap.tree.least();
    heap.tree.rebuild();
    CHECK(heap.tree.total() == total);
    CHECK(heap.tree.least() == least);
    for (std::uint64_t slot = 0; slot < 1000; ++slot) {
        heap.tree.store_leaf(slot, 0);
        slots.assign(1, slot);
        heap.tree.refresh_slots(slots);
    }
    CHECK(heap.tree.total() == 0);
    CHECK(heap.tree.least() == infinity);
}

TEST_CASE("a mass falls on the slot whose part of the running sum holds it") {
    std::mt19937_64 random(7);
    for (const std::uint64_t capacity : capacities) {
        HeapTree heap(capacity);
        for (int round = 0; round < 5; ++round) {
            for (std::uint64_t slot = 0; slot < capacity; ++slot) {
                heap.tree.store_leaf(slot, random_leaf(random));
            }
            heap.tree.store_leaf(random() % capacity, 0.5F);
            heap.tree.rebuild();
            const double total = heap.tree.total();
            std::vector<double> masses = {0, total, std::nextafter(total, 0), total * 1.5, 1e300};
            std::uniform_real_distribution<double> uniform(0, total);
            for (int i = 0; i < 300; ++i) masses.push_back(uniform(random));
            std::shuffle(masses.begin(), masses.end(), random);
            require_exact_draws(heap, masses);
        }
    }
}

TEST_CASE("with whole numbers as leaves every boundary is exact") {
    std::mt19937_64 random(8);
    for (const std::uint64_t capacity : capacities) {
        HeapTree heap(capacity);
        std::vector<std::uint64_t> owner_of_unit;
        for (std::uint64_t slot = 0; slot < capacity; ++slot) {
            const std::uint64_t leaf = slot + 1 == capacity ? 1 : random() % 4;
            heap.tree.store_leaf(slot, static_cast<float>(leaf));
            owner_of_unit.insert(owner_of_unit.end(), leaf, slot);
        }
        heap.tree.rebuild();
        REQUIRE(heap.tree.total() == static_cast<double>(owner_of_unit.size()));
        std::vector<double> masses;
        std::vector<std::uint64_t> expected;
        for (std::size_t unit = 0; unit < owner_of_unit.size(); ++unit) {
            for (const double part : {0.0, 0.5}) {
                masses.push_back(static_cast<double>(unit) + part);
                expected.push_back(owner_of_unit[unit]);
            }
        }
        std::vector<std::uint64_t> slots(masses.size());
        heap.tree.find_prefix_sums(masses.data(), slots.data(), slots.size());
        REQUIRE(slots == expected);
    }
}

TEST_CASE("a leaf of 0 is never drawn, however few others there are") {
    std::mt19937_64 random(9);
    for (int round = 0; round < 300; ++round) {
        const std::uint64_t capacity = 1 + random() % 3000;
        HeapTree heap(capacity);
        std::vector<std::uint64_t> slots;
        const std::size_t rows = 1 + random() % 3;
        for (std::size_t i = 0; i < rows; ++i) {
            slots.push_back(random() % capacity);
            const double exponent = std::uniform_real_distribution<double>(-37, 37)(random);
            heap.tree.store_leaf(slots.back(), static_cast<float>(std::pow(10.0, exponent)));
        }
        heap.tree.refresh_slots(slots);
        const double total = heap.tree.total();
        std::vector<double> masses = {0, total, std::nextafter(total, infinity), 3 * total, 1e308};
        for (int i = 0; i < 50; ++i) {
            masses.push_back(std::uniform_real_distribution<double>(0, total)(random));
        }
        std::vector<std::uint64_t> found(masses.size());
        heap.tree.find_prefix_sums(masses.data(), found.data(), found.size());
        for (const std::uint64_t slot : found) {
            REQUIRE(slot < capacity);
            REQUIRE(heap.leaves[slot] > 0);
        }
    }
}

TEST_CASE("draws follow the leaves over six decades") {
    std::mt19937_64 random(10);
    HeapTree heap(129);
    for (std::uint64_t slot = 0; slot < 129; ++slot) {
        heap.tree.store_leaf(slot, static_cast<float>(std::pow(10.0, double(slot % 7) - 3)));
    }
    heap.tree.rebuild();
    constexpr int draws = 200'000;
    std::vector<double> masses(draws);
    for (double& mass : masses) {
        mass = std::uniform_real_distribution<double>(0, heap.tree.total())(random);
    }
    std::vector<std::uint64_t> slots(draws);
    heap.tree.find_prefix_sums(masses.data(), slots.data(), draws);
    std::vector<double> hits(129, 0);
    for (const std::uint64_t slot : slots) ++hits[slot];
    for (std::uint64_t slot = 0; slot < 129; ++slot) {
        const double expected = draws * double{heap.leaves[slot]} / heap.tree.total();
        CAPTURE(slot);
        CHECK(std::abs(hits[slot] - expected) <= 6 * std::sqrt(expected) + 3);
    }
}

TEST_CASE("one draw looks at no more than ceil(log8(capacity)) + 1 lines") {
    for (const std::uint64_t capacity : {1, 8, 16, 17, 64, 128, 129, 1000, 10007, 1 << 20}) {
        CAPTURE(capacity);
        HeapTree heap(capacity);
        heap.tree.store_leaf(capacity - 1, 1.0F);
        heap.tree.rebuild();
        std::vector<double> masses(10, 0.5);
        std::vector<std::uint64_t> slots(10);
        heap.tree.find_prefix_sums(masses.data(), slots.data(), 10);
        CHECK(heap.tree.nodes_visited() >= 10);
        CHECK(heap.tree.nodes_visited() <= 10 * (ceil_log8(capacity) + 1));
        heap.tree.find_prefix_sums(masses.data(), slots.data(), 10);
        CHECK(heap.tree.nodes_visited() <= 20 * (ceil_log8(capacity) + 1));
    }
}

TEST_CASE("the promised sizes") {
    for (const std::uint64_t capacity : capacities) {
        CHECK(padded_leaves(capacity) >= capacity);
        CHECK(padded_leaves(capacity) < capacity + 16);
        CHECK(padded_leaves(capacity) % 16 == 0);
        CHECK(SumTree::bytes_required(capacity) % 64 == 0);
        CHECK(SumTree::bytes_required(capacity) <= 1024 + 2 * capacity);
    }
}
