// The composition: one replay buffer in one segment, as one handle of one process sees it.
//
// A handle has, besides what handle.hpp says, its own generator. It may be used by several
// threads: calls lock by themselves, by one mutex for add and clear and one for all that draws,
// updates, reads or counts. Both are only ever contended by threads of this process; no call holds
// one while it waits for another process, copies a sample's rows, or calls back.
//
// A forked child's copy has a generator of its own, and its mutexes are free.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/guard.hpp"
#include "format/header.hpp"
#include "ring/frame_writer.hpp"
#include "ring/gather.hpp"
#include "ring/sequence_writer.hpp"
#include "ring/slot_ring.hpp"
#include "ring/sources.hpp"
#include "ring/stored_size.hpp"
#include "segment/handle.hpp"
#include "segment/segment_file.hpp"
#include "select/laps.hpp"
#include "select/prioritized.hpp"

namespace mpbuffer {

struct BufferSettings {
    std::string name;
    RingShape shape;
    std::uint64_t seed;
    std::string description;
    SegmentOptions segment;
    bool hidden = false;  // until publish()
};

// What a snapshot holds beside rows and frames.
struct SavedCounters {
    SeqBounds rows;
    double max_priority;
    std::vector<std::uint64_t> sources;  // the position of each source ring
};

// The rows in the slots from `first` on, as they are stored: one behind the other in each array,
// zeros where a slot holds none. A field has its values; a shared one the positions of its frames,
// 8 bytes for each plane. `births`: of rows with frames, 8 bytes for each source ring. `leaves`: of
// a prioritized buffer.
template <class FieldPlace, class Seq, class Leaf>
struct SlotRange {
    std::uint64_t first;
    std::span<const FieldPlace> fields;  // none: nothing but seqs and leaves
    Seq* births;
    std::span<Seq> seqs;  // 0: no row
    Leaf* leaves;
};
using SlotsRead = SlotRange<FieldTarget, std::uint64_t, float>;
using SlotsRestored = SlotRange<FieldSource, const std::uint64_t, const float>;

// What tells rows apart and how often they are drawn, one for each row that is read.
struct RowMarks {
    std::vector<std::uint64_t> seqs;  // ascending from the oldest to the newest
    std::vector<double> priorities;   // of a prioritized buffer
};

struct ProcessStatus {
    unsigned number;
    std::uint64_t pid;
    char state;  // of /proc/PID/stat; '?': alive, cannot be looked at
    std::uint64_t rows;
    std::uint64_t skips;
    std::uint64_t steals;
};

// How full the buffer is, and what has happened in it since its creation.
struct BufferStatistics {
    std::uint64_t fill;   // complete rows, as stored_size()
    std::uint64_t early;  // rows retired because their sources were overwritten
    std::uint64_t sources;
    std::uint64_t sources_written;
    std::uint64_t rows_added;
    std::uint64_t skips;  // of rows and of sources
    std::uint64_t steals;
    std::uint64_t handles;  // as many as processes() tells of
    std::uint64_t redraws;  // through this handle
};

class ReplayBuffer final : public Attachable<ReplayBuffer, SegmentKind::buffer> {
  public:
    static std::unique_ptr<ReplayBuffer> create(const BufferSettings& settings);
    ~ReplayBuffer() override;

    // Leaves the process table, gives up the learner's role, unmaps; removes the segment's name if
    // nobody else is left. Waits for calls of other threads. Twice is once.
    void close() noexcept;

    const RingEntry& shape() const { return header_.ring[0]; }
    std::uint64_t capacity() const { return shape().capacity; }
    bool prioritized() const { return shape().prioritized != 0; }
    PriorityRule priority_rule() const { return {shape().alpha, shape().eps}; }

    // How rows of this segment with sources are given: to be called once, before any row is written
    // or read. SegmentMismatch if its rings are not those of the layout.
    void describe_rows(RowLayout layout);
    bool has_sources() const { return sources_.any(); }
    const SegmentHeader& header() const { return header_; }
    std::uint64_t segment_bytes() const { return header_.total_bytes; }
    // Whether this handle has added many rows with frames, and hardly any frame was equal to
    // another.
    bool shares_nothing() const {
        return sources_.any() && frames_given_.load(std::memory_order_relaxed) > many_frames &&
               10 * frames_written_.load(std::memory_order_relaxed) >
                   9 * frames_given_.load(std::memory_order_relaxed);
    }
    // How rows are given and stored, once they are described.
    const RowLayout& row_layout() const { return sources_.layout(); }
    // The bytes of a row as it is given.
    std::size_t given_bytes() const {
        return sources_.any() ? sources_.layout().given_bytes() : shape().row_bytes;
    }

    // Any process.

    // Adds n rows (1 <= n <= capacity). `fields`: if rows have frames, of all in their order.
    // `leaves`: of each row, or null for that of the largest priority so far; `largest_priority`:
    // of those given, 0 without. Returns the first row's slot. Waits for nobody, unless living
    // processes hold every slot: after 1 s of that SlotsHeld names them, and how many rows have
    // been added. Meanwhile `give_way` is called some fifty times a second, between two claims,
    // under no mutex; it may use this buffer, and throw.
    std::uint64_t add(std::uint64_t n, std::span<const FieldSource> fields, const float* leaves,
                      double largest_priority, const std::function<void()>& give_way = {});
    // As above, of whole records in the layout in which rows are given, `stride` bytes apart. Adds
    // to `written` each row that is there, also if it throws.
    std::uint64_t add_records(std::uint64_t n, const std::byte* records, std::size_t stride,
                              const float* leaves, double largest_priority, std::uint64_t& written,
                              const std::function<void()>& give_way = {});
    // As above, of sequences, where rows are those.
    std::uint64_t add_sequences(std::span<const Sequence> sequences, const float* leaves,
                                double largest_priority, std::uint64_t& written,
                                const std::function<void()>& give_way = {});
    void clear();

    // The learner's sample, as Learner::sample. With `releases`, only while release_learner() has
    // been called so many times: else RoleReleased, and the role is left alone.
    void gather(std::size_t count, Weighting weighting, const SampleTarget& target,
                std::optional<std::uint64_t> releases = {});
    // Draws `count` rows, each complete row with the same probability; any process. EmptyBuffer if
    // none is there.
    void gather_uniform(std::size_t count, const SampleTarget& target);

    // The slots that hold a complete row now, ascending, or shuffled by this handle's generator.
    std::vector<std::uint64_t> filled_slots(bool shuffle);
    // Reads the row in `slot` into place `i` of the target; false if there is none.
    bool read_slot(std::uint64_t slot, std::size_t i, std::span<const FieldTarget> fields);
    // Reads the rows in these slots one after another into the target, which has room for all, and
    // returns how many there are. A slot that holds none is left out, or comes as zeros. Calls
    // `give_way`, which may throw, every few milliseconds, under no mutex. `marks`, if given, gets
    // each row's.
    enum class WithoutRow { left_out, zeros };
    std::size_t read_slots(std::span<const std::uint64_t> slots,
                           std::span<const FieldTarget> fields,
                           const std::function<void()>& give_way = {},
                           WithoutRow without_row = WithoutRow::left_out,
                           RowMarks* marks = nullptr);
    // The same for all filled slots; `make_room` is told how many, under no mutex.
    using MakeRoom = std::function<std::span<const FieldTarget>(std::size_t)>;
    std::size_t read_all(bool shuffle, const MakeRoom& make_room,
                         const std::function<void()>& give_way = {}, RowMarks* marks = nullptr);
    // The priorities of the rows in these slots; NaN for a slot that holds none.
    void read_priorities(std::span<const std::int64_t> slots, std::span<double> priorities) const;
    // As Role::status().
    RoleLine learner_status() const;
    // Complete rows. Exact when nobody is adding; O(1) unless a process died inside a call.
    std::uint64_t stored_size();
    // O(handles), beside what stored_size() takes.
    BufferStatistics statistics();

    std::uint64_t next_slot() const;
    double max_priority() const;
    std::uint64_t rows_added() const;              // by all processes, those that are gone included
    std::vector<ProcessStatus> processes() const;  // of the handles that are not provably gone
    std::vector<float> leaves() const;

    // For snapshots, while others add; any process. Of a row that is overwritten meanwhile comes
    // the new one, or none.
    SavedCounters counters();
    void read_stored(const SlotsRead& slots) const;
    // The same for frames of a source ring, one behind the other; without `frames` their seqs.
    void read_frames(unsigned ring, std::uint64_t first, std::byte* frames,
                     std::span<std::uint64_t> seqs) const;
    // The state of this handle's generator; none in a prioritized buffer whose learner it is not.
    std::optional<Generator::State> generator_state() const;

    // For restores, into a buffer that is hidden and has no rows yet: InvalidArgument otherwise, or
    // if a seq is not its slot's or not below the position. Counters come first.
    void restore_counters(const SavedCounters& counters);
    void restore_rows(const SlotsRestored& slots);
    void restore_frames(unsigned ring, std::uint64_t first, const std::byte* frames,
                        std::span<const std::uint64_t> seqs);
    void restore_generator(const Generator::State& state);
    void raise_max_priority(double priority);
    // Shows a hidden buffer under its name, as create() does with any other. SegmentExists if the
    // name is in use.
    void publish() { make_visible(); }

    // The learner's: each takes the role, or throws LearnerBusy. As Learner's of these names.
    void take_learner_role();
    std::uint64_t update(std::span<const std::int64_t> slots,
                         std::span<const std::uint64_t> generations,
                         std::span<const double> priorities, std::span<const float> leaves);
    void fold();
    double total();
    // Fills in those generations that are 0, or of another slot: of the rows that the learner sees
    // in these slots.
    void find_generations(std::span<const std::int64_t> slots,
                          std::span<std::uint64_t> generations);
    // Without effect where this handle does not have the role.
    void release_learner();
    // How many times release_learner() has been called.
    std::uint64_t releases() const { return releases_.load(std::memory_order_relaxed); }
    bool is_learner() const;

  private:
    friend Attachable;
    // What a forked child must forget without touching it: a thread of its parent may have been
    // changing it.
    struct Local {
        explicit Local(std::uint64_t capacity) : stored_size(capacity) {}
        Generator generator;
        std::unique_ptr<LearnerMemory> learner_memory;  // from the first time that it has the role
        std::unique_ptr<Learner> learner;
        std::atomic<OwnRows*> own_rows{nullptr};  // add tells it, while this handle is the learner
        std::vector<std::unique_ptr<Draws>> spare_draws;
        std::unique_ptr<FrameWriter> frame_writer;        // of add
        std::unique_ptr<SequenceWriter> sequence_writer;  // of add_sequences
        StoredSize stored_size;
    };

    ReplayBuffer(SharedSegment segment, const SegmentHeader& header, std::string description);
    float leaf_of_largest();
    void enroll() const override;
    void release_role() override;
    void forget() noexcept override;
    void forget_parent() noexcept override;
    RingWriter writer(unsigned ring = 0) const;
    const Sources* sources() const { return sources_.any() ? &sources_ : nullptr; }
    SampleTarget with_sources(SampleTarget target) const {
        target.sources = sources();
        return target;
    }
    void retire();
    std::uint64_t count_rows();
    PutSource put_source() const;
    // `prepare(first)` sees to the sources of the rows from `first` on, and returns of how many;
    // `store(i, record)` writes a claimed one, or returns false.
    template <class Prepare, class Store>
    AddOutcome add_sourced(std::uint64_t first, std::uint64_t n, Prepare&& prepare, Store&& store,
                           const float* leaves, float common_leaf, std::uint64_t* written);
    AddOutcome add_framed(std::uint64_t first, std::uint64_t n, std::span<const FieldSource> fields,
                          const float* leaves, float common_leaf, std::uint64_t* written);
    bool leaf_of_row(std::uint64_t slot, std::uint64_t seq, std::uint32_t lap, float& leaf) const;
    bool leaf_of_row(std::uint64_t slot, std::uint64_t seq, float& leaf) const {
        return leaf_of_row(slot, seq, static_cast<std::uint32_t>(seq / capacity()), leaf);
    }
    bool mark_row(std::uint64_t slot, std::uint64_t seq, RowMarks& marks) const;
    std::uint64_t read_stored(const SlotsRead& slots, std::size_t i, std::uint64_t cleared,
                              const Laps& laps) const;
    void require_hidden() const;
    bool dead(unsigned number, std::uint64_t epoch) const;
    // The methods below are called under learner_mutex_.
    Learner& learner();
    bool has_role() const { return local_ && local_->learner; }
    Generator& generator();
    std::unique_ptr<Draws> take_draws();
    void copy_drawn_rows(Draws& draws, const SampleTarget& target);
    Learner& learner_unless_released(std::optional<std::uint64_t> releases);
    // `add_some(first, leaf)` adds as many as it can of the rows from `first` on.
    template <class AddSome>
    std::uint64_t add_rows(std::uint64_t n, AddSome&& add_some, const float* leaves,
                           double largest_priority, const std::function<void()>& give_way);
    template <class CopyRow>
    std::uint64_t add_whole(std::uint64_t n, CopyRow&& copy_row, const float* leaves,
                            double largest_priority, const std::function<void()>& give_way);
    [[noreturn]] void throw_slots_held(std::uint64_t added, std::uint64_t n) const;
    template <class Call>
    void sampling(Call&& call);

    static constexpr std::uint64_t many_frames = 4096;

    SlotRing ring_;
    mutable Sources sources_;
    std::atomic<std::uint64_t> frames_given_{0};
    std::atomic<std::uint64_t> frames_written_{0};
    Mutex add_mutex_;
    mutable Mutex learner_mutex_;
    mutable SharedMutex copying_;  // by many: threads that read under no other mutex; close() waits
    // Changed under learner_mutex_, where a decision depends on it.
    std::atomic<std::uint64_t> releases_{0};
    std::uint64_t redraws_ = 0;  // under learner_mutex_
    mutable std::unique_ptr<Local> local_;
    double leaf_priority_ = -1;  // the priority that leaf_ belongs to
    float leaf_ = 0;
};

}  // namespace mpbuffer
