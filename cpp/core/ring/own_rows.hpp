// Which positions one handle has claimed lately for its own adds: what tells the learner a new row
// of its own handle from one of another's. In private memory.
//
// note() is called by one thread at a time, all else by one other at a time; neither waits. What is
// noted is true for ever: a position is claimed once. Positions that follow one another are one
// stretch. There is room for `most` stretches; while it is full, what comes is not noted.
//
// Ordering: a stretch is written before `end_` (release), which `has` loads (acquire); a place is
// looked at before `begin_` passes it (release), which `note` loads (acquire) before it uses the
// place again. The newest stretch is never passed: it may grow, and its rows may not be committed
// yet.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace mpbuffer {

class OwnRows {
  public:
    static constexpr std::uint64_t most = 1024;

    // The positions [first, first + count); all later than those noted before.
    // Not inline: most adds have nobody to tell.
    [[gnu::noinline]] void note(std::uint64_t first, std::uint64_t count) noexcept {
        const std::uint64_t end = end_.load(std::memory_order_relaxed);
        if (end != 0 && at(end - 1).last.load(std::memory_order_relaxed) == first) {
            at(end - 1).last.store(first + count, std::memory_order_relaxed);
            return;
        }
        if (end - begin_.load(std::memory_order_acquire) == most) return;
        at(end).first.store(first, std::memory_order_relaxed);
        at(end).last.store(first + count, std::memory_order_relaxed);
        end_.store(end + 1, std::memory_order_release);
    }

    // Whether the position was noted; sure to be true if that call came before this one.
    bool has(std::uint64_t position) const noexcept {
        std::uint64_t low = begin_.load(std::memory_order_relaxed);
        std::uint64_t high = end_.load(std::memory_order_acquire);
        const std::uint64_t begin = low;
        while (low < high) {  // finds the first stretch that begins beyond the position
            const std::uint64_t middle = low + (high - low) / 2;
            if (at(middle).first.load(std::memory_order_relaxed) <= position) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low != begin && position < at(low - 1).last.load(std::memory_order_relaxed);
    }

    // Makes room: nobody will ask for positions before this one.
    void forget_before(std::uint64_t position) noexcept {
        const std::uint64_t end = end_.load(std::memory_order_acquire);
        const std::uint64_t before = begin_.load(std::memory_order_relaxed);
        std::uint64_t begin = before;
        while (begin + 1 < end && at(begin).last.load(std::memory_order_relaxed) <= position) {
            ++begin;
        }
        if (begin != before) begin_.store(begin, std::memory_order_release);
    }

  private:
    struct Stretch {
        std::atomic<std::uint64_t> first{0};
        std::atomic<std::uint64_t> last{0};  // one beyond
    };

    Stretch& at(std::uint64_t i) { return stretches_[i % most]; }
    const Stretch& at(std::uint64_t i) const { return stretches_[i % most]; }

    std::array<Stretch, most> stretches_;
    std::atomic<std::uint64_t> begin_{0};
    std::atomic<std::uint64_t> end_{0};
};

}  // namespace mpbuffer
