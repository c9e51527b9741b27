// A ring of rows that many processes write and read: position, slot words, claim -> commit -> read.
//
// Works on borrowed memory (shared or not) and holds no state of its own; zero-filled memory plus
// `initialise` is an empty ring. It never blocks on a lock. What it promises:
//
// - A slot's seq never decreases, and each seq is claimed at most once.
// - At most one living process writes a slot: another process's claim is taken over only when
//   `is_dead(owner, epoch)` says that its owner is gone for good.
// - A read counts only if the word is committed, not older than the last clear, and the same before
//   and after the copy. So no reader ever returns a row that is partly one write, partly another.
// - A clear is one store, of `clear_before`. The first claim that finds the cursor behind it moves
//   it there and claims anew, so nothing is left to do for a clearer that dies or stops.
// - Every loop is bounded.
//
// Memory orderings. Writer: the claim's compare-exchange (acq_rel) and the release fence after it
// keep the record's stores behind the claim [W1]; the commit's release store keeps them before the
// commit [W2]. Reader: the acquire load of the word pairs with W2 [R1]; the acquire fence after the
// copy keeps the second look behind the copy and pairs with W1 [R2]. W1 has to
// be a locked instruction on x86, and is one: a fence alone does not order the non-temporal stores
// of a large memcpy. Clear: the cursor is moved by
// a release [C1] and loaded by an acquire [C2] ahead of `clear_before`, so that nobody looks for
// the positions that a clear passed over. Claim: taking a position acquires and releases [S1], so
// that whoever has a later one sees at least the source cursor that an earlier one saw
// (sources.hpp).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/shared_copy.hpp"
#include "base/stop_points.hpp"
#include "format/header.hpp"
#include "format/ring_records.hpp"
#include "format/slot_word.hpp"
#include "ring/own_rows.hpp"

namespace mpbuffer {

// Who writes: the number and epoch for the slot words, and its own counters, which nobody else
// writes. The caller lets only one thread at a time write under one identity.
struct RingWriter {
    unsigned number;
    std::uint64_t epoch;
    std::atomic<std::uint64_t>* rows;
    std::atomic<std::uint64_t>* skips;
    std::atomic<std::uint64_t>* steals;
    std::atomic<std::uint64_t>* busy;  // holds `epoch` during a call that claims, else 0
    OwnRows* own_rows = nullptr;       // told of each claim; null: nobody asks
};

struct AddOutcome {
    std::uint64_t first_slot = 0;
    std::uint64_t rows_added = 0;  // fewer than asked for only if other processes hold every slot
};

class SlotRing {
  public:
    static constexpr std::uint64_t rows_per_claim = 16;

    SlotRing() = default;
    // The rows lie `layout.stride` bytes apart from `rows` on, the heads accordingly from `heads`.
    SlotRing(RingCounters* counters, std::byte* heads, std::byte* rows, std::uint64_t capacity,
             const RecordLayout& layout)
        : counters_(counters),
          heads_(heads),
          rows_(rows),
          capacity_(capacity),
          stride_(layout.stride),
          head_stride_(layout.head_stride) {}
    SlotRing(std::byte* segment, const RingEntry& ring)
        : SlotRing(reinterpret_cast<RingCounters*>(segment + ring.counters_offset),
                   segment + ring.heads_offset, segment + ring.records_offset, ring.capacity,
                   record_layout(ring.row_bytes)) {}

    // Makes zero-filled memory an empty ring. Positions start at capacity, so that seq 0 means
    // "never written".
    void initialise() { initialise({capacity_, capacity_}); }
    // Or one that goes on at a position, whose rows a restore is to commit. Before anybody else
    // sees the ring.
    void initialise(const SeqBounds& bounds) {
        counters_->cursor.store(bounds.position, std::memory_order_relaxed);
        counters_->clear_before.store(bounds.cleared, std::memory_order_relaxed);
        counters_->max_priority.store(1.0, std::memory_order_relaxed);
    }

    std::uint64_t capacity() const { return capacity_; }
    RingCounters& counters() const { return *counters_; }
    // The row alone: its head is in front of it or elsewhere.
    std::byte* record(std::uint64_t slot) const { return rows_ + slot * stride_; }
    SlotHead& head(std::uint64_t slot) const {
        return *reinterpret_cast<SlotHead*>(heads_ + slot * head_stride_);
    }
    std::atomic<std::uint64_t>& word(std::uint64_t slot) const { return head(slot).word; }
    // Asks for the slot's head, and for the first lines of its row. Forced inline: the compiler
    // takes a function that only prefetches for one without effect, and drops its calls.
    [[gnu::always_inline]] void prefetch_head(std::uint64_t slot) const {
        __builtin_prefetch(&head(slot));
    }
    [[gnu::always_inline]] void prefetch(std::uint64_t slot, std::size_t row_bytes) const {
        prefetch_head(slot);
        const std::byte* row = record(slot);
        const std::size_t bytes = std::min<std::size_t>(row_bytes, 256);
        for (std::size_t at = 64 - reinterpret_cast<std::uintptr_t>(row) % 64; at < bytes;
             at += 64) {
            __builtin_prefetch(row + at);
        }
        if (head_stride_ != stride_) __builtin_prefetch(row);
    }

    std::uint64_t clear_before() const {
        return counters_->clear_before.load(std::memory_order_acquire);
    }
    SeqBounds bounds() const { return counters_->bounds(); }
    std::uint64_t position() const { return bounds().position; }

    // What to tell whoever finds no row at all.
    const char* why_empty() const {
        return position() == capacity_ ? "no rows have been added"
                                       : "no rows have been added since it was cleared";
    }

    // Writes n rows: `copy_row(i, record)` stores row i and returns its leaf. Rows of one call lie
    // one after another unless other processes' claims came between. Fewer than n where
    // 4 * capacity + n claims were not enough, for others hold the slots.
    template <class IsDead, class CopyRow>
    AddOutcome add(std::uint64_t n, const RingWriter& writer, IsDead&& is_dead,
                   CopyRow&& copy_row) {
        AddOutcome outcome;
        // Counts what was done, also when a question about an owner throws: then rows may have been
        // committed whose raise of `filled` was not reached.
        struct Tally {
            SlotRing& ring;
            const RingWriter& writer;
            const AddOutcome& outcome;
            std::uint64_t skips = 0;
            std::uint64_t counted = 0;
            bool finished = false;
            void count_rows() {
                add_to(*writer.rows, outcome.rows_added - counted);
                counted = outcome.rows_added;
            }
            ~Tally() {
                if (!finished) ring.request_recount();
                count_rows();
                if (skips != 0) add_to(*writer.skips, skips);
                // Release: the counts and raises before are done when the flag is seen down.
                writer.busy->store(0, std::memory_order_release);
            }
        } tally{*this, writer, outcome};
        std::uint64_t claims = 0;
        const std::uint64_t most_claims = 4 * capacity_ + n;
        // Seen set by whoever finds this process dead: then a raise of `filled` may be missing.
        writer.busy->store(writer.epoch, std::memory_order_relaxed);
        std::atomic_signal_fence(std::memory_order_seq_cst);
        stop_point(StopPoint::busy_raised);
        while (outcome.rows_added < n && claims < most_claims) {
            const std::uint64_t wanted = std::min(rows_per_claim, n - outcome.rows_added);
            // Acquire: pairs with the release of a recount, so that a commit below comes after it.
            const std::uint64_t filled = counters_->filled.load(std::memory_order_acquire);
            const std::uint64_t cleared = clear_before();
            const auto [first, end] = take_positions(wanted, cleared);
            if (writer.own_rows != nullptr) [[unlikely]]
                writer.own_rows->note(first, end - first);
            std::uint64_t raise = 0;
            std::uint64_t slot = first % capacity_;
            for (std::uint64_t seq = first; seq != end; ++seq) {
                bool fresh = false;
                if (claim(slot, seq, cleared, writer, is_dead, fresh)) {
                    const float leaf = copy_row(outcome.rows_added, record(slot));
                    commit(slot, seq, leaf);
                    stop_point(StopPoint::row_committed, seq);
                    raise += fresh;
                    if (outcome.rows_added++ == 0) outcome.first_slot = slot;
                } else {
                    ++tally.skips;
                }
                if (++slot == capacity_) slot = 0;
            }
            stop_point(StopPoint::filled_to_raise);
            if (raise != 0) raise_filled(filled, raise);
            stop_point(StopPoint::filled_raised);
            if (clear_before() != cleared) request_recount();
            tally.count_rows();
            claims += wanted;
        }
        tally.finished = true;
        return outcome;
    }

    // Copies the row of seq `want`: `copy(record)`. False if the slot no longer, or not yet, holds
    // it, or `copy` says that what it refers to is gone.
    template <class Copy>
    bool read(std::uint64_t slot, std::uint64_t want, Copy&& copy) const {
        const std::uint64_t expected = slot_word::committed(want);
        if (word(slot).load(std::memory_order_acquire) != expected) return false;  // R1
        if (!copied(copy, record(slot))) return false;
        stop_point(StopPoint::row_copied);
        return unchanged(word(slot), expected);  // R2
    }

    // As above for whatever row is there, if it is not older than `cleared`; returns its seq, or 0.
    template <class Copy>
    std::uint64_t read_any(std::uint64_t slot, std::uint64_t cleared, Copy&& copy) const {
        const std::uint64_t seen = word(slot).load(std::memory_order_acquire);  // R1
        if (!slot_word::is_committed(seen) || slot_word::seq(seen) < cleared) return 0;
        if (!copied(copy, record(slot))) return 0;
        stop_point(StopPoint::row_copied);
        return unchanged(word(slot), seen) ? slot_word::seq(seen) : 0;  // R2
    }

    // The leaf that came with the row of seq `want`. False as for `read`.
    bool read_leaf_in(std::uint64_t slot, std::uint64_t want, float& leaf) const {
        const std::uint64_t expected = slot_word::committed(want);
        if (word(slot).load(std::memory_order_acquire) != expected) return false;  // R1
        leaf = head(slot).leaf_in.load(std::memory_order_relaxed);
        stop_point(StopPoint::row_copied);
        return unchanged(word(slot), expected);  // R2
    }

    // Writes one frame of a source ring: `copy_frame(record)`. Returns its position; 0 if others
    // held all slots that were tried. Not for rings whose rows are counted.
    template <class IsDead, class CopyFrame>
    std::uint64_t put(const RingWriter& writer, IsDead&& is_dead, CopyFrame&& copy_frame) {
        for (std::uint64_t claims = 0; claims < 4 * capacity_; ++claims) {
            const std::uint64_t seq = take_positions(1, capacity_).first;
            const std::uint64_t slot = seq % capacity_;
            bool fresh = false;
            if (!claim(slot, seq, capacity_, writer, is_dead, fresh)) {
                add_to(*writer.skips, 1);
                continue;
            }
            copy_frame(record(slot));
            commit(slot, seq, 0);
            stop_point(StopPoint::source_committed);
            add_to(*writer.rows, 1);
            return seq;
        }
        return 0;
    }

    // Raises clear_before from `cleared`, so that rows before `position` are gone, and counts
    // `rows` of them as early. False if it has been raised since.
    bool retire(std::uint64_t cleared, std::uint64_t position, std::uint64_t rows) const {
        stop_point(StopPoint::rows_to_retire);
        if (!counters_->clear_before.compare_exchange_strong(
                cleared, position, std::memory_order_acq_rel, std::memory_order_relaxed)) {
            return false;
        }
        counters_->early.fetch_add(rows, std::memory_order_relaxed);
        stop_point(StopPoint::rows_retired);
        request_recount();
        return true;
    }

    // Empties the ring: what was claimed before is gone, the next row goes to slot 0. `filled` is
    // left as it was: whoever asks for it sees that clear_before has moved, and recounts.
    void clear() {
        // Ahead of the clear: reset behind it, a clearer that was stopped in between would undo the
        // priorities of rows that were added since.
        counters_->max_priority.store(1.0, std::memory_order_relaxed);
        stop_point(StopPoint::clear_priority_reset);
        const std::uint64_t next = (position() + capacity_ - 1) / capacity_ * capacity_;
        stop_point(StopPoint::clear_position_seen);
        raise_to(counters_->clear_before, next);
        stop_point(StopPoint::clear_before_raised);
    }

    double max_priority() const { return counters_->max_priority.load(std::memory_order_relaxed); }

    void raise_max_priority(double priority) { raise_to(counters_->max_priority, priority); }

    // `filled` may be wrong: it has to be recounted.
    void request_recount() const {
        counters_->recount_requests.fetch_add(1, std::memory_order_acq_rel);
    }

    struct Positions {
        std::uint64_t first;
        std::uint64_t end;
    };

    // Takes the next `wanted` positions and returns those that are not before `cleared`: fewer, or
    // none, at the first claim after a clear, which moves the cursor there.
    Positions take_positions(std::uint64_t wanted, std::uint64_t cleared) {
        const std::uint64_t first =
            counters_->cursor.fetch_add(wanted, std::memory_order_acq_rel);  // S1
        stop_point(StopPoint::position_taken);
        if (first >= cleared) [[likely]]
            return {first, first + wanted};
        stop_point(StopPoint::cursor_behind_clear);
        raise_to(counters_->cursor, cleared);  // C1
        return {std::min(cleared, first + wanted), first + wanted};
    }

    // Makes the claim of `slot` for `seq`; false if the seq must be given up: a later claim was
    // faster, or an owner who is not proved dead is still writing the slot.
    template <class IsDead>
    bool claim(std::uint64_t slot, std::uint64_t seq, std::uint64_t cleared,
               const RingWriter& writer, IsDead&& is_dead, bool& fresh) {
        std::atomic<std::uint64_t>& word = this->word(slot);
        std::uint64_t seen = word.load(std::memory_order_acquire);
        for (int attempt = 0; attempt < 8; ++attempt) {
            if (slot_word::seq(seen) >= seq) return false;
            fresh = slot_word::seq(seen) < cleared;
            const bool steal = !slot_word::is_committed(seen);
            if (steal) {
                const unsigned owner = slot_word::owner(seen);
                // Adds of one identity are serialised: a claim of my own is an old one.
                const bool mine = owner == writer.number;
                if (!mine && !is_dead(owner, slot_word::epoch(seen))) return false;
                fresh = fresh || slot_word::fresh(seen);
            }
            stop_point(StopPoint::slot_looked_at);
            const std::uint64_t mine = slot_word::claimed(seq, writer.number, writer.epoch, fresh);
            // W1. On failure acquire: the loop decides anew on what it sees.
            if (word.compare_exchange_strong(seen, mine, std::memory_order_acq_rel,
                                             std::memory_order_acquire)) {
                keep_stores_behind_guard();  // W1
                stop_point(StopPoint::claim_taken);
                if (steal) add_to(*writer.steals, 1);
                return true;
            }
        }
        return false;
    }

    void commit(std::uint64_t slot, std::uint64_t seq, float leaf) {
        SlotHead& head = this->head(slot);
        head.leaf_in.store(leaf, std::memory_order_relaxed);
        stop_point(StopPoint::leaf_in_stored);
        head.word.store(slot_word::committed(seq), std::memory_order_release);  // W2
    }

    // Adds to `filled` unless a recount came since it was read as `before`.
    void raise_filled(std::uint64_t before, std::uint64_t rows) {
        std::uint64_t now = counters_->filled.load(std::memory_order_relaxed);
        while (filled_word::recount(now) == filled_word::recount(before)) {
            if (counters_->filled.compare_exchange_weak(now, now + rows, std::memory_order_acq_rel,
                                                        std::memory_order_relaxed)) {
                return;
            }
        }
        request_recount();
    }

  private:
    static void add_to(std::atomic<std::uint64_t>& own_counter, std::uint64_t amount) {
        own_counter.store(own_counter.load(std::memory_order_relaxed) + amount,
                          std::memory_order_relaxed);
    }

    template <class Copy>
    static bool copied(Copy& copy, const std::byte* record) {
        if constexpr (std::is_void_v<decltype(copy(record))>) {
            copy(record);
            return true;
        } else {
            return copy(record);
        }
    }

    template <class Number>
    static void raise_to(std::atomic<Number>& shared, Number value) {
        Number now = shared.load(std::memory_order_relaxed);
        while (now < value && !shared.compare_exchange_weak(now, value, std::memory_order_acq_rel,
                                                            std::memory_order_relaxed)) {
        }
    }

    RingCounters* counters_ = nullptr;
    std::byte* heads_ = nullptr;
    std::byte* rows_ = nullptr;
    std::uint64_t capacity_ = 0;
    std::uint64_t stride_ = 0;
    std::uint64_t head_stride_ = 0;
};

}  // namespace mpbuffer
