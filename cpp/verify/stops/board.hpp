// What the processes of a campaign share beside the buffer: who committed which row, who updated
// which priority, who is where. It outlives each of them, so nothing that was acknowledged is
// forgotten with the process that was told so.
//
// Every row tells from its id alone what each of its bytes has to be, and every leaf whose it is:
// its mantissa is a hash of the row's id, its exponent the number of updates that the row has had.
#pragma once

#include <atomic>
#include <bit>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/stop_points.hpp"
#include "buffer/replay_buffer.hpp"

namespace stops {

constexpr std::size_t max_capacity = 128;
constexpr std::size_t max_seats = 128;
constexpr unsigned max_version = 20;

inline std::uint64_t mixed(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(mixed(seed)) {}
    std::uint64_t next() { return state_ = mixed(state_); }
    std::uint64_t below(std::uint64_t bound) { return next() % bound; }
    std::uint64_t between(std::uint64_t least, std::uint64_t most) {
        return least + below(most - least + 1);
    }
    bool one_in(std::uint64_t n) { return below(n) == 0; }

  private:
    std::uint64_t state_;
};

// A row has `words` of its own, and then, if `frame_words` is not 0, two frames of so many.
struct RowShape {
    std::size_t words;
    std::size_t frame_words = 0;
    std::uint64_t frames = 0;  // how many the segment holds; 0: as it comes

    std::size_t all_words() const { return words + 2 * frame_words; }
    // The word that the row of this id has at `i`. Most rows of one process share no frame, so that
    // rows go early: but each fourth one's first is the second of the row before.
    std::uint64_t word(std::uint64_t id, std::size_t i) const {
        if (i == 0) return id;
        if (i < words) return id * 0x9e3779b97f4a7c15u + i * i;
        const bool second = i >= words + frame_words;
        const std::uint64_t frame = 2 * id + (second ? 2 : id % 4 == 1 ? 0 : 1);
        return frame * 0xd6e8feb86659fd93u + (i - words) % frame_words;
    }
    void fill(std::uint64_t id, std::uint64_t* row) const {
        for (std::size_t i = 0; i < all_words(); ++i) row[i] = word(id, i);
    }
    bool is_whole(const std::uint64_t* row) const {
        bool whole = row[0] != 0;
        for (std::size_t i = 1; i < all_words(); ++i) whole = whole && row[i] == word(row[0], i);
        return whole;
    }
    // Its fields, in their order: the first word, those between, the last; the two frames.
    std::vector<std::size_t> field_words() const;
    mpbuffer::RowLayout layout() const;
    // What a segment's description says of it, and what is read there.
    std::string description() const;
    static RowShape of(const mpbuffer::ReplayBuffer& buffer);
};

// As ReplayBuffer::attach, of a segment of an arena.
std::unique_ptr<mpbuffer::ReplayBuffer> attach(const std::string& name,
                                               const mpbuffer::SegmentOptions& options);

// Memory for rows that are read, and the rows in it.
class RowsRead {
  public:
    RowsRead(const RowShape& shape, std::size_t count);
    std::span<const mpbuffer::FieldTarget> targets() const { return targets_; }
    // Row `i` in one piece; valid until the next call.
    const std::uint64_t* row(std::size_t i);

  private:
    RowShape shape_;
    std::vector<std::vector<std::uint64_t>> fields_;
    std::vector<mpbuffer::FieldTarget> targets_;
    std::vector<std::uint64_t> row_;
};

inline float leaf_of_row(std::uint64_t id, unsigned version) {
    const auto mantissa = static_cast<std::uint32_t>(mixed(id) >> 41);
    return std::bit_cast<float>(((127 + version) << 23) | mantissa);
}

// Which update of row `id` the leaf is; -1 if it is no leaf of that row.
inline int version_of_leaf(float leaf, std::uint64_t id) {
    const auto version = static_cast<int>(std::bit_cast<std::uint32_t>(leaf) >> 23) - 127;
    if (version < 0 || version > static_cast<int>(max_version)) return -1;
    return leaf == leaf_of_row(id, static_cast<unsigned>(version)) ? version : -1;
}

struct CommittedRow {
    std::atomic<std::uint64_t> seq;
    std::atomic<std::uint64_t> id;
};

// How far the updates of the row of `seq` have got. Between begin and end either version is right.
struct UpdateLog {
    std::atomic<std::uint64_t> seq;
    std::atomic<std::uint32_t> begun;
    std::atomic<std::uint32_t> ended;
};

enum class Activity : std::uint32_t { none, add, clear, sample, fold, update };

struct Seat {
    std::atomic<std::uint32_t> hit;
    std::atomic<std::uint32_t> answer;  // what came out of the call, where the supervisor asks
    std::atomic<Activity> activity;
    std::atomic<std::uint64_t> acknowledged;  // rows of add calls that have returned
    std::atomic<std::uint64_t> committed;
    std::atomic<std::uint64_t> samples;
    std::atomic<std::uint32_t> complains;
    char complaint[240];
    CommittedRow newest[max_capacity];  // of each slot, the last row that this process committed

    void reset() {
        hit = 0;
        answer = 0;
        activity = Activity::none;
        acknowledged = 0;
        committed = 0;
        samples = 0;
        complains = 0;
        complaint[0] = '\0';
        for (CommittedRow& row : newest) row.seq.store(0, std::memory_order_relaxed);
    }
    __attribute__((format(printf, 2, 3))) void complain(const char* format, ...) {
        if (complains.load() != 0) return;
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(complaint, sizeof complaint, format, arguments);
        va_end(arguments);
        complains = 1;
    }
};

struct Board {
    std::atomic<std::uint32_t> go;
    std::atomic<std::uint32_t> quit;
    std::atomic<std::uint64_t> next_explorer;
    std::atomic<std::uint32_t> next_seat;  // where processes take their seats by themselves
    std::atomic<std::uint32_t> execs;
    UpdateLog updates[max_capacity];
    Seat seats[max_seats];
};

// At which step this process is to die or stop, and at which of the times it gets there.
struct Armed {
    bool on = false;
    mpbuffer::StopPoint point{};
    std::uint64_t countdown = 0;
    int signal = 0;
    Seat* seat = nullptr;
    void (*act)() = nullptr;  // called instead of the signal, if given
};
extern Armed armed;

// Called at each row_copied of this thread, before the reader's second look, unless empty.
extern void (*during_read)();

// The add call that this thread is in, for the hook to know whose row has been committed.
struct CurrentAdd {
    Seat* seat = nullptr;
    std::uint64_t next_id = 0;
    std::uint64_t capacity = 1;
};
extern thread_local CurrentAdd current_add;

void install_hook();

class Explorer {
  public:
    Explorer(mpbuffer::ReplayBuffer& buffer, Board& board, Seat& seat);
    // Adds n rows; false if others held every slot.
    bool add(std::uint64_t n);
    // The rows of the last add once more, without the time to make them up.
    bool add_again();
    void clear();

  private:
    mpbuffer::ReplayBuffer& buffer_;
    Seat& seat_;
    bool store();
    std::uint64_t next_id_;
    std::uint64_t first_id_ = 0;
    RowShape shape_;
    std::vector<std::uint64_t> rows_;
    std::vector<float> leaves_;
};

// Samples and updates, and logs what it has been told.
class LearnerAtWork {
  public:
    // ring: the same ring, seen past the buffer.
    LearnerAtWork(mpbuffer::ReplayBuffer& buffer, const mpbuffer::SlotRing& ring, Board& board,
                  Seat& seat)
        : buffer_(buffer), shape_(RowShape::of(buffer)), ring_(ring), board_(board), seat_(seat) {}
    void fold();
    // A prioritized sample; false if no row is there.
    bool sample(std::size_t count);
    // Updates the rows of the last sample.
    void update();
    bool sample_uniform(std::size_t count);

  private:
    void check(RowsRead& read, std::size_t count, const char* what);
    mpbuffer::ReplayBuffer& buffer_;
    RowShape shape_;
    mpbuffer::SlotRing ring_;
    Board& board_;
    Seat& seat_;
    std::vector<std::uint64_t> ids_;
    std::vector<std::int64_t> slots_;
    std::vector<std::uint64_t> seqs_;
    std::vector<float> weights_;
    std::size_t sampled_ = 0;
};

}  // namespace stops
