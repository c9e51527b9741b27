// A slot ring in private memory with named writers, and rows that tell whether they are whole.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "base/shared_copy.hpp"
#include "ring/slot_ring.hpp"
#include "sanitizer_slowdown.hpp"

struct HeapRing {
    struct FreeDeleter {
        void operator()(void* memory) const { std::free(memory); }
    };

    std::unique_ptr<mpbuffer::RingCounters> counters = std::make_unique<mpbuffer::RingCounters>();
    std::unique_ptr<std::byte, FreeDeleter> memory;
    mpbuffer::SlotRing ring;

    explicit HeapRing(std::uint64_t capacity, std::size_t row_bytes = 64) {
        const mpbuffer::RecordLayout layout = mpbuffer::record_layout(row_bytes);
        const std::size_t rows = (capacity * layout.stride + 63) / 64 * 64;
        const std::size_t heads = layout.heads_inside ? 0 : (capacity * 16 + 63) / 64 * 64;
        memory.reset(static_cast<std::byte*>(std::aligned_alloc(64, rows + heads)));
        if (!memory) throw std::bad_alloc();
        std::memset(memory.get(), 0, rows + heads);
        std::byte* const first =
            memory.get() + (layout.heads_inside ? sizeof(mpbuffer::SlotHead) : 0);
        std::byte* const head = memory.get() + (layout.heads_inside ? 0 : rows);
        ring = mpbuffer::SlotRing(counters.get(), head, first, capacity, layout);
        ring.initialise();
    }

    std::uint64_t filled() const { return mpbuffer::filled_word::count(counters->filled.load()); }
    std::uint64_t recount_requests() const { return counters->recount_requests.load(); }
    std::uint64_t seq_in(std::uint64_t slot) const {
        return mpbuffer::slot_word::seq(ring.word(slot).load());
    }
    bool committed(std::uint64_t slot) const {
        return mpbuffer::slot_word::is_committed(ring.word(slot).load());
    }
    // As by a scan of the words: slots that hold a row of seq >= clear_before.
    std::uint64_t complete_rows() const {
        std::uint64_t rows = 0;
        for (std::uint64_t slot = 0; slot < ring.capacity(); ++slot) {
            rows += committed(slot) && seq_in(slot) >= ring.clear_before() ? 1 : 0;
        }
        return rows;
    }
};

struct HeapWriter {
    unsigned number;
    std::uint64_t epoch;
    std::atomic<std::uint64_t> rows{0};
    std::atomic<std::uint64_t> skips{0};
    std::atomic<std::uint64_t> steals{0};
    std::atomic<std::uint64_t> busy{0};

    explicit HeapWriter(unsigned number_, std::uint64_t epoch_ = 1)
        : number(number_), epoch(epoch_) {}
    mpbuffer::RingWriter writer() { return {number, epoch, &rows, &skips, &steals, &busy}; }
};

inline bool nobody_is_dead(unsigned, std::uint64_t) { return false; }
// The position that add() takes next, for one row.
inline std::uint64_t take_position(HeapRing& heap, std::uint64_t cleared) {
    for (;;) {
        const auto [first, end] = heap.ring.take_positions(1, cleared);
        if (first != end) return first;
    }
}
inline std::uint64_t take_position(HeapRing& heap) {
    return take_position(heap, heap.ring.clear_before());
}

inline bool everybody_is_dead(unsigned, std::uint64_t) { return true; }

// A row of `words` 64-bit words: its number, words mixed from it, and the sum of them all.
class CheckedRow {
  public:
    explicit CheckedRow(std::size_t words) : words_(words) {}

    std::byte* bytes() { return reinterpret_cast<std::byte*>(words_.data()); }
    std::size_t byte_count() const { return words_.size() * 8; }
    std::uint64_t id() const { return words_[0]; }

    void write(std::uint64_t id, std::byte* record) {
        std::uint64_t sum = 0;
        std::uint64_t mixed = id;
        for (std::size_t i = 0; i + 1 < words_.size(); ++i) {
            words_[i] = mixed;
            sum += mixed;
            mixed = mixed * 0x9e3779b97f4a7c15u + 1;
            mixed ^= mixed >> 29;
        }
        words_.back() = ~sum;
        mpbuffer::store_to_record(record, bytes(), byte_count());
    }
    void read(const std::byte* record) {
        mpbuffer::load_from_record(bytes(), record, byte_count());
    }
    bool whole() const {
        std::uint64_t sum = 0;
        for (std::size_t i = 0; i + 1 < words_.size(); ++i) sum += words_[i];
        return words_.back() == ~sum;
    }

  private:
    std::vector<std::uint64_t> words_;
};

// Adds one row that holds `id`, with leaf 1.
inline mpbuffer::AddOutcome add_row(HeapRing& heap, HeapWriter& writer, std::uint64_t id,
                                    float leaf = 1.0F) {
    return heap.ring.add(
        1, writer.writer(), nobody_is_dead, [id, leaf](std::uint64_t, std::byte* record) {
            mpbuffer::store_to_record(record, reinterpret_cast<const std::byte*>(&id), sizeof id);
            return leaf;
        });
}

// What add_row() stored; 0 if the slot holds no row.
inline std::uint64_t row_in(const HeapRing& heap, std::uint64_t slot) {
    std::uint64_t id = 0;
    const std::uint64_t seq =
        heap.ring.read_any(slot, heap.ring.clear_before(), [&id](const std::byte* record) {
            mpbuffer::load_from_record(reinterpret_cast<std::byte*>(&id), record, sizeof id);
        });
    return seq == 0 ? 0 : id;
}
