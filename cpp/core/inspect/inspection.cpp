#include "inspect/inspection.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>
#include <thread>
#include <utility>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/tsan.hpp"
#include "base/words.hpp"
#include "os/descriptor.hpp"
#include "os/file_locks.hpp"
#include "os/fork_watch.hpp"
#include "ring/slot_ring.hpp"
#include "segment/names.hpp"
#include "segment/process_table.hpp"
#include "segment/segment_file.hpp"
#include "segment/sweep.hpp"
#include "select/random.hpp"
#include "select/sum_tree.hpp"
#include "weights/version_slots.hpp"

namespace mpbuffer {

namespace {

// Keeps a second look behind what was read before it. ThreadSanitizer knows no fences; nothing is
// decided by a torn look but another one.
void acquire_fence() {
#if !MPBUFFER_TSAN
    std::atomic_thread_fence(std::memory_order_acquire);
#endif
}

// Only what is wrong at each of so many looks, with a pause before each, is damage.
constexpr int looks = 5;

// Of this process alone: a child that is forked meanwhile does not keep the file.
class ReadOnlyFile final : private ForkWatched {
  public:
    ReadOnlyFile(const std::string& path, bool follow, const std::string& verb)
        : file_([&path, follow] {
              return open_retrying(path.c_str(), O_RDONLY | O_NONBLOCK | (follow ? 0 : O_NOFOLLOW));
          }) {
        if (file_.number() == -1) {
            switch (errno) {
                case ENOENT:
                case ENOTDIR: throw SegmentNotFound(verb + ": there is no " + path);
                case ELOOP:
                    throw SegmentMismatch(verb + ": " + path +
                                          " is a symbolic link, expected a regular file");
                case ENXIO:
                case ENODEV: throw SegmentMismatch(verb + ": " + path + " is not a regular file");
                default: throw_system_failure(verb + ": " + path, errno);
            }
        }
        check_and_map(path, verb);
    }
    ~ReadOnlyFile() override {
        const ForkPause pause;
        unwatch();
        if (data_ != nullptr) munmap(data_, size_);
    }

    int descriptor() const { return file_.number(); }
    std::byte* data() const { return static_cast<std::byte*>(data_); }
    std::size_t size() const { return size_; }
    unsigned mode() const { return mode_; }

  private:
    void check_and_map(const std::string& path, const std::string& verb) {
        struct stat facts;
        if (fstat(file_.number(), &facts) == -1) throw_system_failure(verb + ": " + path, errno);
        if (!S_ISREG(facts.st_mode)) {
            throw SegmentMismatch(verb + ": " + path + " is not a regular file");
        }
        if (facts.st_uid != geteuid()) {
            throw SegmentMismatch(verb + ": " + path + " belongs to user " +
                                  std::to_string(facts.st_uid) + ", expected " +
                                  std::to_string(geteuid()));
        }
        mode_ = facts.st_mode & 07777;
        size_ = static_cast<std::size_t>(facts.st_size);
        if (size_ < header_bytes) return;  // read_header() tells
        const ForkPause pause;
        void* const memory = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file_.number(), 0);
        if (memory == MAP_FAILED) throw_system_failure(verb + ": " + path + " (mmap)", errno);
        data_ = memory;
        watch();
    }
    void after_fork_in_child() noexcept override {
        munmap(std::exchange(data_, nullptr), size_);
        unwatch_in_child();
    }

    PassingDescriptor file_;
    void* data_ = nullptr;
    std::size_t size_ = 0;
    unsigned mode_ = 0;
};

std::string text_of(double number) { return number_in_words(number); }

std::string text_of(std::uint64_t number) { return std::to_string(number); }

std::uint64_t relaxed(const std::atomic<std::uint64_t>& number) {
    return number.load(std::memory_order_relaxed);
}

// What seems wrong: `about` stays the same from look to look.
struct Suspicion {
    std::string about;
    std::string details;
};

InspectedRole look_at_role(const SharedRoleLine& line, const ReadOnlyFile& file) {
    const auto whole = line.load();
    return {held_elsewhere(file.descriptor(), lock_byte::role), whole.has_value(),
            whole.value_or(line.load_torn())};
}

void note_ended_holder(const std::string& title, Inspection& report) {
    const RoleHolder& holder = report.role.line.holder;
    if (holder.process == 0 || report.role.held) return;
    report.notes.push_back("the " + title + " (process " + text_of(holder.process) + ", pid " +
                           text_of(holder.pid) + ") ended without giving up its role; it is free");
}

class Inspector {
  public:
    Inspector(const ReadOnlyFile& file, Inspection& report, std::chrono::microseconds pause)
        : file_(file),
          report_(report),
          pause_(pause),
          ring_(report.header.ring[0]),
          capacity_(ring_.capacity),
          processes_(file.data() + report.header.process_table_offset),
          counters_(*at<RingCounters>(ring_.counters_offset)),
          meta_(at<SlotMeta>(ring_.meta_offset)),
          line_(*at<SharedRoleLine>(report.header.role_line_offset)) {
        if (ring_.prioritized != 0) {
            leaf_seq_ = at<std::atomic<std::uint64_t>>(ring_.leaf_seq_offset);
            leaf_ = at<float>(ring_.leaf_offset);
        }
    }

    void take_figures() {
        const auto [cleared, position] = counters_.bounds();
        report_.clear_before = cleared;
        report_.position = position;
        report_.counted_rows = filled_word::count(counters_.filled.load(std::memory_order_acquire));
        report_.max_priority = counters_.max_priority.load(std::memory_order_relaxed);
        for (unsigned number = 1; number <= processes_.high_water(); ++number) {
            take_process(number);
        }
        report_.role = look_at_role(line_, file_);
        take_notes_of_learner();
        report_.rows = report_.counted_rows;
        if (doubtful()) count_slots();
        std::vector<Suspicion> suspicions = suspicions_of_figures();
        for (int look = 1; look < looks && !suspicions.empty(); ++look) {
            std::this_thread::sleep_for(pause_);
            suspicions = in_both(suspicions, suspicions_of_figures());
        }
        for (const Suspicion& each : suspicions) tell(each.about + each.details);
    }

    void scan() {
        const auto quiet = [this]() -> std::optional<std::array<std::uint64_t, 4>> {
            for (unsigned number = 1; number <= processes_.high_water(); ++number) {
                const RingState& state = processes_.record(number).ring[0];
                if (state.busy.load(std::memory_order_acquire) != 0) return std::nullopt;
            }
            return std::array{counters_.cursor.load(std::memory_order_acquire),
                              counters_.clear_before.load(std::memory_order_acquire),
                              counters_.filled.load(std::memory_order_acquire),
                              counters_.doubts.load(std::memory_order_acquire)};
        };
        bool comparable = false;
        for (int look = 0; look < looks; ++look) {
            if (look > 0) std::this_thread::sleep_for(pause_);
            const auto before = quiet();
            count_slots();
            const auto after = quiet();
            comparable = before && before == after;
            if (comparable) report_.counted_rows = filled_word::count((*before)[2]);
            if (comparable && report_.rows == report_.counted_rows) break;
        }
        if (!doubtful() && report_.rows != report_.counted_rows) compare_counts(comparable);
        if (report_.abandoned_claims != 0) {
            note(std::to_string(report_.abandoned_claims) +
                 " slots were left half written by processes that died; the next writer of each "
                 "takes it over");
        }
        judge_slots();
    }

  private:
    template <class T>
    T* at(std::uint64_t offset) const {
        return reinterpret_cast<T*>(file_.data() + offset);
    }

    void tell(const std::string& sentence) {
        if (report_.damages++ < Inspection::max_told) report_.damage.push_back(sentence);
    }
    void note(const std::string& sentence) { report_.notes.push_back(sentence); }

    static std::vector<Suspicion> in_both(const std::vector<Suspicion>& earlier,
                                          std::vector<Suspicion> later) {
        std::erase_if(later, [&earlier](const Suspicion& each) {
            return std::none_of(earlier.begin(), earlier.end(), [&each](const Suspicion& other) {
                return other.about == each.about;
            });
        });
        return later;
    }

    void take_process(unsigned number) {
        const ProcessRecord& record = processes_.record(number);
        if (record.epoch.load(std::memory_order_acquire) == 0) return;
        const RingState& counts = record.ring[0];
        const auto of_this_epoch = [](const std::atomic<std::uint64_t>& in_all,
                                      const std::atomic<std::uint64_t>& before) {
            const std::uint64_t less = relaxed(before);
            const std::uint64_t all = relaxed(in_all);
            return all - std::min(all, less);
        };
        report_.rows_added += counts.rows.load(std::memory_order_acquire);
        report_.processes.push_back(
            {number, relaxed(record.pid), processes_.state(number, file_.descriptor()),
             of_this_epoch(counts.rows, counts.rows_before),
             of_this_epoch(counts.skips, counts.skips_before),
             of_this_epoch(counts.steals, counts.steals_before), relaxed(record.registered_at),
             counts.busy.load(std::memory_order_acquire) != 0});
    }

    void take_notes_of_learner() {
        note_ended_holder("learner", report_);
        if (!report_.role.whole && !report_.role.held) {
            note("the learner died while it published its figures; its successor writes new ones");
        }
    }

    std::vector<Suspicion> suspicions_of_figures() const {
        std::vector<Suspicion> all;
        const auto expect = [&all](bool right, const char* about, const std::string& details) {
            if (!right) all.push_back({about, details});
        };
        const std::uint64_t clear_before = counters_.clear_before.load(std::memory_order_acquire);
        const std::uint64_t cursor = counters_.cursor.load(std::memory_order_acquire);
        expect(cursor >= capacity_ && cursor <= slot_word::max_seq, "the position",
               " is " + text_of(cursor) + ", expected " + text_of(capacity_) + " to 2^48");
        expect(clear_before % capacity_ == 0 && clear_before >= capacity_, "the last clear",
               " is at position " + text_of(clear_before) + ", expected a multiple of " +
                   text_of(capacity_));
        // A clear goes on to the next multiple of capacity; the next claim follows it there.
        expect(clear_before <= cursor || clear_before - cursor < capacity_,
               "the last clear and the position",
               ": " + text_of(clear_before) + " comes after " + text_of(cursor));
        const std::uint64_t counted =
            filled_word::count(counters_.filled.load(std::memory_order_acquire));
        expect(counted <= capacity_ || doubtful(), "the count of rows",
               " is " + text_of(counted) + ", expected at most " + text_of(capacity_));
        const double largest = counters_.max_priority.load(std::memory_order_relaxed);
        expect(std::isfinite(largest) && largest >= 1, "the largest priority",
               " is " + text_of(largest) + ", expected a finite number of at least 1");
        add_suspicions_of_processes(all);
        add_suspicions_of_learner(all);
        return all;
    }

    void add_suspicions_of_processes(std::vector<Suspicion>& all) const {
        constexpr std::uint64_t largest_pid = std::numeric_limits<std::int32_t>::max();
        for (unsigned number = 1; number <= processes_.high_water(); ++number) {
            const ProcessRecord& record = processes_.record(number);
            const std::uint64_t pid = relaxed(record.pid);
            if (pid > largest_pid) {
                all.push_back({"process " + std::to_string(number), " has pid " + text_of(pid)});
            }
            const RingState& counts = record.ring[0];
            const std::uint64_t before[] = {counts.rows_before.load(), counts.skips_before.load(),
                                            counts.steals_before.load()};
            const std::uint64_t now[] = {counts.rows.load(), counts.skips.load(),
                                         counts.steals.load()};
            for (std::size_t i = 0; i < std::size(now); ++i) {
                if (before[i] <= now[i]) continue;
                all.push_back({"process " + std::to_string(number),
                               " counts " + text_of(now[i]) + " in all, of them " +
                                   text_of(before[i]) + " before it came"});
            }
        }
    }

    void add_suspicions_of_learner(std::vector<Suspicion>& all) const {
        const auto line = line_.load();
        if (!line || !line_.ever_stored()) return;
        const LearnerFigures& learner = line->figures;
        const auto expect = [&all](bool right, const char* about, const std::string& details) {
            if (!right) all.push_back({about, details});
        };
        expect(line->holder.process <= max_processes, "the learner's process number",
               " is " + text_of(line->holder.process));
        const std::uint64_t position = counters_.bounds().position;
        expect(learner.folded <= position, "the learner",
               " has taken rows up to position " + text_of(learner.folded) + " of " +
                   text_of(position));
        expect(learner.sampleable <= capacity_, "the learner's count of rows",
               " is " + text_of(learner.sampleable) + ", expected at most " + text_of(capacity_));
        expect(std::isfinite(learner.total) && learner.total >= 0, "the tree's total",
               " is " + text_of(learner.total));
        expect(learner.least_leaf > 0, "the tree's least leaf",
               " is " + text_of(learner.least_leaf));
    }

    void count_slots() {
        report_.rows = report_.claims = report_.abandoned_claims = 0;
        const std::uint64_t cleared = counters_.clear_before.load(std::memory_order_acquire);
        for (std::uint64_t slot = 0; slot < capacity_; ++slot) {
            const std::uint64_t word = meta_[slot].word.load(std::memory_order_acquire);
            if (!slot_word::is_committed(word)) {
                ++(is_dead(word) ? report_.abandoned_claims : report_.claims);
            } else if (word != 0 && slot_word::seq(word) >= cleared) {
                ++report_.rows;
            }
        }
    }

    // Asked once for each owner and epoch; a death meanwhile is told by the next inspection.
    bool is_dead(std::uint64_t word) {
        const unsigned owner = slot_word::owner(word);
        const std::uint64_t epoch = slot_word::epoch(word);
        std::optional<bool>& known = dead_.at(owner).at(epoch);
        if (!known) {
            known = processes_.dead(owner, epoch, slot_word::epoch_bits, file_.descriptor());
        }
        return *known;
    }

    void compare_counts(bool comparable) {
        const std::string both = std::to_string(report_.counted_rows) + " rows are counted, " +
                                 std::to_string(report_.rows) + " are there";
        if (comparable) {
            tell(both + ", and nobody is adding");
        } else {
            note(both + "; exact only while nobody is adding");
        }
    }

    // After a clear or a death the count means nothing until somebody has counted again.
    // Each handle recounts for itself after a doubt or a clear; from outside both look for ever
    // new.
    bool doubtful() const {
        return counters_.doubts.load(std::memory_order_acquire) != 0 ||
               counters_.clear_before.load(std::memory_order_acquire) != capacity_;
    }

    void judge_slots() {
        std::vector<std::uint64_t> suspects;
        for (std::uint64_t slot = 0; slot < capacity_; ++slot) {
            if (!suspicion_of(slot).empty()) suspects.push_back(slot);
        }
        for (int look = 1; look < looks && !suspects.empty(); ++look) {
            std::this_thread::sleep_for(pause_);
            std::erase_if(suspects,
                          [this](std::uint64_t slot) { return suspicion_of(slot).empty(); });
        }
        for (const std::uint64_t slot : suspects) {
            const std::string why = suspicion_of(slot);
            if (!why.empty()) tell("slot " + std::to_string(slot) + ": " + why);
        }
        if (leaf_ == nullptr) return;
        for (std::uint64_t i = capacity_; i < padded_leaves(capacity_); ++i) {
            if (leaf_[i] != 0) {
                tell("leaf " + std::to_string(i) + " behind the last slot is " +
                     text_of(double{leaf_[i]}) + ", expected 0");
            }
        }
    }

    // Empty if all is well, or in motion. What only grows is read in such an order that motion
    // cannot look like damage: a leaf's seq before the slot's word before the position.
    std::string suspicion_of(std::uint64_t slot) const {
        const std::uint64_t leaf_seq =
            leaf_seq_ == nullptr ? 0 : leaf_seq_[slot].load(std::memory_order_acquire);
        const float leaf = leaf_ == nullptr ? 0 : leaf_at(slot);
        const SlotMeta& meta = meta_[slot];
        const std::uint64_t word = meta.word.load(std::memory_order_acquire);
        const float leaf_in = meta.leaf_in.load(std::memory_order_relaxed);
        acquire_fence();
        const bool word_rests = meta.word.load(std::memory_order_relaxed) == word;
        const std::uint64_t cleared = counters_.clear_before.load(std::memory_order_acquire);
        const std::uint64_t position = counters_.cursor.load(std::memory_order_acquire);

        std::string why = suspicion_of_word(slot, word, position);
        if (!why.empty() || leaf_seq_ == nullptr) return why;

        const std::uint64_t seq = slot_word::seq(word);
        const bool committed = slot_word::is_committed(word) && seq != 0 && seq >= cleared;
        if (committed && word_rests && !is_leaf(leaf_in, ring_.alpha, ring_.eps)) {
            return "its row came with leaf " + text_of(double{leaf_in}) + ", expected " +
                   leaf_expected();
        }
        if (!(std::isfinite(leaf) && leaf >= 0)) {
            return "its leaf is " + text_of(double{leaf}) + ", expected a finite number, or 0";
        }
        if (leaf_seq != 0 && leaf_seq % capacity_ != slot) {
            return "its leaf is of row " + text_of(leaf_seq) + ", which belongs to slot " +
                   text_of(leaf_seq % capacity_);
        }
        if (leaf_seq > seq) {
            return "its leaf is of row " + text_of(leaf_seq) + ", the slot has only come to row " +
                   text_of(seq);
        }
        const bool leaf_rests = leaf_seq_[slot].load(std::memory_order_acquire) == leaf_seq;
        if (committed && word_rests && leaf_rests && leaf_seq == seq &&
            !is_leaf(leaf, ring_.alpha, ring_.eps)) {
            return "its row " + text_of(seq) + " has leaf " + text_of(double{leaf}) +
                   ", expected " + leaf_expected();
        }
        return {};
    }

    std::string suspicion_of_word(std::uint64_t slot, std::uint64_t word,
                                  std::uint64_t position) const {
        if (word == 0) return {};
        const std::uint64_t seq = slot_word::seq(word);
        const unsigned owner = slot_word::owner(word);
        if (seq == 0) return "its word is " + text_of(word) + " without a row";
        if (seq < capacity_ || seq % capacity_ != slot) {
            return "it holds row " + text_of(seq) + ", which belongs to slot " +
                   text_of(seq % capacity_);
        }
        if (seq >= position) {
            return "it holds row " + text_of(seq) + ", beyond the position " + text_of(position);
        }
        if (owner == 0) {
            if (word != slot_word::committed(seq)) return "its word is that of no claim and no row";
            return {};
        }
        if (owner > max_processes || owner > processes_.high_water() ||
            processes_.record(owner).epoch.load(std::memory_order_acquire) == 0) {
            return "process " + std::to_string(owner) + " is writing it, and never was there";
        }
        return {};
    }

    const char* leaf_expected() const {
        return is_leaf(0, ring_.alpha, ring_.eps) ? "0 or a positive float" : "a positive float";
    }

    float leaf_at(std::uint64_t slot) const {
        return std::atomic_ref<float>(leaf_[slot]).load(std::memory_order_relaxed);
    }

    const ReadOnlyFile& file_;
    Inspection& report_;
    std::chrono::microseconds pause_;
    const RingEntry& ring_;
    std::uint64_t capacity_;
    ProcessTable processes_;
    const RingCounters& counters_;
    const SlotMeta* meta_;
    const SharedRoleLine& line_;
    const std::atomic<std::uint64_t>* leaf_seq_ = nullptr;
    float* leaf_ = nullptr;
    std::array<std::array<std::optional<bool>, 1u << slot_word::epoch_bits>,
               1u << slot_word::owner_bits>
        dead_{};
};

// A segment of weights. Its bytes are not judged: all are possible.
class WeightsInspector {
  public:
    WeightsInspector(const ReadOnlyFile& file, Inspection& report, std::chrono::microseconds pause)
        : file_(file),
          report_(report),
          pause_(pause),
          entry_(report.header.weights),
          processes_(file.data() + report.header.process_table_offset),
          board_(*at<VersionBoard>(entry_.board_offset)),
          slots_(at<VersionSlot>(entry_.slots_offset)),
          lines_(at<ReaderLine>(entry_.readers_offset)),
          role_(*at<SharedRoleLine>(report.header.role_line_offset)) {}

    void take_figures() {
        std::vector<Suspicion> suspicions = look();
        for (int looked = 1; looked < looks && !suspicions.empty(); ++looked) {
            std::this_thread::sleep_for(pause_);
            const std::vector<Suspicion> again = look();
            std::erase_if(suspicions, [&again](const Suspicion& each) {
                return std::none_of(again.begin(), again.end(), [&each](const Suspicion& other) {
                    return other.about == each.about;
                });
            });
        }
        for (const Suspicion& each : suspicions) {
            ++report_.damages;
            report_.damage.push_back(each.about + each.details);
        }
        take_processes();
        take_publisher();
        if (report_.weights.newest != report_.weights.version) {
            report_.notes.push_back("version " + text_of(report_.weights.newest) +
                                    " waits for a slot that readers still have");
        }
    }

  private:
    template <class T>
    T* at(std::uint64_t offset) const {
        return reinterpret_cast<T*>(file_.data() + offset);
    }

    std::vector<Suspicion> look() const {
        std::vector<Suspicion> all;
        InspectedWeights& weights = report_.weights;
        // Acquire: pairs with the release of the offer, and of the slot's version.
        const std::uint64_t word = board_.offer.load(std::memory_order_acquire);
        weights.newest = offer_word::newest(word);
        const std::uint64_t offered = offer_word::offered(word);
        if (offered >= entry_.slots) {
            all.push_back(
                {"the offer", " is slot " + text_of(offered) + " of " + text_of(entry_.slots)});
            return all;
        }
        const VersionSlot& slot = slots_[offered];
        weights.version = slot.version.load(std::memory_order_acquire);
        const std::uint64_t published_at = relaxed(slot.published_at);
        acquire_fence();
        if (relaxed(slot.version) != weights.version) return all;
        const std::uint64_t now = monotonic_ns();
        weights.age = now - std::min(now, published_at);
        if (weights.version == 0 || weights.version > weights.newest) {
            all.push_back(
                {"the version on offer",
                 " is " + text_of(weights.version) + ", expected 1 to " + text_of(weights.newest)});
        }
        if (offer_word::has_pending(word) && offer_word::pending(word) >= entry_.slots) {
            all.push_back({"the version that waits", " is in slot " +
                                                         std::to_string(offer_word::pending(word)) +
                                                         " of " + text_of(entry_.slots)});
        }
        const std::uint64_t used = relaxed(board_.lines_used);
        if (used > max_processes) {
            all.push_back({"the number of reader lines", " is " + text_of(used)});
        }
        for (unsigned number = 0; number <= max_processes; ++number) {
            const unsigned slot_plus_one = reader_mark::slot_plus_one(relaxed(lines_[number].mark));
            if (slot_plus_one > entry_.slots) {
                all.push_back({"reader " + std::to_string(number),
                               " is reading slot " + std::to_string(slot_plus_one - 1)});
            }
        }
        return all;
    }

    void take_processes() {
        for (unsigned number = 1; number <= processes_.high_water(); ++number) {
            const ProcessRecord& record = processes_.record(number);
            if (record.epoch.load(std::memory_order_acquire) == 0) continue;
            const ReaderLine& line = lines_[number];
            const bool reading = relaxed(line.mark) != 0;
            report_.weights.reads += relaxed(line.reads);
            report_.weights.repeats += relaxed(line.repeats);
            report_.weights.in_reads += reading ? 1 : 0;
            report_.processes.push_back(
                {number, relaxed(record.pid), processes_.state(number, file_.descriptor()),
                 relaxed(line.reads), 0, 0, relaxed(record.registered_at), reading});
        }
    }

    void take_publisher() {
        report_.role = look_at_role(role_, file_);
        note_ended_holder("publisher", report_);
    }

    const ReadOnlyFile& file_;
    Inspection& report_;
    std::chrono::microseconds pause_;
    const WeightsEntry& entry_;
    ProcessTable processes_;
    const VersionBoard& board_;
    const VersionSlot* slots_;
    const ReaderLine* lines_;
    const SharedRoleLine& role_;
};

}  // namespace

Inspection inspect_segment(const std::string& name, Scrutiny scrutiny, const std::string& directory,
                           std::chrono::microseconds pause) {
    require_valid_name(name);
    Inspection report;
    report.name = name;
    report.path = segment_path(name, directory);
    if (access(report.path.c_str(), F_OK) != 0) {
        if (std::string path = nameless_path(name); !path.empty()) {
            report.path = std::move(path);
            report.nameless = true;
        }
    }
    const ReadOnlyFile file(report.path, report.nameless, "cannot inspect '" + name + "'");
    report.bytes = file.size();
    report.mode = file.mode();
    report.live = held_elsewhere(file.descriptor(), lock_byte::presence);
    if ((report.mode & (S_IRWXG | S_IRWXO)) != 0) {
        std::array<char, 16> mode{};
        std::snprintf(mode.data(), mode.size(), "%04o", report.mode);
        report.damages = 1;
        report.damage.push_back("the file has mode " + std::string(mode.data()) +
                                ", expected 0600: nobody can attach");
    }
    try {
        report.header =
            read_header(file.data(), file.size(), name, report.description, SegmentKind::none);
    } catch (const SegmentMismatch& mismatch) {
        report.refusal = mismatch.what();
        ++report.damages;
        report.damage.push_back(report.refusal);
        return report;
    }
    if (report.header.kind == SegmentKind::weights) {
        WeightsInspector(file, report, pause).take_figures();
        return report;
    }
    Inspector inspector(file, report, pause);
    inspector.take_figures();
    if (scrutiny == Scrutiny::every_slot) inspector.scan();
    return report;
}

}  // namespace mpbuffer
