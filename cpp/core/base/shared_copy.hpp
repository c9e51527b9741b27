// Copies between a row record, which other processes may be writing or reading, and private memory;
// and the fences of the word that guards it.
//
// ThreadSanitizer does not model fences: in its builds a stronger access of the guarding word
// stands in for each, and the record's side of a copy is accessed by relaxed atomics.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/tsan.hpp"

namespace mpbuffer {

// Keeps the stores that follow behind the read-modify-write of the guarding word before it, which
// is acq_rel or stronger. Partner: unchanged().
inline void keep_stores_behind_guard() {
#if !MPBUFFER_TSAN
    std::atomic_thread_fence(std::memory_order_release);
#endif
}

// Keeps later looks behind what was read before it. ThreadSanitizer knows no fences: in its builds
// what was read has to be an acquire itself, or a torn look must decide nothing but another look.
inline void acquire_fence() {
#if !MPBUFFER_TSAN
    std::atomic_thread_fence(std::memory_order_acquire);
#endif
}

// The second look at a guarding word whose first look, an acquire load, saw `seen`: whether what
// was read in between is what that look promised. Partner: keep_stores_behind_guard().
inline bool unchanged(std::atomic<std::uint64_t>& guard, std::uint64_t seen) {
#if MPBUFFER_TSAN
    return guard.fetch_add(0, std::memory_order_acq_rel) == seen;
#else
    std::atomic_thread_fence(std::memory_order_acquire);
    return guard.load(std::memory_order_relaxed) == seen;
#endif
}

#if MPBUFFER_TSAN

inline void store_to_record(std::byte* record, const std::byte* from, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i) {
        std::atomic_ref<std::byte>(record[i]).store(from[i], std::memory_order_relaxed);
    }
}

inline void load_from_record(std::byte* to, const std::byte* record, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i) {
        to[i] = std::atomic_ref<std::byte>(const_cast<std::byte&>(record[i]))
                    .load(std::memory_order_relaxed);
    }
}

inline bool equals_record(const std::byte* value, const std::byte* record, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i) {
        if (value[i] != std::atomic_ref<std::byte>(const_cast<std::byte&>(record[i]))
                            .load(std::memory_order_relaxed)) {
            return false;
        }
    }
    return true;
}

#else

// Fields of 1 to 16 bytes are most of a small row: a fixed-size copy is one or two moves.
inline void copy_field(std::byte* to, const std::byte* from, std::size_t bytes) {
    switch (bytes) {
        case 1: std::memcpy(to, from, 1); return;
        case 4: std::memcpy(to, from, 4); return;
        case 8: std::memcpy(to, from, 8); return;
        case 16: std::memcpy(to, from, 16); return;
        default: std::memcpy(to, from, bytes);
    }
}

inline void store_to_record(std::byte* record, const std::byte* from, std::size_t bytes) {
    copy_field(record, from, bytes);
}

inline void load_from_record(std::byte* to, const std::byte* record, std::size_t bytes) {
    copy_field(to, record, bytes);
}

inline bool equals_record(const std::byte* value, const std::byte* record, std::size_t bytes) {
    return std::memcmp(value, record, bytes) == 0;
}

#endif

// Where one field's values lie in private memory: row i of it at `values + i * step`, in the record
// at `offset`. A step of 0 repeats one value.
struct FieldSource {
    const std::byte* values;
    std::size_t step;
    std::size_t offset;
    std::size_t bytes;
};

// Where one field's values go: row i to `values + i * bytes`, from `offset` in the record. Of
// sequences with the time on the first axis, step k of row i is the (k * across + i)th value.
struct FieldTarget {
    std::byte* values;
    std::size_t offset;
    std::size_t bytes;
    std::size_t across = 0;  // how many rows there are; 0: the time is on the second axis
};

}  // namespace mpbuffer
