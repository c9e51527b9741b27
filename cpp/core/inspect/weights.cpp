#include "inspect/weights.hpp"

#include <algorithm>

#include "base/clock.hpp"
#include "format/header.hpp"
#include "format/version_records.hpp"
#include "segment/process_table.hpp"

namespace mpbuffer {

namespace {

class WeightsInspector {
  public:
    WeightsInspector(const ReadOnlyFile& file, Inspection& report, std::chrono::microseconds pause)
        : file_(file),
          report_(report),
          pause_(pause),
          entry_(report.header.weights),
          processes_(file.data() + report.header.process_table_offset, report.header.max_handles),
          board_(*file.at<VersionBoard>(entry_.board_offset)),
          slots_(file.at<VersionSlot>(entry_.slots_offset)),
          lines_(file.at<ReaderLine>(entry_.readers_offset)) {}

    void take_figures() {
        for (const Suspicion& each : lasting_suspicions([this] { return look(); }, pause_)) {
            tell_damage(report_, each.about + each.details);
        }
        take_processes();
        look_at_role(file_, "publisher", report_);
        if (report_.weights.newest != report_.weights.version) {
            report_.notes.push_back("version " + std::to_string(report_.weights.newest) +
                                    " waits for a slot that readers still have");
        }
    }

  private:
    std::vector<Suspicion> look() const {
        std::vector<Suspicion> all;
        InspectedWeights& weights = report_.weights;
        // Acquire: pairs with the release of the offer, and of the slot's version.
        const std::uint64_t word = board_.offer.load(std::memory_order_acquire);
        weights.newest = offer_word::newest(word);
        const std::uint64_t offered = offer_word::offered(word);
        if (offered >= entry_.slots) {
            all.push_back({"the offer", " is slot " + std::to_string(offered) + " of " +
                                            std::to_string(entry_.slots)});
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
            all.push_back({"the version on offer", " is " + std::to_string(weights.version) +
                                                       ", expected 1 to " +
                                                       std::to_string(weights.newest)});
        }
        if (offer_word::has_pending(word) && offer_word::pending(word) >= entry_.slots) {
            all.push_back({"the version that waits", " is in slot " +
                                                         std::to_string(offer_word::pending(word)) +
                                                         " of " + std::to_string(entry_.slots)});
        }
        const std::uint64_t used = relaxed(board_.lines_used);
        if (used > processes_.size()) {
            all.push_back({"the number of reader lines", " is " + std::to_string(used)});
        }
        for (unsigned number = 0; number <= processes_.size(); ++number) {
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

    const ReadOnlyFile& file_;
    Inspection& report_;
    std::chrono::microseconds pause_;
    const WeightsEntry& entry_;
    ProcessTable processes_;
    const VersionBoard& board_;
    const VersionSlot* slots_;
    const ReaderLine* lines_;
};

}  // namespace

void inspect_weights(const ReadOnlyFile& file, std::chrono::microseconds pause,
                     Inspection& report) {
    WeightsInspector(file, report, pause).take_figures();
}

}  // namespace mpbuffer
