// The per-slot atomic word: who wrote the slot's row last, and whether that write is finished.
//
//   63                16 15       6 5      1 0
//   +-------------------+----------+--------+-------+
//   | seq               | owner    | epoch  | fresh |
//   +-------------------+----------+--------+-------+
//
// seq    the position of the claim; the slot is seq % capacity; 0 where nothing was ever claimed.
// owner  0: the row is committed. Otherwise the number of the process that is writing it.
// epoch  the low bits of the owner's epoch: tells a process from its number's next holder.
// fresh  only in a claim: the slot held no counted row, so the commit raises the filled count. A
//        process that takes over an abandoned claim inherits it, and so the count stays right.
//
// A shorter epoch can only make an abandoned claim look owned by a living process, which delays its
// recovery until that process ends; it can never make a living owner look dead.
#pragma once

#include <cstdint>

namespace mpbuffer::slot_word {

using Word = std::uint64_t;

constexpr unsigned seq_bits = 48;
constexpr unsigned owner_bits = 10;
constexpr unsigned epoch_bits = 5;
static_assert(seq_bits + owner_bits + epoch_bits + 1 == 64);

constexpr std::uint64_t max_seq = (std::uint64_t{1} << seq_bits) - 1;

constexpr Word committed(std::uint64_t seq) { return seq << 16; }

constexpr Word claimed(std::uint64_t seq, unsigned owner, std::uint64_t epoch, bool fresh) {
    return (seq << 16) | (Word{owner} << 6) | ((epoch & 0x1f) << 1) | Word{fresh};
}

constexpr std::uint64_t seq(Word word) { return word >> 16; }
constexpr unsigned owner(Word word) { return static_cast<unsigned>(word >> 6) & 0x3ff; }
constexpr std::uint64_t epoch(Word word) { return (word >> 1) & 0x1f; }
constexpr bool fresh(Word word) { return (word & 1) != 0; }
constexpr bool is_committed(Word word) { return owner(word) == 0; }

static_assert(seq(claimed(max_seq, 1022, 31, true)) == max_seq);
static_assert(owner(claimed(7, 1022, 0, true)) == 1022 && epoch(claimed(7, 3, 37, false)) == 5);
static_assert(is_committed(committed(9)) && !is_committed(claimed(9, 1, 0, false)));

}  // namespace mpbuffer::slot_word
