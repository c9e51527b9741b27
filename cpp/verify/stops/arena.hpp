// One buffer under fire, as its supervisor sees it: a live handle that goes on working, and the
// comparison of what is in the segment with what the board says must be there.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "board.hpp"
#include "buffer/replay_buffer.hpp"
#include "ring/slot_ring.hpp"
#include "segment/process_table.hpp"

namespace stops {

constexpr std::uint64_t enough_violations = 100;  // then nothing more is learnt

// What went wrong, and how long the slowest call of the live process took.
struct Findings {
    std::uint64_t violations = 0;
    std::vector<std::string> first;  // a few of them
    double slowest = 0;
    std::string slowest_call;
    double slack = 1;  // added to every bound, in seconds

    __attribute__((format(printf, 2, 3))) void add(const char* format, ...);
};

class ScratchFolder {
  public:
    ScratchFolder();
    ScratchFolder(const ScratchFolder&) = delete;
    ScratchFolder& operator=(const ScratchFolder&) = delete;
    ~ScratchFolder();
    const std::string& path() const { return path_; }
    std::vector<std::string> files() const;
    // Of a supervisor that hung and was ended.
    static void remove_left_by(pid_t owner);

  private:
    static std::string prefix(pid_t owner);
    std::string path_;
    pid_t owner_;
};

// The segment without a handle: through a description of its own, which holds no lock.
class SegmentView {
  public:
    explicit SegmentView(const mpbuffer::ReplayBuffer& buffer);
    SegmentView(const SegmentView&) = delete;
    SegmentView& operator=(const SegmentView&) = delete;
    ~SegmentView();

    mpbuffer::SlotRing ring;
    mpbuffer::ProcessTable table;

  private:
    void* base_ = nullptr;
    std::size_t bytes_ = 0;
};

// Shared with forked children; with programs that replace them too, if `fd` is to be its file.
Board* new_board(int* fd = nullptr);
Board* board_of_file(int fd);

// Runs a call of the live process that has `bound` seconds, beside the slack.
template <class Call>
auto within(Findings& findings, const char* name, double bound, Call&& call) {
    struct Watch {
        Findings& findings;
        const char* name;
        double bound;
        std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
        ~Watch() {
            const double seconds =
                std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            if (seconds - bound > findings.slowest) {
                findings.slowest = seconds - bound;
                findings.slowest_call = name;
            }
            if (seconds > bound + findings.slack) {
                findings.add("%s took %.2f s, its bound is %.2f s", name, seconds, bound);
            }
        }
    } watch{findings, name, bound};
    return call();
}

enum class Others { dead, stopped, stopped_in_clear };

// Whether every arena's segment is without a name; else about half of them are.
extern bool all_nameless;

class Arena {
  public:
    Arena(const std::string& directory, Board& board, std::uint64_t capacity, const RowShape& shape,
          Findings& findings, Random& random);
    ~Arena();

    mpbuffer::ReplayBuffer& live() { return *live_; }
    const SegmentView& view() const { return *view_; }
    mpbuffer::SegmentOptions options() const;
    Board& board() { return board_; }
    std::uint64_t capacity() const { return capacity_; }
    const std::string& name() const { return name_; }
    // Whether anybody could still find the segment.
    bool is_there() const;
    // Whether its rows have frames.
    bool framed() const { return shape_.frame_words != 0; }

    // A little of everything that a living explorer, and the learner if free, may do.
    void work(bool may_learn);
    // Empties the buffer and has it counted, so that a later count is not right by a recount.
    void clear();
    // Adds at least a lap of rows, and samples.
    void lap(bool may_learn, bool nobody_else = false);
    // Everything there is to compare, while nobody else runs. `stopped`: how many stand still.
    void verify(Others others, std::size_t stopped, bool role_is_free);
    // Abandoned or held claims in the slot words now.
    std::uint64_t claims() const { return claimed_words().size(); }
    std::vector<std::uint64_t> claimed_words() const;
    // How many claims the dead have left so far: each is still there or was taken over by somebody.
    std::uint64_t claims_ever_left() const;
    // All calls, with nobody else running. Each in its time.
    void each_call(bool all_slots_held, bool role_is_free);
    // What a seat's process complained of, then the seat is free again.
    void collect(Seat& seat);
    void close_live();
    // The same, once all others have ended: nothing may be left.
    void end(const ScratchFolder& folder);
    // Kills may come between a commit and its entry on the board.
    bool commits_may_be_unlogged = false;

  private:
    void verify_rows(Others others, std::size_t stopped);
    void verify_tree();

    std::string directory_;
    std::string name_;
    Board& board_;
    std::uint64_t capacity_;
    RowShape shape_;
    Findings& findings_;
    Random& random_;
    std::unique_ptr<mpbuffer::ReplayBuffer> live_;
    std::unique_ptr<SegmentView> view_;
    std::unique_ptr<Explorer> explorer_;
    std::unique_ptr<LearnerAtWork> learner_;
    struct Newest {
        std::uint64_t seq = 0;
        std::uint64_t id = 0;
    };
    std::vector<Newest> newest_;
};

}  // namespace stops
