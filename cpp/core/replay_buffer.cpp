#include "replay_buffer.hpp"

#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <new>
#include <set>
#include <thread>
#include <utility>

#include "error.hpp"
#include "file_locks.hpp"
#include "in_words.hpp"
#include "stop_points.hpp"

namespace mpbuffer {

namespace {

constexpr int max_redraws = 64;
constexpr int max_scans = 32;

std::uint64_t now_ns() {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000u +
           static_cast<std::uint64_t>(now.tv_nsec);
}

template <class T>
T* at(std::byte* base, std::uint64_t offset) {
    return reinterpret_cast<T*>(base + offset);
}

}  // namespace

std::unique_ptr<ReplayBuffer> ReplayBuffer::create(const BufferSettings& settings) {
    const SegmentHeader header = plan_segment(settings.shape, settings.description, settings.seed);
    SharedSegment segment =
        SharedSegment::create(settings.name, header.total_bytes, settings.segment);
    write_header(segment.data(), header, settings.description);
    std::unique_ptr<ReplayBuffer> buffer(
        new ReplayBuffer(std::move(segment), header, settings.description));
    buffer->ring_.initialise();
    buffer->start();
    stop_point(StopPoint::segment_written);
    buffer->segment_.publish();
    return buffer;
}

std::unique_ptr<ReplayBuffer> ReplayBuffer::attach(const std::string& name,
                                                   const SegmentOptions& options) {
    SharedSegment segment = SharedSegment::attach(name, options);
    std::string description;
    const SegmentHeader header = read_header(segment.data(), segment.size(), name, description);
    std::unique_ptr<ReplayBuffer> buffer(
        new ReplayBuffer(std::move(segment), header, std::move(description)));
    buffer->start();
    return buffer;
}

std::unique_ptr<ReplayBuffer> ReplayBuffer::attach_descriptor(int fd, const std::string& name,
                                                              const SegmentOptions& options) {
    SharedSegment segment = SharedSegment::attach_descriptor(fd, name, options);
    std::string description;
    const SegmentHeader header = read_header(segment.data(), segment.size(), name, description);
    std::unique_ptr<ReplayBuffer> buffer(
        new ReplayBuffer(std::move(segment), header, std::move(description)));
    buffer->start();
    return buffer;
}

ReplayBuffer::ReplayBuffer(SharedSegment segment, const SegmentHeader& header,
                           std::string description)
    : segment_(std::move(segment)),
      header_(header),
      name_(segment_.name()),
      description_(std::move(description)),
      here_(fork_generation()),
      local_(std::make_unique<Local>(header.ring[0].capacity)) {
    std::byte* base = segment_.data();
    const RingEntry& ring = shape();
    ring_ =
        SlotRing(at<RingCounters>(base, ring.counters_offset), at<SlotMeta>(base, ring.meta_offset),
                 base + ring.records_offset, ring.capacity, ring.stride);
    processes_ = ProcessTable(base + header_.process_table_offset);
    line_ = at<LearnerLine>(base, header_.learner_line_offset);
}

void ReplayBuffer::start() {
    watch();
    open_locks();
    enroll();
}

// A child forked between the opening and the assignment would keep the description, and with it
// this handle's locks.
void ReplayBuffer::open_locks() const {
    const ForkPause pause;
    if (lock_fd_ < 0) lock_fd_ = segment_.open_lock_descriptor();
}

ReplayBuffer::~ReplayBuffer() {
    close();
    unwatch();
}

void ReplayBuffer::close() noexcept {
    if (!open_) return;
    open_ = false;
    // A child forked half-way would close descriptors and unmap memory that are no longer its.
    const ForkPause pause;
    if (here_.load(std::memory_order_relaxed) == fork_generation() && lock_fd_ >= 0) {
        try {
            release_learner();
            processes_.leave(lock_fd_, identity_);
            stop_point(StopPoint::handle_left);
        } catch (const std::exception&) {
            // The locks go with the descriptor below, whatever the program did to it before.
        }
    }
    local_.reset();
    segment_.close(lock_fd_);
    if (lock_fd_ >= 0) ::close(lock_fd_);
    lock_fd_ = -1;
}

void ReplayBuffer::after_fork_in_child() noexcept {
    // Not unlocked: the description is still the parent's. Closing the copy keeps it so.
    if (lock_fd_ >= 0) ::close(lock_fd_);
    lock_fd_ = -1;
    identity_ = {};
    (void)local_.release();
    leaf_priority_ = -1;
    new (&add_mutex_) std::mutex;
    new (&learner_mutex_) std::mutex;
    new (&identity_mutex_) std::mutex;
}

void ReplayBuffer::ready() const {
    if (!open_) [[unlikely]] {
        throw BufferClosed("cannot use '" + name_ + "': this handle was closed");
    }
    if (here_.load(std::memory_order_acquire) != fork_generation()) [[unlikely]]
        adopt();
}

void ReplayBuffer::adopt() const {
    const std::scoped_lock lock(identity_mutex_);
    if (here_.load(std::memory_order_relaxed) == fork_generation()) return;
    open_locks();
    if (!local_) local_ = std::make_unique<Local>(capacity());
    enroll();
    // Release: pairs with the acquire in ready(), for the identity and all else set here.
    here_.store(fork_generation(), std::memory_order_release);
}

void ReplayBuffer::enroll() const {
    std::uint64_t left_busy = 0;
    const Identity identity = processes_.enroll(lock_fd_, &left_busy);
    if (left_busy != 0) {
        ring_.doubt();
        processes_.forget_busy(identity, left_busy);
    }
    local_->generator = Generator(header_.seed, identity.number, identity.epoch);
    identity_ = identity;
}

RingWriter ReplayBuffer::writer() const {
    RingState& state = processes_.record(identity_.number).ring[0];
    return {identity_.number, identity_.epoch, &state.rows,
            &state.skips,     &state.steals,   &state.busy};
}

bool ReplayBuffer::dead(unsigned number, std::uint64_t epoch) const {
    return processes_.dead(number, epoch, slot_word::epoch_bits, lock_fd_);
}

int ReplayBuffer::data_descriptor() const {
    ready();
    return segment_.data_descriptor();
}

std::uint64_t ReplayBuffer::add(std::uint64_t n, std::span<const FieldSource> fields,
                                const float* leaves, double largest_priority) {
    ready();
    float common_leaf = 0;
    if (prioritized() && leaves == nullptr) {
        const double largest = ring_.max_priority();
        if (largest != leaf_priority_) {
            leaf_ = priority_rule().leaf(largest);
            leaf_priority_ = largest;
        }
        common_leaf = leaf_;
    }
    const AddOutcome outcome = ring_.add(
        n, writer(), [this](unsigned owner, std::uint64_t epoch) { return dead(owner, epoch); },
        [fields, leaves, common_leaf](std::uint64_t i, std::byte* record) {
            for (const FieldSource& field : fields) {
                store_to_record(record + field.offset, field.values + i * field.step, field.bytes);
                stop_point(StopPoint::field_copied);
            }
            return leaves == nullptr ? common_leaf : leaves[i];
        });
    if (outcome.rows_added < n) [[unlikely]]
        throw_slots_held(outcome.rows_added, n);
    if (largest_priority > ring_.max_priority()) ring_.raise_max_priority(largest_priority);
    return outcome.first_slot;
}

void ReplayBuffer::throw_slots_held(std::uint64_t added, std::uint64_t n) const {
    std::set<unsigned> owners;
    for (std::uint64_t slot = 0; slot < capacity() && owners.size() < 8; ++slot) {
        const unsigned owner = slot_word::owner(ring_.word(slot).load(std::memory_order_relaxed));
        if (owner != 0 && owner <= max_processes) owners.insert(owner);
    }
    std::string holders;
    for (const unsigned owner : owners) {
        if (!holders.empty()) holders += ", ";
        holders += process_in_words(owner, processes_.record(owner).pid.load(),
                                    processes_.state(owner, lock_fd_));
    }
    throw SlotsHeld("cannot add to '" + name_ + "': every slot is being written by others, " +
                    (holders.empty() ? "who were faster" : holders) + "; " + std::to_string(added) +
                    " of " + std::to_string(n) +
                    " rows were added; end or continue these processes");
}

void ReplayBuffer::throw_empty(const char* why) const {
    throw EmptyBuffer("cannot sample from '" + name_ + "': " + why);
}

void ReplayBuffer::clear() {
    ready();
    ring_.clear(writer());
}

Generator& ReplayBuffer::generator() {
    ready();
    return local_->generator;
}

void ReplayBuffer::sample_uniform(std::size_t count, const SampleTarget& target) {
    Generator& draws = generator();
    const std::uint64_t cleared = ring_.clear_before();
    const std::uint64_t position = ring_.position();
    const std::uint64_t oldest = std::max(cleared, position - std::min(position, capacity()));
    if (position <= oldest) throw_empty("no rows have been added");
    const std::uint64_t span = position - oldest;
    const std::uint64_t first_slot = oldest % capacity();
    const auto draw = [&]() {
        const std::uint64_t slot = first_slot + draws.below(span);
        return slot < capacity() ? slot : slot - capacity();
    };
    std::vector<std::uint64_t>& slots = local_->slots;
    slots.resize(count);
    for (std::uint64_t& slot : slots) {
        slot = draw();
        ring_.prefetch_meta(slot);
        ring_.prefetch_record(slot, shape().row_bytes);
    }
    std::vector<std::uint64_t> filled;
    for (std::size_t i = 0; i < count; ++i) {
        std::uint64_t slot = slots[i];
        for (int redraws = 0;; ++redraws) {
            std::uint64_t* const generation = target.generations + i;
            *generation = ring_.read_any(slot, cleared, [&](const std::byte* record) {
                for (const FieldTarget& field : target.fields) {
                    load_from_record(field.values + i * field.bytes, record + field.offset,
                                     field.bytes);
                }
            });
            if (*generation != 0) break;
            if (redraws < max_redraws) {
                slot = draw();
                continue;
            }
            // Few rows are complete: look for them, a bounded number of times.
            if (redraws >= max_redraws + max_scans) {
                throw_empty("no row is complete: every slot is empty or being written");
            }
            if (redraws > max_redraws) std::this_thread::yield();
            if (filled.empty() || redraws > max_redraws) filled = filled_slots(false);
            if (filled.empty()) continue;
            slot = filled[draws.below(filled.size())];
        }
        target.indexes[i] = static_cast<std::int64_t>(slot);
    }
}

std::vector<std::uint64_t> ReplayBuffer::filled_slots(bool shuffle) {
    ready();
    const std::uint64_t cleared = ring_.clear_before();
    std::vector<std::uint64_t> filled;
    for (std::uint64_t slot = 0; slot < capacity(); ++slot) {
        const std::uint64_t word = ring_.word(slot).load(std::memory_order_acquire);
        if (slot_word::is_committed(word) && slot_word::seq(word) >= cleared)
            filled.push_back(slot);
    }
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
    ready();
    const std::uint64_t cleared = ring_.clear_before();
    for (int attempt = 0; attempt < max_redraws; ++attempt) {
        const std::uint64_t word = ring_.word(slot).load(std::memory_order_relaxed);
        if (slot_word::seq(word) < cleared) return false;
        if (ring_.read_any(slot, cleared, [&](const std::byte* record) {
                for (const FieldTarget& field : fields) {
                    load_from_record(field.values + i * field.bytes, record + field.offset,
                                     field.bytes);
                }
            }) != 0) {
            return true;
        }
        std::this_thread::yield();
    }
    return false;
}

std::uint64_t ReplayBuffer::stored_size() {
    ready();
    for (unsigned number = 1; number <= processes_.high_water(); ++number) {
        if (number == identity_.number) continue;
        std::atomic<std::uint64_t>& busy = processes_.record(number).ring[0].busy;
        std::uint64_t epoch = busy.load(std::memory_order_acquire);
        if (epoch != 0 && processes_.dead(number, epoch, 64, lock_fd_)) {
            ring_.doubt();
            // Fails if somebody else was faster; then the doubt was raised twice, harmlessly.
            busy.compare_exchange_strong(epoch, 0, std::memory_order_acq_rel);
        }
    }
    RingCounters& counters = ring_.counters();
    const std::uint64_t doubts = counters.doubts.load(std::memory_order_acquire);
    const std::uint64_t cleared = ring_.clear_before();
    if (doubts != local_->doubts_seen || cleared != local_->cleared_seen) return recount(doubts);
    const std::uint64_t counted =
        filled_word::count(counters.filled.load(std::memory_order_acquire));
    std::erase_if(local_->claims, [this, cleared](const Local::SeenClaim& claim) {
        return ring_.word(claim.slot).load(std::memory_order_acquire) != claim.word ||
               slot_word::seq(claim.word) < cleared;
    });
    // Fewer are counted than known claims only while somebody is clearing.
    return counted - std::min<std::uint64_t>(counted, local_->claims.size());
}

// A slot counts if it holds a row, or a claim that a counted row gave way to: that claim's commit
// will not raise the count. A claim of an empty slot raises it itself.
std::uint64_t ReplayBuffer::recount(std::uint64_t doubts) {
    RingCounters& counters = ring_.counters();
    std::uint64_t before = counters.filled.load(std::memory_order_acquire);
    const std::uint64_t cleared = ring_.clear_before();
    std::uint64_t counted = 0;
    local_->claims.clear();
    for (std::uint64_t slot = 0; slot < capacity(); ++slot) {
        const std::uint64_t word = ring_.word(slot).load(std::memory_order_acquire);
        if (slot_word::seq(word) < cleared) continue;
        if (slot_word::is_committed(word)) {
            ++counted;
        } else if (!slot_word::fresh(word)) {
            ++counted;
            local_->claims.push_back({slot, word});
        }
    }
    // A raise since `before` fails the exchange; a commit since then whose raise is still to come
    // meets a changed recount and doubts again: so the exchange is made even where the count is
    // right already. Acq_rel: pairs with the acquire load in add().
    if (counters.filled.compare_exchange_strong(before, filled_word::next(before, counted),
                                                std::memory_order_acq_rel)) {
        local_->doubts_seen = doubts;
        local_->cleared_seen = cleared;
    }
    return counted - local_->claims.size();
}

std::uint64_t ReplayBuffer::next_slot() const {
    ready();
    return ring_.position() % capacity();
}

double ReplayBuffer::max_priority() const {
    ready();
    return ring_.max_priority();
}

std::uint64_t ReplayBuffer::rows_added() const {
    ready();
    std::uint64_t rows = 0;
    for (unsigned number = 1; number <= processes_.high_water(); ++number) {
        rows += processes_.record(number).ring[0].rows.load(std::memory_order_acquire);
    }
    return rows;
}

std::vector<ProcessStatus> ReplayBuffer::processes() const {
    ready();
    std::vector<ProcessStatus> all;
    for (unsigned number = 1; number <= processes_.high_water(); ++number) {
        const ProcessRecord& record = processes_.record(number);
        if (record.epoch.load(std::memory_order_acquire) == 0) continue;
        const RingState& counts = record.ring[0];
        all.push_back({number, record.pid.load(),
                       number == identity_.number ? 'R' : processes_.state(number, lock_fd_),
                       counts.rows.load() - record.rows_before.load(),
                       counts.skips.load() - record.skips_before.load(),
                       counts.steals.load() - record.steals_before.load()});
    }
    return all;
}

LearnerStatus ReplayBuffer::learner_status() const {
    ready();
    LearnerStatus status{};
    for (int attempt = 0; attempt < max_redraws; ++attempt) {
        // Acquire: pairs with the release of the sequence that publish() stores last.
        const std::uint64_t sequence = line_->sequence.load(std::memory_order_acquire);
        status = {line_->process.load(),    line_->pid.load(),          line_->since.load(),
                  line_->folded.load(),     line_->sampleable.load(),   line_->total.load(),
                  line_->least_leaf.load(), line_->updates.load(),      line_->stale.load(),
                  line_->draws.load(),      line_->lines_visited.load()};
        std::atomic_signal_fence(std::memory_order_seq_cst);
        if (sequence % 2 == 0 && line_->sequence.load() == sequence) break;
    }
    if (status.process != 0 && !is_learner() && !held_elsewhere(lock_fd_, lock_byte::learner)) {
        status.process = 0;
    }
    return status;
}

std::vector<float> ReplayBuffer::leaves() const {
    ready();
    if (!prioritized()) return {};
    const float* first = at<float>(segment_.data(), shape().leaf_offset);
    return std::vector<float>(first, first + capacity());
}

std::string ReplayBuffer::holder_of_learner_role() const {
    const auto number = static_cast<unsigned>(line_->process.load());
    if (number == 0 || number > max_processes) return "another process is just taking it";
    return process_in_words(number, line_->pid.load(), processes_.state(number, lock_fd_)) +
           " has had it since " + time_in_words(line_->since.load());
}

Learner& ReplayBuffer::learner() {
    ready();
    if (local_->learner) [[likely]]
        return *local_->learner;
    if (!prioritized()) {
        throw InvalidArgument("cannot take the learner's role of '" + name_ +
                              "': the buffer is not prioritized");
    }
    if (!try_lock(lock_fd_, lock_byte::learner, LockKind::exclusive)) {
        throw LearnerBusy("cannot take the learner's role of '" + name_ +
                          "': " + holder_of_learner_role() +
                          "; it is free after its close(), release_learner() or end");
    }
    try {
        stop_point(StopPoint::role_taken);
        const RingEntry& ring = shape();
        std::byte* base = segment_.data();
        local_->learner = std::make_unique<Learner>(
            ring_, at<std::atomic<std::uint64_t>>(base, ring.leaf_seq_offset),
            at<float>(base, ring.leaf_offset), line_, priority_rule(), ring.row_bytes);
    } catch (...) {
        unlock(lock_fd_, lock_byte::learner);
        throw;
    }
    local_->learner->announce(identity_.number, static_cast<std::uint64_t>(getpid()), now_ns());
    return *local_->learner;
}

void ReplayBuffer::release_learner() {
    if (!local_ || !local_->learner) return;
    local_->learner->announce(0, 0, 0);
    local_->learner.reset();
    unlock(lock_fd_, lock_byte::learner);
}

}  // namespace mpbuffer
