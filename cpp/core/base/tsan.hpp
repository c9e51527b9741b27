// Whether ThreadSanitizer watches this build, and the two fences of a guarded record, which it does
// not model: in its builds a stronger access of the guarding word stands in for each.
//
// MPBUFFER_TSAN is 0 or 1; a file that asks for it without including this one does not compile
// (-Werror=undef).
#pragma once

#include <atomic>
#include <cstdint>

#if defined(__SANITIZE_THREAD__)
#define MPBUFFER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MPBUFFER_TSAN 1
#endif
#endif
#ifndef MPBUFFER_TSAN
#define MPBUFFER_TSAN 0
#endif

namespace mpbuffer {

// Keeps the stores that follow behind the read-modify-write of the guarding word before it, which
// is acq_rel or stronger. Partner: unchanged().
inline void keep_stores_behind_guard() {
#if !MPBUFFER_TSAN
    std::atomic_thread_fence(std::memory_order_release);
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

}  // namespace mpbuffer
