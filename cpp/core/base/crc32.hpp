// CRC-32 as zlib, gzip and PNG have it: polynomial 0xedb88320, bits reflected.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace mpbuffer {

// Of these bytes, behind those whose CRC-32 is `before`. Some 10 GB/s where the processor
// multiplies without carries, else some 1 GB/s.
std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before = 0);

// The same without that instruction.
std::uint32_t crc32_by_tables(std::span<const std::byte> bytes, std::uint32_t before = 0);

}  // namespace mpbuffer
