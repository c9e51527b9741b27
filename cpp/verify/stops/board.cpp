#include "board.hpp"

#include <signal.h>
#include <unistd.h>

#include <algorithm>

#include "base/error.hpp"

namespace stops {

using namespace mpbuffer;

Armed armed;
void (*during_read)() = nullptr;
thread_local CurrentAdd current_add;

namespace {

// The id first and the seq last: a kill between them leaves an entry that says nothing.
void log_commit(std::uint64_t seq) {
    if (current_add.seat == nullptr) return;
    CommittedRow& entry = current_add.seat->newest[seq % current_add.capacity];
    entry.seq.store(0, std::memory_order_relaxed);
    entry.id.store(current_add.next_id++, std::memory_order_release);
    entry.seq.store(seq, std::memory_order_release);
    current_add.seat->committed.fetch_add(1, std::memory_order_relaxed);
}

void at_stop_point(StopPoint point, std::uint64_t detail) {
    if (point == StopPoint::row_committed) log_commit(detail);
    if (point == StopPoint::row_copied && during_read != nullptr) during_read();
    if (armed.on && point == armed.point && --armed.countdown == 0) {
        armed.on = false;
        armed.seat->hit.store(1);
        if (armed.act != nullptr) {
            armed.act();
        } else {
            kill(getpid(), armed.signal);
        }
    }
}

}  // namespace

std::vector<std::size_t> RowShape::field_words() const {
    std::vector<std::size_t> all = {1, words - 2, 1};
    if (frame_words != 0) all.insert(all.end(), 2, frame_words);
    return all;
}

RowLayout RowShape::layout() const {
    std::vector<Field> fields;
    for (const std::size_t each : field_words()) {
        fields.push_back({"field" + std::to_string(fields.size()), each * 8, 8});
    }
    const Schema schema(fields);
    if (frame_words == 0) return RowLayout(schema);
    const PlaneCut frame{1, 1, false, 8};
    return RowLayout(schema, {{}, {}, {}, frame, frame});
}

std::string RowShape::description() const {
    return R"({"fields": [], "words": )" + std::to_string(words) + R"(, "frame_words": )" +
           std::to_string(frame_words) + "}";
}

RowShape RowShape::of(const ReplayBuffer& buffer) {
    RowShape shape{buffer.shape().row_bytes / 8};
    std::sscanf(buffer.description().c_str(), R"({"fields": [], "words": %zu, "frame_words": %zu})",
                &shape.words, &shape.frame_words);
    return shape;
}

std::unique_ptr<ReplayBuffer> attach(const std::string& name, const SegmentOptions& options) {
    auto buffer = ReplayBuffer::attach(name, options);
    const RowShape shape = RowShape::of(*buffer);
    if (shape.frame_words != 0) buffer->describe_rows(shape.layout());
    return buffer;
}

RowsRead::RowsRead(const RowShape& shape, std::size_t count)
    : shape_(shape), row_(shape.all_words()) {
    std::size_t offset = 0;
    for (const std::size_t words : shape.field_words()) {
        fields_.emplace_back(count * words);
        targets_.push_back(
            {reinterpret_cast<std::byte*>(fields_.back().data()), offset, words * 8});
        offset += words * 8;
    }
}

const std::uint64_t* RowsRead::row(std::size_t i) {
    std::uint64_t* to = row_.data();
    const std::vector<std::size_t> words = shape_.field_words();
    for (std::size_t f = 0; f < words.size(); ++f) {
        to = std::copy_n(&fields_[f][i * words[f]], words[f], to);
    }
    return row_.data();
}

void install_hook() { stop_point_hook = at_stop_point; }

Explorer::Explorer(ReplayBuffer& buffer, Board& board, Seat& seat)
    : buffer_(buffer),
      seat_(seat),
      next_id_((board.next_explorer.fetch_add(1) + 1) << 24),
      shape_(RowShape::of(buffer)) {}

bool Explorer::add(std::uint64_t n) {
    const std::size_t words = shape_.all_words();
    rows_.resize(n * words);
    leaves_.resize(n);
    first_id_ = next_id_;
    next_id_ += n;
    for (std::uint64_t i = 0; i < n; ++i) {
        shape_.fill(first_id_ + i, &rows_[i * words]);
        leaves_[i] = leaf_of_row(first_id_ + i, 0);
    }
    return store();
}

bool Explorer::add_again() { return store(); }

bool Explorer::store() {
    const std::size_t n = leaves_.size();
    const auto* bytes = reinterpret_cast<const std::byte*>(rows_.data());
    std::vector<FieldSource> fields;
    std::size_t offset = 0;
    for (const std::size_t words : shape_.field_words()) {
        fields.push_back({bytes + offset, shape_.all_words() * 8, offset, words * 8});
        offset += words * 8;
    }
    const std::uint64_t before = seat_.committed.load();
    current_add = {&seat_, first_id_, buffer_.capacity()};
    seat_.activity.store(Activity::add);
    bool all = true;
    try {
        buffer_.add(n, fields, leaves_.data(), 0);
    } catch (const SlotsHeld&) {
        all = false;
    }
    seat_.activity.store(Activity::none);
    current_add = {};
    if (all) {
        const std::uint64_t committed = seat_.committed.load() - before;
        if (committed != n) {
            seat_.complain("add said %llu rows, %llu were committed",
                           static_cast<unsigned long long>(n),
                           static_cast<unsigned long long>(committed));
        }
        seat_.acknowledged += n;
    }
    return all;
}

void Explorer::clear() {
    seat_.activity.store(Activity::clear);
    buffer_.clear();
    seat_.activity.store(Activity::none);
}

void LearnerAtWork::fold() {
    buffer_.take_learner_role();
    seat_.activity.store(Activity::fold);
    buffer_.fold();
    seat_.activity.store(Activity::none);
}

void LearnerAtWork::check(RowsRead& read, std::size_t count, const char* what) {
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t* const row = read.row(i);
        ids_[i] = row[0];
        if (!shape_.is_whole(row)) {
            seat_.complain("torn row in a %s sample: slot %lld", what,
                           static_cast<long long>(slots_[i]));
        }
        if (seqs_[i] % buffer_.capacity() != static_cast<std::uint64_t>(slots_[i])) {
            seat_.complain("a %s sample says seq %llu of slot %lld", what,
                           static_cast<unsigned long long>(seqs_[i]),
                           static_cast<long long>(slots_[i]));
        }
    }
    seat_.samples += count;
}

bool LearnerAtWork::sample(std::size_t count) {
    sampled_ = 0;
    RowsRead read(shape_, count);
    ids_.resize(count);
    slots_.resize(count);
    seqs_.resize(count);
    weights_.resize(count);
    buffer_.take_learner_role();
    seat_.activity.store(Activity::sample);
    bool drawn = true;
    try {
        buffer_.gather(count, 0.4, {read.targets(), slots_.data(), seqs_.data(), weights_.data()});
    } catch (const EmptyBuffer&) {
        drawn = false;
    }
    seat_.activity.store(Activity::none);
    if (!drawn) return false;
    check(read, count, "prioritized");
    sampled_ = count;
    return true;
}

void LearnerAtWork::update() {
    std::vector<std::int64_t> slots;
    std::vector<std::uint64_t> seqs;
    std::vector<float> leaves;
    std::vector<double> priorities;
    for (std::size_t i = 0; i < sampled_; ++i) {
        if (std::find(slots.begin(), slots.end(), slots_[i]) != slots.end()) continue;
        UpdateLog& log = board_.updates[slots_[i]];
        if (log.seq.load() != seqs_[i]) {
            log.seq = 0;
            log.begun = 0;
            log.ended = 0;
            log.seq = seqs_[i];
        }
        // After the crash of a learner the row may have the version that was begun.
        const unsigned version = log.begun.load() + 1;
        if (version > max_version || log.begun.load() != log.ended.load()) continue;
        log.begun = version;
        slots.push_back(slots_[i]);
        seqs.push_back(seqs_[i]);
        leaves.push_back(leaf_of_row(ids_[i], version));
        priorities.push_back(1.0);
    }
    if (slots.empty()) return;
    seat_.activity.store(Activity::update);
    const std::uint64_t stale = buffer_.update(slots, seqs, priorities, leaves);
    seat_.activity.store(Activity::none);
    if (stale == 0) {
        for (const std::int64_t slot : slots) {
            board_.updates[slot].ended = board_.updates[slot].begun.load();
        }
    }
    // Only rows that are gone are stale.
    std::uint64_t there = 0;
    for (std::size_t i = 0; i < slots.size(); ++i) {
        there +=
            ring_.word(static_cast<std::uint64_t>(slots[i])) == slot_word::committed(seqs[i]) &&
            seqs[i] >= ring_.clear_before();
    }
    if (slots.size() - stale < there) {
        seat_.complain("%llu of %zu updates were refused, but %llu of the rows are still there",
                       static_cast<unsigned long long>(stale), slots.size(),
                       static_cast<unsigned long long>(there));
    }
}

bool LearnerAtWork::sample_uniform(std::size_t count) {
    RowsRead read(shape_, count);
    ids_.resize(count);
    slots_.resize(count);
    seqs_.resize(count);
    sampled_ = 0;
    seat_.activity.store(Activity::sample);
    bool drawn = true;
    try {
        buffer_.gather_uniform(count, {read.targets(), slots_.data(), seqs_.data(), nullptr});
    } catch (const EmptyBuffer&) {
        drawn = false;
    }
    seat_.activity.store(Activity::none);
    if (drawn) check(read, count, "uniform");
    return drawn;
}

}  // namespace stops
