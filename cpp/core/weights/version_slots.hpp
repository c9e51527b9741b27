// Whole versions of one block of bytes: one publisher at a time, any number of readers. Lives in
// borrowed, zero-initialised shared memory, and knows neither files nor processes.
//
// A version is written into a slot that nobody can be reading, and is then *offered*: readers take
// the offered slot, whose bytes rest while they copy. What is promised:
//
//   - A read returns one version whole: its slot's version number is looked at before the copy and
//     after it, whatever else went wrong.
//   - A read is one copy. A reader marks the offered slot, looks whether it still is the offered
//     one, and from then on nobody writes there until the mark is gone. Only where readers were
//     stopped in a copy and went on may one find its copy overwritten; it then copies once more.
//   - publish() waits for nobody, and is one copy.
//   - Readers wait for nobody. A version is offered as soon as it is written, but for one case:
//     while two earlier versions (slots - 2 of them) are still being read, each by a running reader
//     that began when it was the latest, the newest one is *pending*. Whoever publishes, reads or
//     asks next offers it once one of these slots is free; a further publish() replaces it. So the
//     publisher always finds a slot, and readers are never overtaken.
//   - Whoever dies, at whatever instruction, the offered version stays readable; the publisher's
//     successor goes on from there. A version that is pending when its publisher publishes the next
//     and dies in that copy is lost; the offered one is not.
//
// The offer is one word, `version:48 | offered:8 | pending:8`: the newest version, the slot that is
// offered, and 1 + the slot of a version that waits, or 0. Only its publisher gives a version its
// number, and no value of the word comes twice. The publisher alone changes it while nothing is
// pending; a pending slot is offered by anyone's compare-exchange.
//
// Why a slot that is found free stays free: it is not the offered one, so nobody's second look at
// the offer confirms a new mark on it, until its next version is offered.
//
// What somebody wrote over the board is told: an offer of a slot that is not there, or of one
// without a version, is SegmentMismatch.
//
// Memory orderings. A version's number is taken away before its slot is written (exchange and
// release fence, V1) and given after (release, V2); then comes the offer (release, V3). A reader's
// acquire load of the offer pairs with V3, that of the number with V2; its acquire fence before the
// second look at the number pairs with V1. A reader's mark and its second look at the offer have a
// seq_cst fence between them, and so have whoever saw or made a change of the offer and his look at
// the marks (M1, M2: one of the two sees the other). A mark goes by a release store, whose partner
// is the acquire load of the mark: the copy is over before the slot is written again.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/error.hpp"
#include "base/shared_copy.hpp"
#include "base/tsan.hpp"
#include "format/version_records.hpp"

namespace mpbuffer {

struct Publication {
    std::uint64_t version = 0;       // 0: none
    std::uint64_t published_at = 0;  // as monotonic_ns() tells
};

class VersionSlots {
  public:
    VersionSlots() = default;

    // lines: number 0 is nobody's. slots: min_version_slots to max_version_slots.
    VersionSlots(VersionBoard* board, VersionSlot* slots, unsigned slot_count, ReaderLine* lines,
                 unsigned line_count, std::byte* records, std::uint64_t stride)
        : board_(board),
          slots_(slots),
          slot_count_(slot_count),
          lines_(lines),
          line_count_(line_count),
          records_(records),
          stride_(stride) {}

    // For each reader before its first read, and when a number is taken again.
    void open_line(unsigned number) const {
        lines_[number].mark.store(0, std::memory_order_relaxed);
        lines_[number].version.store(0, std::memory_order_relaxed);
        lines_[number].reads.store(0, std::memory_order_relaxed);
        lines_[number].repeats.store(0, std::memory_order_relaxed);
        std::uint64_t highest = board_->lines_used.load(std::memory_order_relaxed);
        // Seen with the marks, through the same fences.
        while (highest < number && !board_->lines_used.compare_exchange_weak(
                                       highest, number, std::memory_order_release)) {
        }
    }

    // The version that copy(record) writes; the record's bytes must be written by atomics or by
    // store_to_record(). One caller at a time, in all processes.
    //
    // gone(number, mark) in all calls: whether that reader is dead or stopped, so that its slot may
    // be written. Asked only when slots are short. It may be wrong at the price of a repeated copy.
    template <class Copy, class Gone>
    std::uint64_t publish(std::uint64_t now, Copy&& copy, Gone&& gone) const {
        const unsigned slot = slot_to_write(gone);
        const std::uint64_t version = newest() + 1;
        VersionSlot& into = slots_[slot];
        take_number_away(into);
        copy(record(slot));
        into.published_at.store(now, std::memory_order_relaxed);
        into.version.store(version, std::memory_order_release);  // V2
        offer(version, slot, gone);
        return version;
    }

    // Has copy(record) copy a version newer than `newer_than`, if there is one. copy may be called
    // more than once; the last call counts. One caller at a time for each line.
    template <class Copy, class Gone>
    Publication read(unsigned number, std::uint64_t epoch, std::uint64_t newer_than, Copy&& copy,
                     Gone&& gone) const {
        ReaderLine& line = lines_[number];
        for (;;) {
            const std::uint64_t word = look(gone);
            if (offer_word::newest(word) <= newer_than) return {};
            const unsigned slot = offer_word::offered(word);
            put_mark(line, reader_mark::make(epoch, slot));
            // Acquire: pairs with V3. Each failure means a version that was offered meanwhile.
            if (offer_word::offered(board_->offer.load(std::memory_order_acquire)) != slot) {
                put_mark(line, 0);
                continue;
            }
            VersionSlot& from = slots_[slot];
            // Acquire: pairs with V2.
            const std::uint64_t version = from.version.load(std::memory_order_acquire);
            const std::uint64_t at = from.published_at.load(std::memory_order_relaxed);
            if (version > newer_than) copy(record(slot));
            const bool whole = version != 0 && unchanged(from.version, version);  // V1
            put_mark(line, 0);
            if (version == 0) require_offer_moved(word);
            look(gone);
            if (whole) {
                if (version <= newer_than) return {};
                line.version.store(version, std::memory_order_relaxed);
                add_one(line.reads);
                return {version, at};
            }
            add_one(line.repeats);
        }
    }

    // What a read would give now.
    template <class Gone>
    Publication latest(Gone&& gone) const {
        for (;;) {
            const std::uint64_t word = look(gone);
            if (offer_word::newest(word) == 0) return {};
            VersionSlot& from = slots_[offer_word::offered(word)];
            const std::uint64_t version = from.version.load(std::memory_order_acquire);  // V2
            const std::uint64_t at = from.published_at.load(std::memory_order_relaxed);
            if (version != 0 && unchanged(from.version, version)) return {version, at};  // V1
            if (version == 0) require_offer_moved(word);
        }
    }

    // The newest version, also while it is pending: one load. Nothing newer can be read.
    std::uint64_t newest() const {
        return offer_word::newest(board_->offer.load(std::memory_order_relaxed));
    }

    std::byte* record(unsigned slot) const { return records_ + slot * stride_; }
    unsigned slot_count() const { return slot_count_; }
    ReaderLine& line(unsigned number) const { return lines_[number]; }
    // Acquire: pairs with V3. SegmentMismatch if the word names a slot that is not there.
    std::uint64_t offer_now() const {
        const std::uint64_t word = board_->offer.load(std::memory_order_acquire);
        const unsigned offered = offer_word::offered(word);
        const unsigned pending = offer_word::has_pending(word) ? offer_word::pending(word) : 0;
        if (offered >= slot_count_ || pending >= slot_count_) [[unlikely]] {
            throw SegmentMismatch(
                "slot " + std::to_string(offered >= slot_count_ ? offered : pending) +
                " is offered, there are " + std::to_string(slot_count_) + " (damaged)");
        }
        return word;
    }

  private:
    static constexpr std::uint64_t bit(unsigned slot) { return std::uint64_t{1} << slot; }
    std::uint64_t all_slots() const { return ~std::uint64_t{0} >> (64 - slot_count_); }

    // V1. An exchange, though nobody asks for the old number: on x86 a release fence is no
    // instruction and does not order the non-temporal stores of a large memcpy; a locked
    // instruction does.
    static void take_number_away(VersionSlot& slot) {
        slot.version.exchange(0, std::memory_order_acq_rel);
        keep_stores_behind_guard();
    }

    // An offered slot has a number: where one is found without, the offer has moved on. The
    // number's load was an acquire, whose partner is the exchange of V1, which comes after that
    // offer.
    void require_offer_moved(std::uint64_t word) const {
        if (offer_now() != word) return;
        throw SegmentMismatch("slot " + std::to_string(offer_word::offered(word)) +
                              " is offered and has no version (damaged)");
    }

    // M1. Release: pairs with the acquire load of the mark.
    static void put_mark(ReaderLine& line, std::uint64_t mark) {
#if MPBUFFER_TSAN
        line.mark.exchange(mark, std::memory_order_seq_cst);
#else
        line.mark.store(mark, std::memory_order_release);
        std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
    }

    // M2: behind a load or change of the offer, before a look at the marks.
    void fence_before_marks() const {
#if MPBUFFER_TSAN
        board_->offer.fetch_add(0, std::memory_order_seq_cst);
#else
        std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
    }

    static void add_one(std::atomic<std::uint64_t>& own_counter) {
        own_counter.store(own_counter.load(std::memory_order_relaxed) + 1,
                          std::memory_order_relaxed);
    }

    template <class Gone>
    std::uint64_t look(Gone&& gone) const {
        const std::uint64_t word = offer_now();
        if (!offer_word::has_pending(word)) [[likely]]
            return word;
        offer_pending(word, gone);
        return offer_now();
    }

    // Those of the slots that no running reader has. None of them was offered when the caller
    // last looked.
    template <class Gone>
    std::uint64_t free_of(std::uint64_t candidates, Gone&& gone) const {
        fence_before_marks();
        const std::uint64_t used = board_->lines_used.load(std::memory_order_relaxed);
        const unsigned lines = used < line_count_ ? static_cast<unsigned>(used) : line_count_ - 1;
        std::uint64_t held = 0;
        const auto held_by = [this](unsigned number, std::uint64_t& mark) {
            // Acquire: pairs with the release in put_mark().
            mark = lines_[number].mark.load(std::memory_order_acquire);
            const unsigned slot = reader_mark::slot_plus_one(mark);
            return slot == 0 || slot > slot_count_ ? 0 : bit(slot - 1);
        };
        std::uint64_t mark = 0;
        for (unsigned number = 1; number <= lines; ++number) held |= held_by(number, mark);
        if ((candidates & ~held) != 0) return candidates & ~held;
        held = 0;
        for (unsigned number = 1; number <= lines; ++number) {
            const std::uint64_t of_this = held_by(number, mark) & candidates & ~held;
            if (of_this != 0 && !gone(number, mark)) held |= of_this;
        }
        return candidates & ~held;
    }

    unsigned oldest_of(std::uint64_t slots) const {
        unsigned oldest = static_cast<unsigned>(std::countr_zero(slots));
        for (unsigned slot = oldest + 1; slot < slot_count_; ++slot) {
            if ((slots & bit(slot)) != 0 &&
                slots_[slot].version.load(std::memory_order_relaxed) <
                    slots_[oldest].version.load(std::memory_order_relaxed)) {
                oldest = slot;
            }
        }
        return oldest;
    }

    // Whether nothing is pending any more.
    template <class Gone>
    bool offer_pending(std::uint64_t word, Gone&& gone) const {
        const std::uint64_t others =
            all_slots() & ~bit(offer_word::offered(word)) & ~bit(offer_word::pending(word));
        if (free_of(others, gone) == 0) return false;
        // Release: V3. If it fails, somebody was faster, or the publisher took it back.
        board_->offer.compare_exchange_strong(word, offer_word::with_pending_offered(word),
                                              std::memory_order_acq_rel);
        return true;
    }

    template <class Gone>
    unsigned slot_to_write(Gone&& gone) const {
        std::uint64_t word = offer_now();
        if (offer_word::has_pending(word)) {
            // Once it is taken back nobody can offer it, and nobody has ever read it.
            if (!offer_pending(word, gone) &&
                board_->offer.compare_exchange_strong(word, offer_word::without_pending(word),
                                                      std::memory_order_acq_rel)) {
                return offer_word::pending(word);
            }
            word = offer_now();
        }
        const std::uint64_t others = all_slots() & ~bit(offer_word::offered(word));
        const std::uint64_t free = free_of(others, gone);
        // There is none only after readers that passed for stopped went on: then one is overtaken.
        return oldest_of(free != 0 ? free : others);
    }

    template <class Gone>
    void offer(std::uint64_t version, unsigned slot, Gone&& gone) const {
        const unsigned offered = offer_word::offered(offer_now());
        if (free_of(all_slots() & ~bit(offered) & ~bit(slot), gone) != 0) {
            board_->offer.store(offer_word::make(version, slot, 0), std::memory_order_release);
            return;
        }
        const std::uint64_t waiting = offer_word::make(version, offered, slot + 1);
        board_->offer.store(waiting, std::memory_order_release);
        // A reader may have ended between the look at the marks and the store.
        offer_pending(waiting, gone);
    }

    VersionBoard* board_ = nullptr;
    VersionSlot* slots_ = nullptr;
    unsigned slot_count_ = 0;
    ReaderLine* lines_ = nullptr;
    unsigned line_count_ = 0;
    std::byte* records_ = nullptr;
    std::uint64_t stride_ = 0;
};

}  // namespace mpbuffer
