#include "ring/planes.hpp"

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace mpbuffer {

namespace {

template <std::size_t value>
using Constant = std::integral_constant<std::size_t, value>;

// Constants, so that the compiler makes vectors of it.
template <class Size, class Count>
void interleave_all(std::byte* __restrict value, std::span<const std::byte* const> planes,
                    std::size_t elements, Size size, Count count) {
    std::array<const std::byte*, count> from;
    for (std::size_t k = 0; k < count; ++k) from[k] = planes[k];
    for (std::size_t i = 0; i < elements; ++i) {
        for (std::size_t k = 0; k < count; ++k) {
            std::memcpy(value + (i * count + k) * size, from[k] + i * size, size);
        }
    }
}

template <class Size, class Count>
void separate_all(std::byte* __restrict planes, const std::byte* __restrict value,
                  std::size_t elements, Size size, Count count) {
    for (std::size_t i = 0; i < elements; ++i) {
        for (std::size_t k = 0; k < count; ++k) {
            std::memcpy(planes + (k * elements + i) * size, value + (i * count + k) * size, size);
        }
    }
}

// Calls `call` with constants for sizes and counts that are usual; false for others.
template <class Call>
bool with_constants(std::size_t size, std::size_t count, Call&& call) {
    const auto with_count = [&](auto constant_size) {
        switch (count) {
            case 2: call(constant_size, Constant<2>()); return true;
            case 3: call(constant_size, Constant<3>()); return true;
            case 4: call(constant_size, Constant<4>()); return true;
            case 8: call(constant_size, Constant<8>()); return true;
            default: return false;
        }
    };
    switch (size) {
        case 1: return with_count(Constant<1>());
        case 2: return with_count(Constant<2>());
        case 4: return with_count(Constant<4>());
        case 8: return with_count(Constant<8>());
        default: return false;
    }
}

}  // namespace

void interleave(std::byte* value, std::span<const std::byte* const> planes, std::size_t elements,
                std::size_t element_bytes) {
    const std::size_t count = planes.size();
    if (with_constants(element_bytes, count, [&](auto size, auto constant_count) {
            interleave_all(value, planes, elements, size, constant_count);
        })) {
        return;
    }
    for (std::size_t k = 0; k < count; ++k) {
        for (std::size_t i = 0; i < elements; ++i) {
            std::memcpy(value + (i * count + k) * element_bytes, planes[k] + i * element_bytes,
                        element_bytes);
        }
    }
}

void separate(std::byte* planes, const std::byte* value, std::size_t count, std::size_t elements,
              std::size_t element_bytes) {
    if (with_constants(element_bytes, count, [&](auto size, auto constant_count) {
            separate_all(planes, value, elements, size, constant_count);
        })) {
        return;
    }
    for (std::size_t k = 0; k < count; ++k) {
        for (std::size_t i = 0; i < elements; ++i) {
            std::memcpy(planes + (k * elements + i) * element_bytes,
                        value + (i * count + k) * element_bytes, element_bytes);
        }
    }
}

}  // namespace mpbuffer
