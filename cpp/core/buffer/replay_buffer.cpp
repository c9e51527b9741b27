#include "buffer/replay_buffer.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <thread>
#include <utility>

#include "base/error.hpp"
#include "base/stop_points.hpp"
#include "base/words.hpp"
#include "select/random.hpp"
#include "select/uniform.hpp"

namespace mpbuffer {

namespace {

// How much is copied, counting 64 bytes more a row, before a long read calls back.
constexpr std::size_t bytes_at_once = std::size_t{16} << 20;

// How long an add tries that finds every slot held by living processes, and how often.
constexpr auto patience = std::chrono::milliseconds(1000);
constexpr int most_readings = 64;  // of a row that is overwritten in each
constexpr auto pause_between_tries = std::chrono::microseconds(50);

}  // namespace

std::unique_ptr<ReplayBuffer> ReplayBuffer::create(const BufferSettings& settings) {
    return made_by([&] {
        const RingShape& shape = settings.shape;
        if (shape.prioritized && !std::isfinite(leaf_of(1.0, shape.alpha, shape.eps))) {
            throw InvalidArgument(
                "cannot create '" + settings.name + "': with alpha " +
                number_in_words(shape.alpha) + " and eps " + number_in_words(shape.eps) +
                " the leaf (1 + eps)^alpha of the first priority, 1, is too large; "
                "expected one that fits into float32");
        }
        const SegmentHeader header =
            plan_segment(settings.shape, settings.description, settings.seed);
        SharedSegment segment =
            SharedSegment::create(settings.name, header.total_bytes, settings.segment);
        write_header(segment.data(), header, settings.description);
        std::unique_ptr<ReplayBuffer> buffer(
            new ReplayBuffer(std::move(segment), header, settings.description));
        buffer->ring_.initialise();
        for (unsigned i = 1; i <= buffer->frames_.rings(); ++i)
            buffer->frames_.ring(i).initialise();
        buffer->start();
        stop_point(StopPoint::segment_written);
        buffer->segment_.make_visible();
        return buffer;
    });
}

ReplayBuffer::ReplayBuffer(SharedSegment segment, const SegmentHeader& header,
                           std::string description)
    : Attachable(std::move(segment), header, std::move(description), RoleKind::learner),
      frames_(at<std::byte>(0), header_),
      local_(std::make_unique<Local>(capacity())) {
    ring_ = SlotRing(at<std::byte>(0), shape());
}

void ReplayBuffer::describe_rows(RowLayout layout) {
    std::vector<std::uint64_t> frame_bytes;
    for (unsigned i = 1; i <= frames_.rings(); ++i) {
        frame_bytes.push_back(header_.ring[i].row_bytes);
    }
    if (layout.stored_bytes() != shape().row_bytes || layout.frame_bytes() != frame_bytes) {
        throw SegmentMismatch("cannot attach '" + name_ + "': its fields make rows of " +
                              std::to_string(layout.stored_bytes()) + " bytes, its header says " +
                              std::to_string(shape().row_bytes) +
                              (frame_bytes.empty() ? "" : ", or their frames differ"));
    }
    frames_.describe(std::move(layout));
}

ReplayBuffer::~ReplayBuffer() {
    leave_children();
    close();
    unwatch();
}

void ReplayBuffer::close() noexcept {
    if (!is_open()) return;
    const Guard nobody_adds(add_mutex_);
    const Guard nobody_draws(learner_mutex_);
    const GuardOfOne nobody_copies(copying_);
    let_others_run();
    leave();
}

void ReplayBuffer::forget() noexcept { local_.reset(); }

void ReplayBuffer::forget_parent() noexcept {
    (void)local_.release();
    leaf_priority_ = -1;
    add_mutex_.renew_in_child();
    learner_mutex_.renew_in_child();
    copying_.renew_in_child();
}

void ReplayBuffer::enroll() const {
    if (!local_) local_ = std::make_unique<Local>(capacity());
    std::uint64_t left_busy = 0;
    const Identity identity = processes_.enroll(locks("enroll in"), &left_busy);
    if (left_busy != 0) {
        ring_.request_recount();
        processes_.forget_busy(identity, left_busy);
    }
    local_->generator = Generator(header_.seed, identity.number, identity.epoch);
    identity_ = identity;
}

RingWriter ReplayBuffer::writer(unsigned ring) const {
    RingState& state = processes_.record(identity_.number).ring[ring];
    // Acquire: pairs with the release in learner(); it is whole.
    return {identity_.number,
            identity_.epoch,
            &state.rows,
            &state.skips,
            &state.steals,
            &state.busy,
            ring == 0 ? local_->own_rows.load(std::memory_order_acquire) : nullptr};
}

bool ReplayBuffer::dead(unsigned number, std::uint64_t epoch) const {
    return processes_.dead(number, epoch, slot_word::epoch_bits, locks("ask who is alive in"));
}

std::uint64_t ReplayBuffer::add(std::uint64_t n, std::span<const FieldSource> fields,
                                const float* leaves, double largest_priority,
                                const std::function<void()>& give_way) {
    if (frames_.any()) {
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
    if (frames_.any()) {
        std::vector<FieldSource> fields;
        for (const StoredField& field : frames_.layout().fields()) {
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

// Adds rows from `first` on, their frames before them: as many as others let it.
AddOutcome ReplayBuffer::add_framed(std::uint64_t first, std::uint64_t n,
                                    std::span<const FieldSource> fields, const float* leaves,
                                    float common_leaf, std::uint64_t* written) {
    if (!local_->frame_writer) local_->frame_writer = std::make_unique<FrameWriter>(frames_);
    FrameWriter& frame_writer = *local_->frame_writer;
    const auto is_dead = [this](unsigned owner, std::uint64_t epoch) { return dead(owner, epoch); };
    const FrameWriter::Put put = [&](unsigned ring, const std::byte* frame) {
        return frames_.ring(ring).put(writer(ring), is_dead, [&](std::byte* record) {
            store_to_record(record, frame, header_.ring[ring].row_bytes);
            stop_point(StopPoint::field_copied);
        });
    };
    AddOutcome all;
    while (first + all.rows_added < n) {
        const std::uint64_t from = first + all.rows_added;
        const std::uint64_t ready = frame_writer.prepare(fields, from, n - from, put);
        if (ready == 0) break;
        const AddOutcome some =
            ring_.add(ready, writer(), is_dead, [&](std::uint64_t i, std::byte* record) {
                i += from;
                if (!frame_writer.store(fields, i, record, put)) throw_slots_held(i, n);
                if (written != nullptr) ++*written;
                return leaves == nullptr ? common_leaf : leaves[i];
            });
        if (all.rows_added == 0) all.first_slot = some.first_slot;
        all.rows_added += some.rows_added;
        if (some.rows_added < ready) break;
    }
    frames_given_.store(frame_writer.frames_given(), std::memory_order_relaxed);
    frames_written_.store(frame_writer.frames_written(), std::memory_order_relaxed);
    return all;
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
    const auto look_at = [&owners](const SlotRing& ring) {
        for (std::uint64_t slot = 0; slot < ring.capacity() && owners.size() < 8; ++slot) {
            const unsigned owner =
                slot_word::owner(ring.word(slot).load(std::memory_order_relaxed));
            if (owner != 0 && owner <= max_processes) owners.insert(owner);
        }
    };
    look_at(ring_);
    for (unsigned i = 1; i <= frames_.rings(); ++i) look_at(frames_.ring(i));
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

void ReplayBuffer::clear() {
    const Guard guard(add_mutex_);
    ready();
    ring_.clear();
}

// Rows whose frames are gone are no longer there. Under learner_mutex_.
void ReplayBuffer::retire() {
    if (frames_.any()) frames_.retire(ring_);
}

std::vector<std::uint64_t> ReplayBuffer::filled_slots(bool shuffle) {
    const Guard guard(learner_mutex_);
    ready();
    retire();
    std::vector<std::uint64_t> filled = find_filled_slots(ring_);
    if (shuffle) {
        Generator& draws = generator();
        for (std::size_t i = filled.size(); i > 1; --i) {
            std::swap(filled[i - 1], filled[draws.below(i)]);
        }
    }
    return filled;
}

bool ReplayBuffer::read_slot(std::uint64_t slot, std::size_t i,
                             std::span<const FieldTarget> fields) {
    const GuardOfMany stays_open(copying_);
    ready();
    return read_row(ring_, frames(), slot, i, fields) != 0;
}

// The leaf that the learner has set for row `seq`, else the one that it came with; false if the row
// is gone. A leaf of another row is found only after the slot's word has changed: the learner sets
// it when it has seen that word.
bool ReplayBuffer::leaf_of_row(std::uint64_t slot, std::uint64_t seq, float& leaf) const {
    const PriorityRule rule = priority_rule();
    const auto lap = static_cast<std::uint32_t>(seq / capacity());
    if (ring_.head(slot).lap.load(std::memory_order_acquire) == lap) {  // pairs with L1
        std::atomic_ref<float> current(at<float>(shape().leaf_offset)[slot]);
        leaf = current.load(std::memory_order_relaxed);  // L2, with the fence of unchanged()
        if (!unchanged(ring_.word(slot), slot_word::committed(seq))) return false;
        if (rule.is_leaf(leaf)) return true;
    }
    if (!ring_.read_leaf_in(slot, seq, leaf)) return false;
    if (!rule.is_leaf(leaf)) leaf = rule.leaf(ring_.max_priority());
    return true;
}

bool ReplayBuffer::mark_row(std::uint64_t slot, std::uint64_t seq, RowMarks& marks) const {
    if (prioritized()) {
        float leaf = 0;
        if (!leaf_of_row(slot, seq, leaf)) return false;
        marks.priorities.push_back(priority_rule().priority(leaf));
    }
    marks.seqs.push_back(seq);
    return true;
}

std::size_t ReplayBuffer::read_slots(std::span<const std::uint64_t> slots,
                                     std::span<const FieldTarget> fields,
                                     const std::function<void()>& give_way, WithoutRow without_row,
                                     RowMarks* marks) {
    const CoreCall call;
    let_others_copy(slots.size() * given_bytes());
    const std::size_t at_once = bytes_at_once / (given_bytes() + 64) + 1;
    std::size_t rows = 0;
    for (std::size_t first = 0; first < slots.size(); first += at_once) {
        if (first != 0 && give_way) call_back(give_way);
        const GuardOfMany stays_open(copying_);
        ready();
        for (const std::uint64_t slot :
             slots.subspan(first, std::min(at_once, slots.size() - first))) {
            std::uint64_t seq = read_row(ring_, frames(), slot, rows, fields);
            for (int attempt = 0; marks != nullptr && seq != 0; ++attempt) {
                if (mark_row(slot, seq, *marks)) break;
                // Overwritten since it was read.
                seq = attempt < most_readings ? read_row(ring_, frames(), slot, rows, fields) : 0;
            }
            if (seq != 0) {
                ++rows;
            } else if (without_row == WithoutRow::zeros) {
                for (const FieldTarget& field : fields) {
                    std::memset(field.values + rows * field.bytes, 0, field.bytes);
                }
                ++rows;
            }
        }
    }
    return rows;
}

std::size_t ReplayBuffer::read_all(bool shuffle, const MakeRoom& make_room,
                                   const std::function<void()>& give_way, RowMarks* marks) {
    const CoreCall call;
    const std::vector<std::uint64_t> slots = filled_slots(shuffle);
    const std::span<const FieldTarget> fields = call_back([&] { return make_room(slots.size()); });
    return read_slots(slots, fields, give_way, WithoutRow::left_out, marks);
}

void ReplayBuffer::read_priorities(std::span<const std::int64_t> slots,
                                   std::span<double> priorities) const {
    const GuardOfMany stays_open(copying_);
    ready();
    let_others_scan(slots.size());
    const std::uint64_t cleared = ring_.clear_before();
    for (std::size_t i = 0; i < slots.size(); ++i) {
        const auto slot = static_cast<std::uint64_t>(slots[i]);
        priorities[i] = std::numeric_limits<double>::quiet_NaN();
        for (int attempt = 0; attempt < most_readings; ++attempt) {
            const std::uint64_t word = ring_.word(slot).load(std::memory_order_acquire);
            float leaf = 0;
            if (!slot_word::is_committed(word) || slot_word::seq(word) < cleared) break;
            if (!leaf_of_row(slot, slot_word::seq(word), leaf)) continue;
            priorities[i] = priority_rule().priority(leaf);
            break;
        }
    }
}

std::uint64_t ReplayBuffer::stored_size() {
    const Guard guard(learner_mutex_);
    ready();
    retire();
    for (unsigned number = 1; number <= processes_.high_water(); ++number) {
        if (number == identity_.number) continue;
        std::atomic<std::uint64_t>& busy = processes_.record(number).ring[0].busy;
        std::uint64_t epoch = busy.load(std::memory_order_acquire);
        if (epoch != 0 && processes_.dead(number, epoch, 64, locks("ask who is alive in"))) {
            ring_.request_recount();
            // Fails if somebody else was faster; then two recounts are requested, harmlessly.
            busy.compare_exchange_strong(epoch, 0, std::memory_order_acq_rel);
        }
    }
    return local_->stored_size.count(ring_);
}

std::uint64_t ReplayBuffer::next_slot() const {
    const GuardOfMany stays_open(copying_);
    ready();
    return ring_.position() % capacity();
}

double ReplayBuffer::max_priority() const {
    const GuardOfMany stays_open(copying_);
    ready();
    return ring_.max_priority();
}

std::uint64_t ReplayBuffer::rows_added() const {
    const GuardOfMany stays_open(copying_);
    ready();
    std::uint64_t rows = 0;
    for (unsigned number = 1; number <= processes_.high_water(); ++number) {
        rows += processes_.record(number).ring[0].rows.load(std::memory_order_acquire);
    }
    return rows;
}

std::vector<ProcessStatus> ReplayBuffer::processes() const {
    const GuardOfMany stays_open(copying_);
    ready();
    let_others_run();
    const int lock_fd = locks("ask who is alive in");
    std::vector<ProcessStatus> all;
    for (unsigned number = 1; number <= processes_.high_water(); ++number) {
        const ProcessRecord& record = processes_.record(number);
        // Acquire: pairs with the release of enroll(), for the pid.
        if (record.mapped_at.load(std::memory_order_acquire) == 0) continue;
        const char state = number == identity_.number ? 'R' : processes_.state(number, lock_fd);
        if (state == 'X') continue;
        const RingState& counts = record.ring[0];
        all.push_back({number, record.pid.load(), state,
                       counts.rows.load() - counts.rows_before.load(),
                       counts.skips.load() - counts.skips_before.load(),
                       counts.steals.load() - counts.steals_before.load()});
    }
    return all;
}

std::vector<float> ReplayBuffer::leaves() const {
    const GuardOfMany stays_open(copying_);
    ready();
    if (!prioritized()) return {};
    let_others_copy(capacity() * sizeof(float));
    const float* first = at<float>(shape().leaf_offset);
    return std::vector<float>(first, first + capacity());
}

}  // namespace mpbuffer
