// The segment's header: an immutable record of what lies where, checked once at attach.
//
//   0            SegmentHeader          magic, kind, format, checksum, table of rings
//   4096         description            JSON of declared length, opaque to the core
//   (64-aligned) process table          a record for each handle that may be open at once
//                role line              who is the learner, and what it last published
//                ring counters          cursor, clear_before, filled, early, max_priority
//                slot heads             16 bytes a slot, if rows are large
//                leaves                 4 bytes a slot, of a prioritized ring only
//   (4096-al.)   records                stride bytes a slot: the row, behind its head if it is
//   small
//                for each source ring   counters, slot heads, (4096-al.) records: one source a slot
//
// A segment of weights (shared_weights.hpp) has, from the ring counters on:
//
//   (64-aligned) version board          what is offered
//                version slots          64 bytes a slot
//                reader lines           64 bytes for each of its records, and one for nobody
//   (4096-al.)   versions               stride bytes a slot
//
// Builds that read different formats of a kind refuse each other's segments, with both versions
// named. Inside one format the signature, a hash of the sizes and offsets of everything shared,
// finds builds that disagree all the same. Compiler, Python and package versions do not matter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mpbuffer {

// The first 8 bytes of every published segment, written before make_visible(). A file
// without it is not ours to sweep.
constexpr char segment_magic[8] = {'m', 'p', 'b', 'u', 'f', 'f', 'e', 'r'};

enum class SegmentKind : std::uint32_t { none = 0, buffer = 1, weights = 2 };

// Each kind has a format of its own. A segment of another major is refused; a minor adds what
// earlier builds of that major may leave alone.
struct FormatVersion {
    std::uint16_t major;
    std::uint16_t minor;
};
std::string format_in_words(FormatVersion format);  // "1.0"
constexpr FormatVersion buffer_format = {1, 0};
constexpr FormatVersion weights_format = {1, 0};

// Raised by a build that uses the same layout in a way that earlier ones do not understand, while
// its format is not released.
constexpr std::uint64_t protocol_revision = 8;
constexpr std::size_t header_bytes = 4096;
constexpr unsigned max_ring_entries = 8;

struct RingEntry {
    std::uint32_t used;  // 1, or 0 behind the last ring
    std::uint32_t prioritized;
    std::uint64_t capacity;  // slots
    std::uint64_t row_bytes;
    std::uint64_t stride;
    double alpha;
    double eps;
    std::uint64_t counters_offset;
    std::uint64_t heads_offset;  // SlotHead of slot 0
    std::uint64_t head_stride;
    std::uint64_t leaf_offset;
    std::uint64_t records_offset;  // the row of slot 0
    std::uint64_t reserved[5];
};
static_assert(sizeof(RingEntry) == 128);

struct WeightsEntry {
    std::uint64_t slots;
    std::uint64_t bytes;   // of one version
    std::uint64_t stride;  // from one version to the next
    std::uint64_t board_offset;
    std::uint64_t slots_offset;
    std::uint64_t readers_offset;
    std::uint64_t versions_offset;
    std::uint64_t reserved[9];
};
static_assert(sizeof(WeightsEntry) == 128);

struct SegmentHeader {
    char magic[8];
    SegmentKind kind;
    FormatVersion format;
    std::uint64_t signature;
    std::uint64_t checksum;  // of the header with this field 0, and the description
    std::uint64_t total_bytes;
    std::uint64_t description_bytes;
    std::uint64_t process_table_offset;
    std::uint64_t role_line_offset;
    std::uint64_t seed;
    std::uint64_t created_at;   // ns since the epoch
    std::uint64_t max_handles;  // records of the process table, 1 to 1022
    std::uint64_t reserved[5];
    RingEntry ring[max_ring_entries];  // of a buffer: its rows, then its sources; all 0 of weights
    WeightsEntry weights;              // of weights; all 0 of a buffer
};
static_assert(sizeof(SegmentHeader) == 128 + (max_ring_entries + 1) * 128);
static_assert(sizeof(SegmentHeader) <= header_bytes);

// A ring of what rows refer to: frames, or steps, that several of them have in common.
struct SourceShape {
    std::uint64_t capacity;
    std::uint64_t bytes;  // of one source
};

struct RingShape {
    std::uint64_t capacity;
    std::uint64_t row_bytes;
    bool prioritized;
    double alpha;
    double eps;
    std::vector<SourceShape> sources = {};  // at most 7
    std::uint64_t max_handles = 0;  // that may be open at once; 0: as many as default_handles()
};

// 1022, but never more records than a sixteenth of the bytes of rows and sources pays for, and at
// least 62.
std::uint64_t default_handles(const RingShape& shape);

// Plans a segment of one ring of rows, and the rings that they refer to. InvalidArgument if it
// would not fit into 2^46 bytes.
SegmentHeader plan_segment(const RingShape& shape, const std::string& description,
                           std::uint64_t seed);

struct WeightsShape {
    std::uint64_t bytes;  // of one version
    std::uint64_t slots;
    std::uint64_t max_handles = 1022;
};

// The same for a segment of weights.
SegmentHeader plan_segment(const WeightsShape& shape, const std::string& description);

// What header.checksum has to be, whatever it is: for tests that damage a header and seal it again.
std::uint64_t header_checksum(SegmentHeader header, const std::string& description);

// Writes header and description into the segment's first bytes.
void write_header(std::byte* segment, SegmentHeader header, const std::string& description);

// Copies header and description out of a segment and checks the copies: magic, kind, format,
// signature, checksum, sizes against `bytes`, every offset, and that it is of the kind expected
// (none: of any). SegmentMismatch names what is wrong.
SegmentHeader read_header(const std::byte* segment, std::size_t bytes, const std::string& name,
                          std::string& description,
                          SegmentKind expected_kind = SegmentKind::buffer);

}  // namespace mpbuffer
