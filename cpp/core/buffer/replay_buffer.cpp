#include "buffer/replay_buffer.hpp"

#include <cmath>
#include <utility>

#include "base/error.hpp"
#include "base/stop_points.hpp"
#include "base/words.hpp"

namespace mpbuffer {

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
        for (unsigned i = 1; i <= buffer->sources_.rings(); ++i)
            buffer->sources_.ring(i).initialise();
        buffer->start();
        stop_point(StopPoint::segment_written);
        if (!settings.hidden) buffer->segment_.make_visible();
        return buffer;
    });
}

ReplayBuffer::ReplayBuffer(SharedSegment segment, const SegmentHeader& header,
                           std::string description)
    : Attachable(std::move(segment), header, std::move(description), RoleKind::learner),
      sources_(at<std::byte>(0), header_),
      local_(std::make_unique<Local>(capacity())) {
    ring_ = SlotRing(at<std::byte>(0), shape());
}

void ReplayBuffer::describe_rows(RowLayout layout) {
    std::vector<std::uint64_t> source_bytes;
    for (unsigned i = 1; i <= sources_.rings(); ++i) {
        source_bytes.push_back(header_.ring[i].row_bytes);
    }
    if (layout.stored_bytes() != shape().row_bytes || layout.source_bytes() != source_bytes) {
        throw SegmentMismatch("cannot attach '" + name_ + "': its fields make rows of " +
                              std::to_string(layout.stored_bytes()) + " bytes, its header says " +
                              std::to_string(shape().row_bytes) +
                              (source_bytes.empty() ? "" : ", or what they refer to differs"));
    }
    sources_.describe(std::move(layout));
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
    redraws_ = 0;
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

void ReplayBuffer::clear() {
    const Guard guard(add_mutex_);
    ready();
    ring_.clear();
}

// Rows whose sources are gone are no longer there. Under learner_mutex_.
void ReplayBuffer::retire() {
    if (sources_.any()) sources_.retire(ring_);
}

std::uint64_t ReplayBuffer::stored_size() {
    const Guard guard(learner_mutex_);
    return count_rows();
}

// Under learner_mutex_.
std::uint64_t ReplayBuffer::count_rows() {
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

BufferStatistics ReplayBuffer::statistics() {
    BufferStatistics all{};
    all.handles = processes().size();
    const Guard guard(learner_mutex_);
    all.fill = count_rows();
    all.early = ring_.counters().early.load(std::memory_order_relaxed);
    for (unsigned i = 1; i <= sources_.rings(); ++i) all.sources += sources_.ring(i).capacity();
    for (unsigned number = 1; number <= processes_.high_water(); ++number) {
        const ProcessRecord& record = processes_.record(number);
        for (unsigned i = 0; i <= sources_.rings(); ++i) {
            const RingState& counts = record.ring[i];
            const std::uint64_t written = counts.rows.load(std::memory_order_acquire);
            (i == 0 ? all.rows_added : all.sources_written) += written;
            all.skips += counts.skips.load(std::memory_order_relaxed);
            all.steals += counts.steals.load(std::memory_order_relaxed);
        }
    }
    all.redraws = redraws_;
    return all;
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
