#include "select/powers.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define MPBUFFER_AVX2 __attribute__((target("avx2")))
#endif

namespace mpbuffer {

namespace {

// log2((1 + s) / (1 - s)) = s * (c0 + c1 s^2 + ...), ck = 2 / (ln 2 (2k + 1)); |s| <= 0.1716.
constexpr double log_terms[] = {0x1.71547652b82fep+1, 0x1.ec709dc3a03fdp-1, 0x1.2776c50ef9bfep-1,
                                0x1.a61762a7aded9p-2, 0x1.484b13d7c02a9p-2, 0x1.0c9a84994022dp-2,
                                0x1.c68f568d31760p-3, 0x1.89f3b1694cffep-3, 0x1.5b9ac9b743f0dp-3};
// 2^f = sum of ln(2)^k / k! f^k; |f| <= 0.5.
constexpr double exp_terms[] = {0x1.0000000000000p+0,  0x1.62e42fefa39efp-1,  0x1.ebfbdff82c58fp-3,
                                0x1.c6b08d704a0c0p-5,  0x1.3b2ab6fba4e77p-7,  0x1.5d87fe78a6731p-10,
                                0x1.430912f86c787p-13, 0x1.ffcbfc588b0c7p-17, 0x1.62c0223a5c824p-20,
                                0x1.b5253d395e7c4p-24, 0x1.e4cf5158b8ecap-28};

constexpr std::uint64_t sqrt_half = 0x3fe6a09e667f3bcdu;  // the bits of it
constexpr std::uint64_t exponent_bias = 1023;
constexpr double shifter =
    0x1.8p52;                     // added, it leaves a number's nearest integer in the last bits
constexpr double farthest = 200;  // beyond this exponent of 2 float32 has 0 and infinity
constexpr double least_base = std::numeric_limits<double>::min();
constexpr double largest_base = std::numeric_limits<double>::max();

template <std::size_t count>
constexpr double polynomial(const double (&terms)[count], double x) {
    double sum = terms[count - 1];
    for (std::size_t k = count - 1; k-- > 0;) sum = sum * x + terms[k];
    return sum;
}

float power(double base, double exponent) {
    const auto bits = std::bit_cast<std::uint64_t>(base);
    // The base is mantissa * 2^scale, the mantissa between sqrt(1/2) and sqrt(2).
    const std::uint64_t biased = (bits - sqrt_half + (exponent_bias << 52)) >> 52;
    const auto mantissa = std::bit_cast<double>(bits - ((biased - exponent_bias) << 52));
    const double scale = static_cast<double>(biased) - static_cast<double>(exponent_bias);
    const double s = (mantissa - 1) / (mantissa + 1);
    const double logarithm = scale + s * polynomial(log_terms, s * s);
    const double y = std::min(std::max(exponent * logarithm, -farthest), farthest);
    const double shifted = y + shifter;
    const double fraction = y - (shifted - shifter);
    const std::uint64_t twos = std::bit_cast<std::uint64_t>(shifted) << 52;
    const double result = polynomial(exp_terms, fraction);
    return static_cast<float>(std::bit_cast<double>(std::bit_cast<std::uint64_t>(result) + twos));
}

// What power() does not take. Not a loop's usual business, so kept out of it.
[[gnu::noinline]] float power_by_library(double base, double exponent) {
    return static_cast<float>(std::pow(base, exponent));
}

bool is_taken(double base) { return base >= least_base && base <= largest_base; }

void portable(const double* bases, std::size_t count, double exponent, float* results) {
    for (std::size_t i = 0; i < count; ++i) {
        results[i] =
            is_taken(bases[i]) ? power(bases[i], exponent) : power_by_library(bases[i], exponent);
    }
}

#ifdef MPBUFFER_AVX2

template <std::size_t count>
MPBUFFER_AVX2 inline __m256d polynomial(const double (&terms)[count], __m256d x) {
    __m256d sum = _mm256_set1_pd(terms[count - 1]);
    for (std::size_t k = count - 1; k-- > 0;) {
        sum = _mm256_add_pd(_mm256_mul_pd(sum, x), _mm256_set1_pd(terms[k]));
    }
    return sum;
}

MPBUFFER_AVX2 inline __m256i all(std::uint64_t bits) {
    return _mm256_set1_epi64x(static_cast<long long>(bits));
}

MPBUFFER_AVX2 inline __m128 four_powers(__m256d base, __m256d exponent) {
    const __m256i bits = _mm256_castpd_si256(base);
    const __m256i biased =
        _mm256_srli_epi64(_mm256_add_epi64(bits, all((exponent_bias << 52) - sqrt_half)), 52);
    const __m256d mantissa = _mm256_castsi256_pd(_mm256_sub_epi64(
        bits, _mm256_slli_epi64(_mm256_sub_epi64(biased, all(exponent_bias)), 52)));
    // A small integer, or'ed into the last bits of 2^52, is that number plus 2^52.
    const __m256d wide =
        _mm256_castsi256_pd(_mm256_or_si256(biased, _mm256_castpd_si256(_mm256_set1_pd(0x1p52))));
    const __m256d scale = _mm256_sub_pd(_mm256_sub_pd(wide, _mm256_set1_pd(0x1p52)),
                                        _mm256_set1_pd(static_cast<double>(exponent_bias)));
    const __m256d one = _mm256_set1_pd(1);
    const __m256d s = _mm256_div_pd(_mm256_sub_pd(mantissa, one), _mm256_add_pd(mantissa, one));
    const __m256d logarithm =
        _mm256_add_pd(scale, _mm256_mul_pd(s, polynomial(log_terms, _mm256_mul_pd(s, s))));
    const __m256d y =
        _mm256_min_pd(_mm256_max_pd(_mm256_mul_pd(exponent, logarithm), _mm256_set1_pd(-farthest)),
                      _mm256_set1_pd(farthest));
    const __m256d shifted = _mm256_add_pd(y, _mm256_set1_pd(shifter));
    const __m256d fraction = _mm256_sub_pd(y, _mm256_sub_pd(shifted, _mm256_set1_pd(shifter)));
    const __m256i twos = _mm256_slli_epi64(_mm256_castpd_si256(shifted), 52);
    const __m256d result = polynomial(exp_terms, fraction);
    return _mm256_cvtpd_ps(
        _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(result), twos)));
}

MPBUFFER_AVX2 void avx2(const double* bases, std::size_t count, double exponent, float* results) {
    const __m256d exponents = _mm256_set1_pd(exponent);
    std::size_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const __m256d four = _mm256_loadu_pd(bases + i);
        _mm_storeu_ps(results + i, four_powers(four, exponents));
        const __m256d taken =
            _mm256_and_pd(_mm256_cmp_pd(four, _mm256_set1_pd(least_base), _CMP_GE_OQ),
                          _mm256_cmp_pd(four, _mm256_set1_pd(largest_base), _CMP_LE_OQ));
        if (_mm256_movemask_pd(taken) != 15) [[unlikely]]
            portable(bases + i, 4, exponent, results + i);
    }
    portable(bases + i, count - i, exponent, results + i);
}

#endif

}  // namespace

Powers portable_powers() { return portable; }

Powers avx2_powers() {
#ifdef MPBUFFER_AVX2
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) return avx2;
#endif
    return nullptr;
}

namespace {

const Powers chosen = avx2_powers() != nullptr ? avx2_powers() : portable;

}  // namespace

Powers powers() { return chosen; }

}  // namespace mpbuffer
