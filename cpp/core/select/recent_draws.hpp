// Which row was sampled last in a slot, of the last batches: what the copy of an index means, which
// has lost the generation that came with it. In private memory; for one thread at a time.
//
// Exact for at least the last `batches_kept` batches of the largest size so far. A batch costs a
// copy of its slots and seqs; only who asks for copies of indexes pays for an index of them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace mpbuffer {

class RecentDraws {
  public:
    static constexpr std::size_t batches_kept = 8;

    // Makes room for batches of `count`: after it remember() of so many throws nothing.
    void reserve(std::size_t count) {
        if (batches_kept * count <= room_) return;
        room_ = batches_kept * count;
        newer_.reserve(room_);
        older_.reserve(room_);
    }

    void remember(std::span<const std::uint64_t> slots, std::span<const std::uint64_t> seqs) {
        if (newer_.draws.size() + slots.size() > room_) {
            std::swap(newer_, older_);
            newer_.clear();
        }
        for (std::size_t i = 0; i < slots.size(); ++i) newer_.draws.push_back({slots[i], seqs[i]});
    }

    // The seq; 0 if the slot was not sampled lately.
    std::uint64_t seq_in(std::uint64_t slot) {
        const std::uint64_t seq = newer_.seq_in(slot);
        return seq != 0 ? seq : older_.seq_in(slot);
    }

  private:
    struct Draw {
        std::uint64_t slot = 0;
        std::uint64_t seq = 0;  // 0: a free place of the index
    };

    // Draws in their order, and an index of the first `indexed` of them, which is half empty.
    struct Log {
        std::vector<Draw> draws;
        std::vector<Draw> index;
        std::size_t indexed = 0;

        void reserve(std::size_t count) {
            draws.reserve(count);
            index.assign(std::bit_ceil(2 * count), Draw{});
            indexed = 0;
        }
        void clear() {
            draws.clear();
            if (indexed != 0) index.assign(index.size(), Draw{});
            indexed = 0;
        }
        std::uint64_t seq_in(std::uint64_t slot) {
            if (draws.empty()) return 0;
            for (; indexed < draws.size(); ++indexed)
                place_of(draws[indexed].slot) = draws[indexed];
            return place_of(slot).seq;
        }
        Draw& place_of(std::uint64_t slot) {
            std::size_t place = (slot * 0x9e3779b97f4a7c15u) >> 32 & (index.size() - 1);
            while (index[place].seq != 0 && index[place].slot != slot) {
                place = (place + 1) & (index.size() - 1);
            }
            return index[place];
        }
    };

    std::size_t room_ = 0;
    Log newer_;
    Log older_;
};

}  // namespace mpbuffer
