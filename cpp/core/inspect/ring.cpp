#include "inspect/ring.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <thread>

#include "base/words.hpp"
#include "format/ring_records.hpp"
#include "format/slot_word.hpp"
#include "inspect/slot_words.hpp"
#include "inspect/sources.hpp"
#include "segment/process_table.hpp"
#include "select/weights_of_draws.hpp"

namespace mpbuffer {

namespace {

std::string text_of(double number) { return number_in_words(number); }
std::string text_of(std::uint64_t number) { return std::to_string(number); }

class RingInspector {
  public:
    RingInspector(const ReadOnlyFile& file, Inspection& report, std::chrono::microseconds pause)
        : file_(file),
          report_(report),
          pause_(pause),
          ring_(report.header.ring[0]),
          capacity_(ring_.capacity),
          processes_(file.data() + report.header.process_table_offset, report.header.max_handles),
          counters_(*file.at<RingCounters>(ring_.counters_offset)),
          heads_(file.at<std::byte>(ring_.heads_offset)),
          line_(*file.at<SharedRoleLine>(report.header.role_line_offset)),
          words_(file, report.header, capacity_, "row") {
        if (ring_.prioritized != 0) leaf_ = file.at<float>(ring_.leaf_offset);
    }

    void take_figures() {
        const auto [cleared, position] = counters_.bounds();
        report_.clear_before = cleared;
        report_.position = position;
        report_.counted_rows = filled_word::count(counters_.filled.load(std::memory_order_acquire));
        report_.early = counters_.early.load(std::memory_order_relaxed);
        report_.max_priority = counters_.max_priority.load(std::memory_order_relaxed);
        for (unsigned number = 1; number <= processes_.high_water(); ++number) {
            take_process(number);
        }
        look_at_role(file_, "learner", report_);
        if (!report_.role.whole && !report_.role.held) {
            note("the learner died while it published its figures; its successor writes new ones");
        }
        report_.rows = report_.counted_rows;
        if (count_is_stale()) count_slots();
        const auto look = [this] { return suspicions_of_figures(); };
        for (const Suspicion& each : lasting_suspicions(look, pause_)) {
            tell(each.about + each.details);
        }
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
                              counters_.recount_requests.load(std::memory_order_acquire)};
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
        if (!count_is_stale() && report_.rows != report_.counted_rows) compare_counts(comparable);
        if (report_.abandoned_claims != 0) {
            note(std::to_string(report_.abandoned_claims) +
                 " slots were left half written by processes that died; the next writer of each "
                 "takes it over");
        }
        judge_slots();
    }

  private:
    void tell(const std::string& sentence) { tell_damage(report_, sentence); }
    void note(const std::string& sentence) { report_.notes.push_back(sentence); }

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

    std::vector<Suspicion> suspicions_of_figures() const {
        std::vector<Suspicion> all;
        const auto expect = [&all](bool right, const char* about, const std::string& details) {
            if (!right) all.push_back({about, details});
        };
        const std::uint64_t clear_before = counters_.clear_before.load(std::memory_order_acquire);
        const std::uint64_t cursor = counters_.cursor.load(std::memory_order_acquire);
        expect(cursor >= capacity_ && cursor <= slot_word::max_seq, "the position",
               " is " + text_of(cursor) + ", expected " + text_of(capacity_) + " to 2^48");
        const bool retires = report_.header.ring[1].used != 0;
        expect((retires || clear_before % capacity_ == 0) && clear_before >= capacity_,
               "the last clear",
               " is at position " + text_of(clear_before) + ", expected a multiple of " +
                   text_of(capacity_));
        // A clear goes on to the next multiple of capacity; the next claim follows it there.
        expect(clear_before <= cursor || clear_before - cursor < capacity_,
               "the last clear and the position",
               ": " + text_of(clear_before) + " comes after " + text_of(cursor));
        const std::uint64_t counted =
            filled_word::count(counters_.filled.load(std::memory_order_acquire));
        expect(counted <= capacity_ || count_is_stale(), "the count of rows",
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
        expect(line->holder.process <= processes_.size(), "the learner's process number",
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
            const std::uint64_t word = head(slot).word.load(std::memory_order_acquire);
            if (!slot_word::is_committed(word)) {
                ++(words_.is_dead(word) ? report_.abandoned_claims : report_.claims);
            } else if (word != 0 && slot_word::seq(word) >= cleared) {
                ++report_.rows;
            }
        }
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

    // After a clear or a death the count means nothing until somebody has counted again. Each
    // handle recounts for itself; from outside that is not seen.
    bool count_is_stale() const {
        return counters_.recount_requests.load(std::memory_order_acquire) != 0 ||
               counters_.clear_before.load(std::memory_order_acquire) != capacity_;
    }

    void judge_slots() {
        tell_suspect_slots(
            "slot ", capacity_, pause_, [this](std::uint64_t slot) { return suspicion_of(slot); },
            report_);
        if (leaf_ == nullptr) return;
        for (std::uint64_t i = capacity_; i < padded_leaves(capacity_); ++i) {
            if (leaf_[i] != 0) {
                tell("leaf " + std::to_string(i) + " behind the last slot is " +
                     text_of(double{leaf_[i]}) + ", expected 0");
            }
        }
    }

    // Empty if all is well, or in motion. What only grows is read in such an order that motion
    // cannot look like damage: a leaf's lap before the slot's word before the position.
    std::string suspicion_of(std::uint64_t slot) const {
        const SlotHead& head = this->head(slot);
        const std::uint32_t lap = head.lap.load(std::memory_order_acquire);
        const float leaf = leaf_ == nullptr ? 0 : leaf_at(slot);
        const std::uint64_t word = head.word.load(std::memory_order_acquire);
        const float leaf_in = head.leaf_in.load(std::memory_order_relaxed);
        acquire_fence();
        const bool word_rests = head.word.load(std::memory_order_relaxed) == word;
        const std::uint64_t cleared = counters_.clear_before.load(std::memory_order_acquire);
        const std::uint64_t position = counters_.cursor.load(std::memory_order_acquire);

        std::string why = words_.suspicion(slot, word, position);
        if (!why.empty() || leaf_ == nullptr) return why;

        const std::uint64_t seq = slot_word::seq(word);
        const bool committed = slot_word::is_committed(word) && seq != 0 && seq >= cleared;
        if (committed && word_rests && !is_leaf(leaf_in, ring_.alpha, ring_.eps)) {
            return "its row came with leaf " + text_of(double{leaf_in}) + ", expected " +
                   leaf_expected();
        }
        if (!(std::isfinite(leaf) && leaf >= 0)) {
            return "its leaf is " + text_of(double{leaf}) + ", expected a finite number, or 0";
        }
        const auto lap_of_row = static_cast<std::uint32_t>(seq / capacity_);
        if (lap != 0 && static_cast<std::int32_t>(lap - lap_of_row) > 0) {
            return "its leaf is of a row of lap " + text_of(std::uint64_t{lap}) +
                   ", the slot has only come to lap " + text_of(std::uint64_t{lap_of_row});
        }
        const bool leaf_rests = head.lap.load(std::memory_order_acquire) == lap;
        if (committed && word_rests && leaf_rests && lap == lap_of_row &&
            !is_leaf(leaf, ring_.alpha, ring_.eps)) {
            return "its row " + text_of(seq) + " has leaf " + text_of(double{leaf}) +
                   ", expected " + leaf_expected();
        }
        return {};
    }

    const char* leaf_expected() const {
        return is_leaf(0, ring_.alpha, ring_.eps) ? "0 or a positive float" : "a positive float";
    }

    const SlotHead& head(std::uint64_t slot) const {
        return *reinterpret_cast<const SlotHead*>(heads_ + slot * ring_.head_stride);
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
    const std::byte* heads_;
    const SharedRoleLine& line_;
    float* leaf_ = nullptr;
    SlotWords words_;
};

}  // namespace

void inspect_ring(const ReadOnlyFile& file, Scrutiny scrutiny, std::chrono::microseconds pause,
                  Inspection& report) {
    RingInspector inspector(file, report, pause);
    inspector.take_figures();
    if (scrutiny == Scrutiny::every_slot) inspector.scan();
    inspect_sources(file, scrutiny, pause, report);
}

}  // namespace mpbuffer
