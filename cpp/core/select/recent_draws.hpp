// Which row was sampled last in a slot, of the last batches: what the copy of an index means, which
// has lost the generation that came with it. In private memory; for one thread at a time.
//
// Exact for at least the last `batches_kept` batches of the largest size so far. Two tables: the
// newer one takes draws until it is full, then it becomes the older one, and the older is emptied.
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

    // Makes room for batches of `count`: remember() of so many throws nothing.
    void reserve(std::size_t count) {
        const std::size_t entries = std::bit_ceil(2 * batches_kept * count);
        if (entries <= newer_.size()) return;
        std::vector<Entry> newer(entries);
        std::vector<Entry> older(entries);
        for (const Entry& each : older_) put(older, each);
        for (const Entry& each : newer_) put(newer, each);
        newer_ = std::move(newer);
        older_ = std::move(older);
    }

    void remember(std::span<const std::uint64_t> slots, std::span<const std::uint64_t> seqs) {
        if (used_ + slots.size() > newer_.size() / 2) {
            std::swap(newer_, older_);
            newer_.assign(newer_.size(), Entry{});
            used_ = 0;
        }
        for (std::size_t i = 0; i < slots.size(); ++i) put(newer_, {slots[i], seqs[i]});
        used_ += slots.size();
    }

    // The seq; 0 if the slot was not sampled lately.
    std::uint64_t seq_in(std::uint64_t slot) const {
        if (newer_.empty()) return 0;
        const std::uint64_t seq = newer_[place_of(newer_, slot)].seq;
        return seq != 0 ? seq : older_[place_of(older_, slot)].seq;
    }

  private:
    struct Entry {
        std::uint64_t slot = 0;
        std::uint64_t seq = 0;  // 0: free
    };

    // Where the slot's entry is, or would be. At most half of a table is used, so this ends.
    static std::size_t place_of(const std::vector<Entry>& table, std::uint64_t slot) {
        std::size_t place = (slot * 0x9e3779b97f4a7c15u) >> (64 - std::countr_zero(table.size()));
        while (table[place].seq != 0 && table[place].slot != slot) {
            place = (place + 1) & (table.size() - 1);
        }
        return place;
    }
    static void put(std::vector<Entry>& table, const Entry& entry) {
        if (entry.seq != 0) table[place_of(table, entry.slot)] = entry;
    }

    std::vector<Entry> newer_;
    std::vector<Entry> older_;
    std::size_t used_ = 0;
};

}  // namespace mpbuffer
