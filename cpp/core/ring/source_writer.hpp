// The writers' side of sources.hpp, as one handle of one process has it, for the rows of one claim:
// when they were born, and which sources are too old to be referred to. In private memory; for one
// thread at a time.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "base/shared_copy.hpp"
#include "base/stop_points.hpp"
#include "ring/sources.hpp"

namespace mpbuffer {

// Writes one source into the ring of this number; its position, or 0 if others hold all slots of
// it.
using PutSource = std::function<std::uint64_t(unsigned ring, const std::byte* source)>;

class SourceWriter {
  public:
    // Rows that are prepared together.
    static constexpr std::uint64_t rows_at_once = SlotRing::rows_per_claim;

    explicit SourceWriter(const Sources& sources) : sources_(sources) {}

    // How many of `count` rows are prepared together: not so many that the first one's sources are
    // too old when it is stored.
    std::uint64_t few_enough(std::uint64_t count) const {
        count = std::min(count, rows_at_once);
        for (unsigned ring = 1; ring <= sources_.rings(); ++ring) {
            const std::uint64_t rows =
                sources_.age(ring) / 2 / std::max<std::size_t>(sources_.layout().references(), 1);
            count = std::min(count, std::max<std::uint64_t>(rows, 1));
        }
        return count;
    }

    // Looks at the rings anew: before sources are looked for, and after the rows are claimed.
    void look() { load_cursors(cursors_); }
    // After all sources of the rows are written, before the rows are claimed.
    void note_birth() {
        load_cursors(born_);
        stop_point(StopPoint::sources_born);
    }

    // Whether a row may refer to that source when it is stored; and whether it will soon not.
    bool too_old(unsigned ring, std::uint64_t position) const {
        return position + sources_.age(ring) < cursors_[ring];
    }
    bool soon_too_old(unsigned ring, std::uint64_t position) const {
        const std::uint64_t age = sources_.age(ring);
        return position + (age - age / 8) < cursors_[ring];
    }

    // What a claimed row's record begins with.
    void store_birth(std::byte* record) const {
        for (unsigned ring = 1; ring <= sources_.rings(); ++ring) {
            store_to_record(record + 8 * std::size_t{ring - 1},
                            reinterpret_cast<const std::byte*>(&born_[ring]), sizeof born_[ring]);
        }
    }
    void store_reference(std::byte* reference, unsigned ring, std::uint64_t position) const {
        const auto back = static_cast<std::int32_t>(born_[ring] - position);
        store_to_record(reference, reinterpret_cast<const std::byte*>(&back), sizeof back);
        stop_point(StopPoint::reference_stored);
    }

  private:
    using Cursors = std::array<std::uint64_t, max_ring_entries>;
    void load_cursors(Cursors& cursors) const {
        for (unsigned ring = 1; ring <= sources_.rings(); ++ring) {
            cursors[ring] = sources_.ring(ring).counters().cursor.load(std::memory_order_acquire);
        }
    }

    const Sources& sources_;
    Cursors cursors_{};
    Cursors born_{};
};

}  // namespace mpbuffer
