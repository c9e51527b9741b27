#include "select/kernels.hpp"

#include <algorithm>
#include <array>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define MPBUFFER_AVX2 __attribute__((target("avx2,popcnt")))
#endif

namespace mpbuffer {

namespace {

constexpr std::size_t fanout = 8;
constexpr std::size_t group = 16;

template <class Value>
std::uint64_t last_above_zero(const Value* parts, std::size_t count) {
    do {
        --count;
    } while (count > 0 && !(parts[count] > 0));
    return count;
}

// Running sums in place, pairs first, then fours, then eights: short chains of additions.
void running_sums(double* parts) {
    for (std::size_t i = 0; i < fanout; i += 2) parts[i + 1] += parts[i];
    for (std::size_t i = 0; i < fanout; i += 4) {
        parts[i + 2] += parts[i + 1];
        parts[i + 3] += parts[i + 1];
    }
    for (std::size_t i = 4; i < fanout; ++i) parts[i] += parts[3];
}

template <std::size_t count>
std::uint64_t parts_passed(const std::array<double, count + 1>& before, double mass) {
    std::uint64_t passed = 0;
    for (std::size_t i = 1; i <= count; ++i) passed += mass >= before[i] ? 1 : 0;
    return passed;
}

void portable_children(const double* sums, double* masses, std::uint64_t* slots, std::size_t count,
                       const std::byte* below) {
    for (std::size_t i = 0; i < count; ++i) {
        const double* parts = sums + slots[i] * fanout;
        std::array<double, fanout + 1> before{};
        for (std::size_t k = 0; k < fanout; ++k) before[k + 1] = parts[k];
        running_sums(before.data() + 1);
        std::uint64_t chosen = parts_passed<fanout>(before, masses[i]);
        if (chosen == fanout) [[unlikely]]
            chosen = last_above_zero(parts, fanout);
        masses[i] -= before[chosen];
        slots[i] = slots[i] * fanout + chosen;
        __builtin_prefetch(below + slots[i] * 64);
    }
}

void portable_leaves(const float* leaves, double* masses, std::uint64_t* slots, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const float* parts = leaves + slots[i] * group;
        std::array<double, group + 1> before{};
        for (std::size_t k = 0; k < group; ++k) before[k + 1] = double{parts[k]};
        running_sums(before.data() + 1);
        running_sums(before.data() + 1 + fanout);
        for (std::size_t k = fanout + 1; k <= group; ++k) before[k] += before[fanout];
        std::uint64_t chosen = parts_passed<group>(before, masses[i]);
        if (chosen == group) [[unlikely]]
            chosen = last_above_zero(parts, group);
        masses[i] -= before[chosen];
        slots[i] = slots[i] * group + chosen;
    }
}

void portable_group(const float* leaves, double& sum, float& least) {
    double sums[4] = {};
    float minima[4];
    std::fill_n(minima, 4, std::numeric_limits<float>::infinity());
    for (std::size_t i = 0; i < group; i += 4) {
        for (std::size_t lane = 0; lane < 4; ++lane) {
            const float value = leaves[i + lane];
            // Whatever somebody wrote over a leaf: the running sums never fall.
            sums[lane] += value > 0 ? double{value} : 0.0;
            const float candidate = value > 0 ? value : std::numeric_limits<float>::infinity();
            minima[lane] = candidate < minima[lane] ? candidate : minima[lane];
        }
    }
    sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    least = std::min(std::min(minima[0], minima[1]), std::min(minima[2], minima[3]));
}

constexpr TreeKernels portable{portable_children, portable_leaves, portable_group};

#ifdef MPBUFFER_AVX2

// Running sums of eight, in two registers, in the order of running_sums().
struct Eight {
    __m256d low;
    __m256d high;
};

MPBUFFER_AVX2 inline __m256d running_sums_of_four(__m256d parts) {
    parts = _mm256_add_pd(parts, _mm256_unpacklo_pd(_mm256_setzero_pd(), parts));
    const __m256d low_pair_above = _mm256_permute2f128_pd(parts, parts, 0x08);
    return _mm256_add_pd(parts, _mm256_permute_pd(low_pair_above, 0xf));
}

MPBUFFER_AVX2 inline Eight running_sums_of_eight(__m256d low, __m256d high) {
    low = running_sums_of_four(low);
    high = running_sums_of_four(high);
    return {low, _mm256_add_pd(high, _mm256_permute4x64_pd(low, 0xff))};
}

MPBUFFER_AVX2 inline unsigned parts_passed(Eight sums, __m256d mass) {
    const int low = _mm256_movemask_pd(_mm256_cmp_pd(mass, sums.low, _CMP_GE_OQ));
    const int high = _mm256_movemask_pd(_mm256_cmp_pd(mass, sums.high, _CMP_GE_OQ));
    return static_cast<unsigned>(_mm_popcnt_u32(static_cast<unsigned>(low | high << 4)));
}

MPBUFFER_AVX2 void avx2_children(const double* sums, double* masses, std::uint64_t* slots,
                                 std::size_t count, const std::byte* below) {
    for (std::size_t i = 0; i < count; ++i) {
        const double* parts = sums + slots[i] * fanout;
        const Eight all = running_sums_of_eight(_mm256_loadu_pd(parts), _mm256_loadu_pd(parts + 4));
        std::array<double, fanout + 1> before;
        before[0] = 0;
        _mm256_storeu_pd(before.data() + 1, all.low);
        _mm256_storeu_pd(before.data() + 5, all.high);
        std::uint64_t chosen = parts_passed(all, _mm256_set1_pd(masses[i]));
        if (chosen == fanout) [[unlikely]]
            chosen = last_above_zero(parts, fanout);
        masses[i] -= before[chosen];
        slots[i] = slots[i] * fanout + chosen;
        __builtin_prefetch(below + slots[i] * 64);
    }
}

MPBUFFER_AVX2 void avx2_leaves(const float* leaves, double* masses, std::uint64_t* slots,
                               std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const float* parts = leaves + slots[i] * group;
        const Eight first = running_sums_of_eight(_mm256_cvtps_pd(_mm_loadu_ps(parts)),
                                                  _mm256_cvtps_pd(_mm_loadu_ps(parts + 4)));
        Eight second = running_sums_of_eight(_mm256_cvtps_pd(_mm_loadu_ps(parts + 8)),
                                             _mm256_cvtps_pd(_mm_loadu_ps(parts + 12)));
        const __m256d total = _mm256_permute4x64_pd(first.high, 0xff);
        second = {_mm256_add_pd(second.low, total), _mm256_add_pd(second.high, total)};
        std::array<double, group + 1> before;
        before[0] = 0;
        _mm256_storeu_pd(before.data() + 1, first.low);
        _mm256_storeu_pd(before.data() + 5, first.high);
        _mm256_storeu_pd(before.data() + 9, second.low);
        _mm256_storeu_pd(before.data() + 13, second.high);
        const __m256d mass = _mm256_set1_pd(masses[i]);
        std::uint64_t chosen = parts_passed(first, mass) + parts_passed(second, mass);
        if (chosen == group) [[unlikely]]
            chosen = last_above_zero(parts, group);
        masses[i] -= before[chosen];
        slots[i] = slots[i] * group + chosen;
    }
}

MPBUFFER_AVX2 void avx2_group(const float* leaves, double& sum, float& least) {
    const __m128 infinity = _mm_set1_ps(std::numeric_limits<float>::infinity());
    __m256d sums = _mm256_setzero_pd();
    __m128 minima = infinity;
    for (std::size_t i = 0; i < group; i += 4) {
        const __m128 values = _mm_loadu_ps(leaves + i);
        const __m128 above_zero = _mm_cmpgt_ps(values, _mm_setzero_ps());
        sums = _mm256_add_pd(sums, _mm256_cvtps_pd(_mm_and_ps(values, above_zero)));
        minima = _mm_min_ps(_mm_blendv_ps(infinity, values, above_zero), minima);
    }
    std::array<double, 4> four;
    _mm256_storeu_pd(four.data(), sums);
    sum = (four[0] + four[1]) + (four[2] + four[3]);
    minima = _mm_min_ps(minima, _mm_movehl_ps(minima, minima));
    minima = _mm_min_ss(minima, _mm_shuffle_ps(minima, minima, 1));
    least = _mm_cvtss_f32(minima);
}

constexpr TreeKernels avx2{avx2_children, avx2_leaves, avx2_group};

#endif

}  // namespace

const TreeKernels& portable_kernels() { return portable; }

const TreeKernels* avx2_kernels() {
#ifdef MPBUFFER_AVX2
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt")) return &avx2;
#endif
    return nullptr;
}

namespace {

// Chosen when the library is loaded: a fork in the middle of a first call would leave a child
// waiting.
const TreeKernels& chosen = avx2_kernels() != nullptr ? *avx2_kernels() : portable;

}  // namespace

const TreeKernels& tree_kernels() { return chosen; }

}  // namespace mpbuffer
