// The writers' side of frames.hpp, as one handle of one process has it: it finds the frames of a
// row among those that it has written lately, and writes those that it does not find.
//
// Frames are shared because they are equal, byte by byte, not because of where they come from: so
// whatever is written comes back. What is remembered is only where to look: where the frames of the
// last rows are, and a hash of each frame written. Which environment or episode a row is of does
// not matter. In private memory; for one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/shared_copy.hpp"
#include "ring/source_writer.hpp"

namespace mpbuffer {

class FrameWriter {
  public:
    explicit FrameWriter(const Sources& sources);

    // Sees to it that the frames of the rows first, first + 1, ... of these fields lie in source
    // rings, and then notes when they are born. Returns how many rows are ready: of `count`, at
    // most SourceWriter::rows_at_once; fewer if others hold all slots of a source ring.
    std::uint64_t prepare(std::span<const FieldSource> fields, std::uint64_t first,
                          std::uint64_t count, const PutSource& put);
    // Writes row `i`, which is prepared and now claimed, into its record. False if a frame that has
    // become too old cannot be written once more.
    bool store(std::span<const FieldSource> fields, std::uint64_t i, std::byte* record,
               const PutSource& put);

    std::uint64_t frames_given() const { return frames_given_; }
    std::uint64_t frames_written() const { return frames_written_; }

  private:
    static constexpr std::size_t none = static_cast<std::size_t>(-1);
    struct Reference {
        unsigned ring;
        std::size_t field;
        std::size_t plane;
        std::size_t bytes;
        std::size_t same_row;     // the reference of this row that it may equal
        std::size_t last_row[2];  // those of the row before
    };
    struct Known {
        std::uint64_t hash = 0;
        std::uint64_t position = 0;
    };

    void locate(std::span<const FieldSource> fields, std::uint64_t i);
    bool prepare_row(std::uint64_t* positions, const PutSource& put);
    std::uint64_t find_near(std::size_t a, const std::uint64_t* positions) const;
    std::uint64_t find_known(const Reference& reference, const std::byte* frame,
                             std::uint64_t hash) const;
    bool holds(const Reference& reference, std::uint64_t position, const std::byte* frame) const;
    void remember(const Reference& reference, std::uint64_t hash, std::uint64_t position);
    const std::uint64_t* row_before(std::uint64_t rows) const;
    void find_stride(std::uint64_t position);

    const Sources& sources_;
    SourceWriter writer_;
    std::vector<Reference> references_;
    std::vector<std::vector<Known>> known_;          // of each source ring
    std::vector<const std::byte*> planes_;           // of the row at hand
    std::vector<std::vector<std::byte>> separated_;  // of each field along the last axis
    std::vector<std::uint64_t> positions_;           // of the rows prepared
    std::uint64_t first_ = 0;                        // of those
    std::vector<std::uint64_t> history_;             // of the last rows
    std::uint64_t rows_kept_;
    std::uint64_t rows_seen_ = 0;
    std::uint64_t stride_ = 1;  // how many rows ago the environment's last one came
    std::uint64_t frames_given_ = 0;
    std::uint64_t frames_written_ = 0;
};

}  // namespace mpbuffer
