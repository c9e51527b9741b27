#include <algorithm>
#include <chrono>
#include <set>
#include <thread>

#include "base/error.hpp"
#include "base/stop_points.hpp"
#include "base/words.hpp"
#include "buffer/replay_buffer.hpp"

namespace mpbuffer {

namespace {

// How long an add tries that finds every slot held by living processes, and how often.
constexpr auto patience = std::chrono::milliseconds(1000);
constexpr auto pause_between_tries = std::chrono::microseconds(50);

}  // namespace

std::uint64_t ReplayBuffer::add(std::uint64_t n, std::span<const FieldSource> fields,
                                const float* leaves, double largest_priority,
                                const std::function<void()>& give_way) {
    if (sources_.any()) {
        const auto add_some = [&](std::uint64_t first, float leaf) {
            return add_framed(first, n, fields, leaves, leaf, nullptr);
        };
        return add_rows(n, add_some, leaves, largest_priority, give_way);
    }
    const auto copy_row = [fields](std::uint64_t i, std::byte* record) {
        for (const FieldSource& field : fields) {
            store_to_record(record + field.offset, field.values + i * field.step, field.bytes);
            stop_point(StopPoint::field_copied);
        }
    };
    return add_whole(n, copy_row, leaves, largest_priority, give_way);
}

std::uint64_t ReplayBuffer::add_records(std::uint64_t n, const std::byte* records,
                                        std::size_t stride, const float* leaves,
                                        double largest_priority, std::uint64_t& written,
                                        const std::function<void()>& give_way) {
    if (sources_.any()) {
        std::vector<FieldSource> fields;
        for (const StoredField& field : sources_.layout().fields()) {
            fields.push_back({records + field.given, stride, field.given, field.bytes});
        }
        const auto add_some = [&](std::uint64_t first, float leaf) {
            return add_framed(first, n, fields, leaves, leaf, &written);
        };
        return add_rows(n, add_some, leaves, largest_priority, give_way);
    }
    const std::size_t bytes = shape().row_bytes;
    const auto copy_row = [=, &written](std::uint64_t i, std::byte* record) {
        store_to_record(record, records + i * stride, bytes);
        stop_point(StopPoint::field_copied);
        ++written;  // what is copied is committed: nothing between the two throws
    };
    return add_whole(n, copy_row, leaves, largest_priority, give_way);
}

template <class CopyRow>
std::uint64_t ReplayBuffer::add_whole(std::uint64_t n, CopyRow&& copy_row, const float* leaves,
                                      double largest_priority,
                                      const std::function<void()>& give_way) {
    const auto add_some = [&](std::uint64_t first, float common_leaf) {
        return ring_.add(
            n - first, writer(),
            [this](unsigned owner, std::uint64_t epoch) { return dead(owner, epoch); },
            [&copy_row, leaves, common_leaf, first](std::uint64_t i, std::byte* record) {
                i += first;
                copy_row(i, record);
                return leaves == nullptr ? common_leaf : leaves[i];
            });
    };
    return add_rows(n, add_some, leaves, largest_priority, give_way);
}

PutSource ReplayBuffer::put_source() const {
    return [this](unsigned ring, const std::byte* source) {
        return sources_.ring(ring).put(
            writer(ring),
            [this](unsigned owner, std::uint64_t epoch) { return dead(owner, epoch); },
            [&](std::byte* record) {
                store_to_record(record, source, header_.ring[ring].row_bytes);
                stop_point(StopPoint::field_copied);
            });
    };
}

// Adds rows from `first` on, their sources before them: as many as others let it.
template <class Prepare, class Store>
AddOutcome ReplayBuffer::add_sourced(std::uint64_t first, std::uint64_t n, Prepare&& prepare,
                                     Store&& store, const float* leaves, float common_leaf,
                                     std::uint64_t* written) {
    const auto is_dead = [this](unsigned owner, std::uint64_t epoch) { return dead(owner, epoch); };
    AddOutcome all;
    while (first + all.rows_added < n) {
        const std::uint64_t from = first + all.rows_added;
        const std::uint64_t ready = prepare(from);
        if (ready == 0) break;
        const AddOutcome some =
            ring_.add(ready, writer(), is_dead, [&](std::uint64_t i, std::byte* record) {
                i += from;
                if (!store(i, record)) throw_slots_held(i, n);
                if (written != nullptr) ++*written;
                return leaves == nullptr ? common_leaf : leaves[i];
            });
        if (all.rows_added == 0) all.first_slot = some.first_slot;
        all.rows_added += some.rows_added;
        if (some.rows_added < ready) break;
    }
    return all;
}

AddOutcome ReplayBuffer::add_framed(std::uint64_t first, std::uint64_t n,
                                    std::span<const FieldSource> fields, const float* leaves,
                                    float common_leaf, std::uint64_t* written) {
    if (!local_->frame_writer) local_->frame_writer = std::make_unique<FrameWriter>(sources_);
    FrameWriter& frame_writer = *local_->frame_writer;
    const PutSource put = put_source();
    const AddOutcome outcome = add_sourced(
        first, n,
        [&](std::uint64_t from) { return frame_writer.prepare(fields, from, n - from, put); },
        [&](std::uint64_t i, std::byte* record) {
            return frame_writer.store(fields, i, record, put);
        },
        leaves, common_leaf, written);
    frames_given_.store(frame_writer.frames_given(), std::memory_order_relaxed);
    frames_written_.store(frame_writer.frames_written(), std::memory_order_relaxed);
    return outcome;
}

std::uint64_t ReplayBuffer::add_sequences(std::span<const Sequence> sequences, const float* leaves,
                                          double largest_priority, std::uint64_t& written,
                                          const std::function<void()>& give_way) {
    const auto add_some = [&](std::uint64_t first, float leaf) {
        if (!local_->sequence_writer) {
            local_->sequence_writer = std::make_unique<SequenceWriter>(sources_);
        }
        SequenceWriter& sequence_writer = *local_->sequence_writer;
        const PutSource put = put_source();
        return add_sourced(
            first, sequences.size(),
            [&](std::uint64_t from) {
                return sequence_writer.prepare(sequences.subspan(from), put);
            },
            [&](std::uint64_t i, std::byte* record) {
                return sequence_writer.store(sequences[i], record, put);
            },
            leaves, leaf, &written);
    };
    return add_rows(sequences.size(), add_some, leaves, largest_priority, give_way);
}

template <class AddSome>
std::uint64_t ReplayBuffer::add_rows(std::uint64_t n, AddSome&& add_some, const float* leaves,
                                     double largest_priority,
                                     const std::function<void()>& give_way) {
    const CoreCall call;
    let_others_copy(n * given_bytes());
    std::uint64_t first_slot = 0;
    std::uint64_t added = 0;
    std::chrono::steady_clock::time_point deadline{};
    for (;;) {
        {
            const Guard guard(add_mutex_);
            ready();
            const float common_leaf = prioritized() && leaves == nullptr ? leaf_of_largest() : 0;
            const AddOutcome outcome = add_some(added, common_leaf);
            if (added == 0) first_slot = outcome.first_slot;
            added += outcome.rows_added;
            if (added == n) [[likely]] {
                if (largest_priority > ring_.max_priority()) {
                    ring_.raise_max_priority(largest_priority);
                }
                return first_slot;
            }
            let_others_run();
            const auto now = std::chrono::steady_clock::now();
            if (deadline == std::chrono::steady_clock::time_point{}) deadline = now + patience;
            if (now >= deadline) throw_slots_held(added, n);
        }
        std::this_thread::sleep_for(pause_between_tries);
        if (give_way) call_back(give_way);
    }
}

// Of rows that come without a priority.
float ReplayBuffer::leaf_of_largest() {
    const double largest = ring_.max_priority();
    if (largest != leaf_priority_) {
        leaf_ = priority_rule().leaf(largest);
        leaf_priority_ = largest;
    }
    return leaf_;
}

void ReplayBuffer::throw_slots_held(std::uint64_t added, std::uint64_t n) const {
    std::set<unsigned> owners;
    const auto look_at = [this, &owners](const SlotRing& ring) {
        for (std::uint64_t slot = 0; slot < ring.capacity() && owners.size() < 8; ++slot) {
            const unsigned owner =
                slot_word::owner(ring.word(slot).load(std::memory_order_relaxed));
            if (owner != 0 && owner <= processes_.size()) owners.insert(owner);
        }
    };
    look_at(ring_);
    for (unsigned i = 1; i <= sources_.rings(); ++i) look_at(sources_.ring(i));
    std::string holders;
    for (const unsigned owner : owners) {
        if (!holders.empty()) holders += ", ";
        holders += process_in_words(owner, processes_.record(owner).pid.load(),
                                    processes_.state(owner, locks("ask who is alive in")));
    }
    throw SlotsHeld("cannot add to '" + name_ + "': every slot is being written by others, " +
                    (holders.empty() ? "who were faster" : holders) + "; " + std::to_string(added) +
                    " of " + std::to_string(n) +
                    " rows were added; end or continue these processes");
}

}  // namespace mpbuffer
