#include <doctest/doctest.h>

#include <cstring>
#include <string_view>
#include <vector>

#include "base/crc32.hpp"

using namespace mpbuffer;

namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
    return std::as_bytes(std::span(text));
}

// One bit at a time, as the polynomial is defined.
std::uint32_t slowly(std::span<const std::byte> bytes, std::uint32_t before) {
    std::uint32_t state = ~before;
    for (const std::byte byte : bytes) {
        state ^= std::to_integer<std::uint32_t>(byte);
        for (int bit = 0; bit < 8; ++bit) state = state >> 1 ^ (state & 1 ? 0xedb88320u : 0u);
    }
    return ~state;
}

}  // namespace

TEST_CASE("the CRC-32 of known texts is the known one") {
    CHECK(crc32(bytes_of("")) == 0);
    CHECK(crc32(bytes_of("123456789")) == 0xcbf43926u);
    CHECK(crc32(bytes_of("The quick brown fox jumps over the lazy dog")) == 0x414fa339u);
}

TEST_CASE("every length at every address has the CRC-32 of its definition") {
    std::vector<std::byte> bytes(700);
    std::uint32_t random = 1;
    for (std::byte& byte : bytes)
        byte = static_cast<std::byte>((random = random * 1664525 + 1) >> 24);
    for (std::size_t first = 0; first < 17; ++first) {
        for (std::size_t count = 0; count < 300; ++count) {
            const std::span<const std::byte> some(bytes.data() + first, count);
            const std::uint32_t expected = slowly(some, 77);
            CHECK(crc32(some, 77) == expected);
            CHECK(crc32_by_tables(some, 77) == expected);
        }
    }
    const std::span<const std::byte> all(bytes);
    CHECK(crc32(all.subspan(333), crc32(all.first(333))) == crc32(all));
}
