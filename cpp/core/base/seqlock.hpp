// A value in shared memory that one writer at a time replaces, and that anyone reads whole: a
// sequence word, odd while the value is being written, and the value's words.
//
// A writer may die or be stopped at any instruction: then the sequence stays odd, readers give up
// after a bounded time, and the next writer's value is whole again. Readers write nothing, so a
// read-only mapping will do. Zeroed memory is a value of zeros that was never stored.
//
// Orderings. Each word is stored by a release behind the odd sequence, and loaded by an acquire
// ahead of the second look [Q1]: who sees a word of a new value sees that the sequence has moved.
// The even sequence is stored by a release, and the first look is an acquire [Q2]: who sees it sees
// every word of its value, or later ones.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <thread>
#include <type_traits>

#include "base/guard.hpp"
#include "base/stop_points.hpp"

namespace mpbuffer {

template <class T>
class alignas(64) SeqLock {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % sizeof(std::uint64_t) == 0);
    using Words = std::array<std::uint64_t, sizeof(T) / sizeof(std::uint64_t)>;

  public:
    // One caller at a time, in all processes.
    void store(const T& value) {
        const Words words = std::bit_cast<Words>(value);
        // Made odd first, whatever a writer that died has left.
        const std::uint64_t odd = sequence_.load(std::memory_order_relaxed) | 1;
        sequence_.store(odd, std::memory_order_relaxed);
        stop_point(StopPoint::line_odd);
        for (std::size_t i = 0; i < words.size(); ++i) {
            words_[i].store(words[i], std::memory_order_release);  // Q1
        }
        sequence_.store(odd + 1, std::memory_order_release);  // Q2
    }

    // Looks until the value rests, but no more than so many times: nothing if it never did.
    std::optional<T> load(int looks = looks_at_once) const {
        for (int look = 0; look < looks; ++look) {
            const std::uint64_t sequence = sequence_.load(std::memory_order_acquire);  // Q2
            const T value = load_torn();
            if (sequence % 2 == 0 && sequence_.load(std::memory_order_relaxed) == sequence) {
                return value;
            }
        }
        return std::nullopt;
    }

    // The same for some 20 ms: nothing if the writer died or was stopped in the middle. Within a
    // CoreCall.
    std::optional<T> load_patiently() const {
        for (int pause = 0; pause < 20; ++pause) {
            if (const auto value = load()) return value;
            let_others_run();
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        return load();
    }

    // Whatever is there: perhaps some words of one value, and some of the next.
    T load_torn() const {
        Words words;
        for (std::size_t i = 0; i < words.size(); ++i) {
            words[i] = words_[i].load(std::memory_order_acquire);  // Q1
        }
        return std::bit_cast<T>(words);
    }

    bool ever_stored() const { return sequence_.load(std::memory_order_relaxed) != 0; }

  private:
    static constexpr int looks_at_once = 64;

    std::atomic<std::uint64_t> sequence_;
    std::array<std::atomic<std::uint64_t>, sizeof(T) / sizeof(std::uint64_t)> words_;
};

}  // namespace mpbuffer
