#include "inspect/sources.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "format/ring_records.hpp"
#include "inspect/slot_words.hpp"
#include "ring/sources.hpp"

namespace mpbuffer {

namespace {

class SourceInspector {
  public:
    SourceInspector(const ReadOnlyFile& file, Inspection& report, unsigned number)
        : report_(report),
          number_(number),
          name_("source ring " + std::to_string(number)),
          ring_(file.at<RingCounters>(report.header.ring[number].counters_offset),
                file.at<std::byte>(report.header.ring[number].heads_offset),
                file.at<std::byte>(report.header.ring[number].records_offset),
                report.header.ring[number].capacity,
                source_layout(report.header.ring[number].row_bytes)),
          rows_(file.data(), report.header.ring[0]),
          processes_(file.data() + report.header.process_table_offset, report.header.max_handles),
          words_(file, report.header, ring_.capacity(), "source") {}

    InspectedSources figures() const {
        const std::uint64_t written = this->written();
        const std::uint64_t cursor = this->cursor();
        const std::uint64_t claimed = cursor - std::min(cursor, ring_.capacity());
        return {ring_.capacity(), report_.header.ring[number_].row_bytes, claimed, written};
    }

    void count_slots(InspectedSources& figures) {
        for (std::uint64_t slot = 0; slot < ring_.capacity(); ++slot) {
            const std::uint64_t word = ring_.word(slot).load(std::memory_order_acquire);
            if (slot_word::is_committed(word)) {
                figures.stored += word != 0;
            } else {
                ++(words_.is_dead(word) ? figures.abandoned_claims : figures.claims);
            }
        }
    }

    // Each number is read before the one that it must not exceed.
    std::vector<Suspicion> suspicions() const {
        std::vector<Suspicion> all;
        const auto expect = [&all, this](bool right, const char* about,
                                         const std::string& details) {
            if (!right) all.push_back({name_ + about, details});
        };
        const std::uint64_t capacity = ring_.capacity();
        const std::uint64_t written = this->written();
        const std::uint64_t cursor = this->cursor();
        expect(cursor >= capacity && cursor <= slot_word::max_seq, ": the position",
               " is " + std::to_string(cursor) + ", expected " + std::to_string(capacity) +
                   " to 2^48");
        const std::uint64_t cleared = ring_.clear_before();
        expect(cleared == capacity, ": the last clear",
               " is at position " + std::to_string(cleared) +
                   ", expected none: " + std::to_string(capacity));
        expect(cursor < capacity || written <= cursor - capacity, ": the count of sources",
               " is " + std::to_string(written) + ", at position " + std::to_string(cursor));
        return all;
    }

    const std::string& name() const { return name_; }
    std::string suspicion_of(std::uint64_t slot) const {
        const std::uint64_t word = ring_.word(slot).load(std::memory_order_acquire);
        return words_.suspicion(slot, word, cursor());
    }
    std::string suspicion_of_row(std::uint64_t slot) const {
        std::uint64_t born = 0;
        const auto look = [&](const std::byte* record) { born = born_in(record, number_); };
        if (rows_.read_any(slot, rows_.clear_before(), look) == 0) return {};
        const std::uint64_t cursor = this->cursor();
        if (born >= ring_.capacity() && born <= cursor) return {};
        return "its row was born at position " + std::to_string(born) + " of " + name_ +
               ", expected " + std::to_string(ring_.capacity()) + " to " + std::to_string(cursor);
    }

  private:
    std::uint64_t cursor() const { return ring_.counters().cursor.load(std::memory_order_acquire); }
    std::uint64_t written() const {
        std::uint64_t all = 0;
        for (unsigned number = 1; number <= processes_.high_water(); ++number) {
            all += processes_.record(number).ring[number_].rows.load(std::memory_order_acquire);
        }
        return all;
    }

    Inspection& report_;
    unsigned number_;
    std::string name_;
    SlotRing ring_;
    SlotRing rows_;
    ProcessTable processes_;
    SlotWords words_;
};

}  // namespace

void inspect_sources(const ReadOnlyFile& file, Scrutiny scrutiny, std::chrono::microseconds pause,
                     Inspection& report) {
    for (unsigned i = 1; i < max_ring_entries && report.header.ring[i].used != 0; ++i) {
        SourceInspector inspector(file, report, i);
        InspectedSources figures = inspector.figures();
        if (scrutiny == Scrutiny::every_slot) inspector.count_slots(figures);
        report.sources.push_back(figures);
        const auto look = [&] { return inspector.suspicions(); };
        for (const Suspicion& each : lasting_suspicions(look, pause)) {
            tell_damage(report, each.about + each.details);
        }
        if (scrutiny != Scrutiny::every_slot) continue;
        const auto of_source = [&](std::uint64_t slot) { return inspector.suspicion_of(slot); };
        const auto of_row = [&](std::uint64_t slot) { return inspector.suspicion_of_row(slot); };
        tell_suspect_slots(inspector.name() + ", slot ", figures.capacity, pause, of_source,
                           report);
        tell_suspect_slots("slot ", report.header.ring[0].capacity, pause, of_row, report);
    }
}

}  // namespace mpbuffer
