// By tables: eight bytes at a time (Kounavis and Berry, "A systematic approach to building high
// performance software-based CRC generators", 2005). By carry-less multiplication: 64 bytes at a
// time are folded into the next 64 (Gopal et al., "Fast CRC computation for generic polynomials
// using PCLMULQDQ instruction", Intel, 2009), and the last 16 go through the tables.
#include "base/crc32.hpp"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mpbuffer {

namespace {

static_assert(std::endian::native == std::endian::little);

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr Tables make_tables() {
    Tables made{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0u);
        made[0][byte] = crc;
    }
    for (std::size_t t = 1; t < made.size(); ++t) {
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t before = made[t - 1][byte];
            made[t][byte] = before >> 8 ^ made[0][before & 0xff];
        }
    }
    return made;
}
constexpr Tables tables = make_tables();

// The register is the CRC with all bits inverted.
std::uint32_t step_by_tables(std::span<const std::byte> bytes, std::uint32_t state) {
    const std::byte* at = bytes.data();
    const std::byte* const end = at + bytes.size();
    for (; end - at >= 8; at += 8) {
        std::uint32_t low = 0;
        std::uint32_t high = 0;
        std::memcpy(&low, at, 4);
        std::memcpy(&high, at + 4, 4);
        low ^= state;
        state = tables[7][low & 0xff] ^ tables[6][low >> 8 & 0xff] ^ tables[5][low >> 16 & 0xff] ^
                tables[4][low >> 24] ^ tables[3][high & 0xff] ^ tables[2][high >> 8 & 0xff] ^
                tables[1][high >> 16 & 0xff] ^ tables[0][high >> 24];
    }
    for (; at != end; ++at) {
        state = state >> 8 ^ tables[0][(state ^ std::to_integer<std::uint32_t>(*at)) & 0xff];
    }
    return state;
}

#if defined(__x86_64__)

[[gnu::target("pclmul,sse2"),
  gnu::always_inline]] inline __m128i folded(__m128i value, __m128i constants, __m128i next) {
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(value, constants, 0x00),
                                       _mm_clmulepi64_si128(value, constants, 0x11)),
                         next);
}

[[gnu::target("pclmul,sse2")]] std::uint32_t step_by_folding(std::span<const std::byte> bytes,
                                                             std::uint32_t state) {
    constexpr std::size_t width = 64;
    const auto load = [](const std::byte* from) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    };
    // x^(512 + 32) and x^(512 - 32), x^(128 + 32) and x^(128 - 32), modulo the polynomial,
    // reflected.
    const __m128i by_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
    const __m128i by_16 = _mm_set_epi64x(0xccaa009e, 0x1751997d0);
    const std::byte* at = bytes.data();
    const std::byte* const end = at + bytes.size();
    __m128i a = _mm_xor_si128(load(at), _mm_cvtsi32_si128(static_cast<int>(state)));
    __m128i b = load(at + 16);
    __m128i c = load(at + 32);
    __m128i d = load(at + 48);
    for (at += width; end - at >= static_cast<std::ptrdiff_t>(width); at += width) {
        a = folded(a, by_64, load(at));
        b = folded(b, by_64, load(at + 16));
        c = folded(c, by_64, load(at + 32));
        d = folded(d, by_64, load(at + 48));
    }
    const __m128i last = folded(folded(folded(a, by_16, b), by_16, c), by_16, d);
    std::array<std::byte, 16> rest;
    std::memcpy(rest.data(), &last, sizeof last);
    return step_by_tables({at, end}, step_by_tables(rest, 0));
}

#endif

}  // namespace

std::uint32_t crc32_by_tables(std::span<const std::byte> bytes, std::uint32_t before) {
    return ~step_by_tables(bytes, ~before);
}

std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before) {
#if defined(__x86_64__)
    static const bool folds = __builtin_cpu_supports("pclmul") != 0;
    if (folds && bytes.size() >= 64) return ~step_by_folding(bytes, ~before);
#endif
    return crc32_by_tables(bytes, before);
}

}  // namespace mpbuffer
