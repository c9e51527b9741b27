// The laps of seqs, seq / capacity, without a division for those near a position: by one
// comparison, since few rows are older than a lap.
#pragma once

#include <cstdint>

namespace mpbuffer {

class Laps {
  public:
    explicit Laps(std::uint64_t capacity) : capacity_(capacity) {}

    void move_to(std::uint64_t position) {
        if (position - start_ < capacity_) return;
        lap_ = position / capacity_;
        start_ = lap_ * capacity_;
    }
    std::uint32_t of(std::uint64_t seq) const {
        if (seq - start_ < capacity_) return static_cast<std::uint32_t>(lap_);
        if (start_ - seq <= capacity_) return static_cast<std::uint32_t>(lap_ - 1);
        return static_cast<std::uint32_t>(seq / capacity_);
    }
    bool is_in(std::uint64_t slot, std::uint64_t seq) const {
        return this->seq(slot, of(seq)) == seq;
    }
    // The seq in a slot that has this lap, modulo 2^32: the one nearest to the position.
    std::uint64_t seq(std::uint64_t slot, std::uint32_t lap) const {
        const auto laps = static_cast<std::int32_t>(lap - static_cast<std::uint32_t>(lap_));
        return start_ + slot + static_cast<std::uint64_t>(std::int64_t{laps}) * capacity_;
    }

  private:
    std::uint64_t capacity_;
    std::uint64_t lap_ = 0;    // of the position
    std::uint64_t start_ = 0;  // where that lap begins
};

}  // namespace mpbuffer
