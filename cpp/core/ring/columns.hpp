// One field of several records, from memory that others may be writing to.
#pragma once

#include <cstddef>
#include <span>

#include "base/shared_copy.hpp"

namespace mpbuffer {

// Of a size that the compiler knows.
template <std::size_t bytes>
void copy_column(std::span<const std::byte* const> records, std::size_t offset, std::byte* values,
                 std::size_t step) {
    for (const std::byte* const record : records) {
        load_from_record(values, record + offset, bytes);
        values += step;
    }
}

// Copies what the records have at `offset` to `values`, `values + step`, ...
inline void copy_column(std::span<const std::byte* const> records, std::size_t offset,
                        std::size_t bytes, std::byte* values, std::size_t step) {
    switch (bytes) {
        case 1: return copy_column<1>(records, offset, values, step);
        case 4: return copy_column<4>(records, offset, values, step);
        case 8: return copy_column<8>(records, offset, values, step);
        case 16: return copy_column<16>(records, offset, values, step);
        default:
            for (const std::byte* const record : records) {
                load_from_record(values, record + offset, bytes);
                values += step;
            }
    }
}

}  // namespace mpbuffer
