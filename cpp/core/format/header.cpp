#include "format/header.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <optional>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/round_up.hpp"
#include "format/process_records.hpp"
#include "format/ring_records.hpp"
#include "format/role_line.hpp"
#include "format/slot_word.hpp"
#include "format/version_records.hpp"

namespace mpbuffer {

namespace {

static_assert(max_ring_entries == max_rings);

constexpr std::uint64_t max_segment_bytes = std::uint64_t{1} << 46;
constexpr std::uint64_t max_capacity = std::uint64_t{1} << 40;
constexpr std::uint64_t max_description_bytes = std::uint64_t{1} << 30;
constexpr std::uint64_t least_default_handles = 62;

class Fnv {
  public:
    void add(const void* data, std::size_t bytes) {
        const auto* at = static_cast<const unsigned char*>(data);
        for (std::size_t i = 0; i < bytes; ++i) hash_ = (hash_ ^ at[i]) * 0x100000001b3u;
    }
    void add(std::uint64_t value) { add(&value, sizeof value); }
    std::uint64_t value() const { return hash_; }

  private:
    std::uint64_t hash_ = 0xcbf29ce484222325u;
};

std::uint64_t signature_of(std::initializer_list<std::uint64_t> values) {
    Fnv hash;
    for (const std::uint64_t value :
         {std::uint64_t{0x0102030405060708}, std::uint64_t{sizeof(SegmentHeader)},
          std::uint64_t{sizeof(SharedRoleLine)}, std::uint64_t{sizeof(RoleHolder)},
          std::uint64_t{sizeof(LearnerFigures)}, std::uint64_t{sizeof(ProcessRecord)},
          std::uint64_t{offsetof(ProcessRecord, mapped_at)},
          std::uint64_t{offsetof(ProcessRecord, epochs_not_left)}, std::uint64_t{sizeof(RingState)},
          std::uint64_t{offsetof(RingState, rows_before)},
          std::uint64_t{process_table_bytes(max_processes)}, std::uint64_t{header_bytes},
          protocol_revision}) {
        hash.add(value);
    }
    for (const std::uint64_t value : values) hash.add(value);
    return hash.value();
}

std::uint64_t signature_of(SegmentKind kind) {
    if (kind == SegmentKind::weights) {
        return signature_of({sizeof(WeightsEntry), sizeof(VersionBoard), sizeof(VersionSlot),
                             sizeof(ReaderLine), reader_mark::epoch_bits});
    }
    return signature_of({sizeof(RingEntry), sizeof(RingCounters),
                         offsetof(RingCounters, clear_before), offsetof(RingCounters, filled),
                         offsetof(RingCounters, max_priority), sizeof(SlotHead),
                         offsetof(SlotHead, leaf_in), offsetof(SlotHead, lap), slot_word::seq_bits,
                         slot_word::owner_bits, slot_word::epoch_bits});
}

// Gives out consecutive ranges of a segment.
class Planner {
  public:
    explicit Planner(std::uint64_t start) : end_(start) {}
    std::uint64_t place(std::uint64_t bytes, std::uint64_t alignment) {
        const std::uint64_t offset = round_up(end_, alignment);
        end_ = offset + bytes;
        return offset;
    }
    std::uint64_t end() const { return end_; }

  private:
    std::uint64_t end_;
};

FormatVersion format_of(SegmentKind kind) {
    return kind == SegmentKind::weights ? weights_format : buffer_format;
}

// All but the parts that each kind has of its own.
SegmentHeader begin_header(SegmentKind kind, std::uint64_t description_bytes,
                           std::uint64_t max_handles, Planner& planner) {
    SegmentHeader header{};
    std::memcpy(header.magic, segment_magic, sizeof header.magic);
    header.kind = kind;
    header.format = format_of(kind);
    header.signature = signature_of(kind);
    header.description_bytes = description_bytes;
    header.max_handles = max_handles;
    planner.place(description_bytes, 1);
    header.process_table_offset = planner.place(process_table_bytes(max_handles), 64);
    header.role_line_offset = planner.place(sizeof(SharedRoleLine), 64);
    return header;
}

SegmentHeader place_everything(const WeightsShape& shape, std::uint64_t description_bytes) {
    Planner planner(header_bytes);
    SegmentHeader header =
        begin_header(SegmentKind::weights, description_bytes, shape.max_handles, planner);
    WeightsEntry& weights = header.weights;
    weights.slots = shape.slots;
    weights.bytes = shape.bytes;
    weights.stride = round_up(std::max<std::uint64_t>(shape.bytes, 1), 4096);
    weights.board_offset = planner.place(sizeof(VersionBoard), 64);
    weights.slots_offset = planner.place(shape.slots * sizeof(VersionSlot), 64);
    weights.readers_offset = planner.place((shape.max_handles + 1) * sizeof(ReaderLine), 64);
    weights.versions_offset = planner.place(shape.slots * weights.stride, 4096);
    header.total_bytes = round_up(planner.end(), 4096);
    return header;
}

// Counters and heads first: their lines are written by many, the sources by one each.
void place_sources(const SourceShape& shape, RingEntry& ring, Planner& planner) {
    const RecordLayout layout = source_layout(shape.bytes);
    ring.used = 1;
    ring.capacity = shape.capacity;
    ring.row_bytes = shape.bytes;
    ring.stride = layout.stride;
    ring.head_stride = layout.head_stride;
    ring.counters_offset = planner.place(sizeof(RingCounters), 64);
    ring.heads_offset = planner.place(shape.capacity * sizeof(SlotHead), 64);
    ring.records_offset = planner.place(shape.capacity * layout.stride, 4096);
}

SegmentHeader place_everything(const RingShape& shape, std::uint64_t description_bytes) {
    Planner planner(header_bytes);
    const std::uint64_t max_handles =
        shape.max_handles == 0 ? default_handles(shape) : shape.max_handles;
    SegmentHeader header =
        begin_header(SegmentKind::buffer, description_bytes, max_handles, planner);
    RingEntry& ring = header.ring[0];
    ring.used = 1;
    ring.prioritized = shape.prioritized ? 1 : 0;
    ring.capacity = shape.capacity;
    ring.row_bytes = shape.row_bytes;
    ring.alpha = shape.alpha;
    ring.eps = shape.eps;
    ring.counters_offset = planner.place(sizeof(RingCounters), 64);
    const RecordLayout layout = record_layout(shape.row_bytes);
    ring.stride = layout.stride;
    ring.head_stride = layout.head_stride;
    if (!layout.heads_inside) {
        ring.heads_offset = planner.place(shape.capacity * sizeof(SlotHead), 64);
    }
    if (shape.prioritized) {
        ring.leaf_offset = planner.place(padded_leaves(shape.capacity) * sizeof(float), 64);
    }
    ring.records_offset = planner.place(shape.capacity * layout.stride, 4096);
    if (layout.heads_inside) {
        ring.heads_offset = ring.records_offset;
        ring.records_offset += sizeof(SlotHead);
    }
    for (std::size_t i = 0; i < shape.sources.size(); ++i) {
        place_sources(shape.sources[i], header.ring[i + 1], planner);
    }
    header.total_bytes = round_up(planner.end(), 4096);
    return header;
}

bool plausible(const SourceShape& shape) {
    return shape.capacity >= fewest_sources && shape.capacity <= most_sources && shape.bytes >= 1 &&
           shape.bytes <= max_segment_bytes / (2 * max_ring_entries) &&
           shape.capacity <= max_segment_bytes / (2 * max_ring_entries) /
                                 (source_layout(shape.bytes).stride + 32);
}

bool plausible(const RingShape& shape, std::uint64_t description_bytes) {
    return shape.sources.size() < max_ring_entries &&
           std::all_of(
               shape.sources.begin(), shape.sources.end(),
               [](const SourceShape& each) { return plausible(each); }) &&
           (shape.sources.empty() || shape.row_bytes >= 8 * shape.sources.size()) &&
           shape.capacity >= 1 && shape.capacity <= max_capacity &&
           shape.max_handles <= max_processes && shape.row_bytes <= max_segment_bytes &&
           description_bytes <= max_description_bytes &&
           shape.capacity <= max_segment_bytes / (record_layout(shape.row_bytes).stride + 32);
}

bool plausible(const WeightsShape& shape, std::uint64_t description_bytes) {
    return shape.max_handles >= 1 && shape.max_handles <= max_processes &&
           shape.slots >= min_version_slots && shape.slots <= max_version_slots &&
           shape.bytes <= max_segment_bytes / max_version_slots &&
           description_bytes <= max_description_bytes;
}

// The header that a segment of this one's shape has; nothing if there can be none.
std::optional<SegmentHeader> expected_header(const SegmentHeader& header) {
    if (header.kind == SegmentKind::weights) {
        const WeightsShape shape{header.weights.bytes, header.weights.slots, header.max_handles};
        if (!plausible(shape, header.description_bytes)) return std::nullopt;
        return place_everything(shape, header.description_bytes);
    }
    if (header.max_handles == 0) return std::nullopt;
    const RingEntry& ring = header.ring[0];
    RingShape shape{ring.capacity, ring.row_bytes, ring.prioritized != 0, ring.alpha, ring.eps};
    for (unsigned i = 1; i < max_ring_entries && header.ring[i].used != 0; ++i) {
        shape.sources.push_back({header.ring[i].capacity, header.ring[i].row_bytes});
    }
    shape.max_handles = header.max_handles;
    if (!plausible(shape, header.description_bytes) || ring.used != 1 || ring.prioritized > 1 ||
        !std::isfinite(ring.alpha) || !std::isfinite(ring.eps) || ring.alpha < 0 || ring.eps < 0) {
        return std::nullopt;
    }
    return place_everything(shape, header.description_bytes);
}

const char* kind_in_words(SegmentKind kind) {
    return kind == SegmentKind::weights ? "the weights of a SharedWeights" : "a replay buffer";
}

void seal(SegmentHeader& header, const std::string& description) {
    header.created_at = wall_clock_ns();
    header.checksum = header_checksum(header, description);
}

}  // namespace

std::string format_in_words(FormatVersion format) {
    return std::to_string(format.major) + "." + std::to_string(format.minor);
}

std::uint64_t header_checksum(SegmentHeader header, const std::string& description) {
    header.checksum = 0;
    Fnv hash;
    hash.add(&header, sizeof header);
    hash.add(description.data(), description.size());
    return hash.value();
}

std::uint64_t default_handles(const RingShape& shape) {
    std::uint64_t bytes = shape.capacity * record_layout(shape.row_bytes).stride;
    for (const SourceShape& each : shape.sources) {
        bytes += each.capacity * source_layout(each.bytes).stride;
    }
    return std::clamp<std::uint64_t>(bytes / 16 / sizeof(ProcessRecord), least_default_handles,
                                     max_processes);
}

SegmentHeader plan_segment(const RingShape& shape, const std::string& description,
                           std::uint64_t seed) {
    if (!plausible(shape, description.size())) {
        throw InvalidArgument("cannot plan a segment of " + std::to_string(shape.capacity) +
                              " rows of " + std::to_string(shape.row_bytes) + " bytes for " +
                              std::to_string(shape.max_handles) +
                              " handles: at least 1 row, at most 2^46 bytes and at most " +
                              std::to_string(max_processes) + " handles are possible");
    }
    SegmentHeader header = place_everything(shape, description.size());
    header.seed = seed;
    seal(header, description);
    return header;
}

SegmentHeader plan_segment(const WeightsShape& shape, const std::string& description) {
    if (!plausible(shape, description.size())) {
        throw InvalidArgument("cannot plan a segment for " + std::to_string(shape.slots) +
                              " versions of " + std::to_string(shape.bytes) + " bytes and " +
                              std::to_string(shape.max_handles) +
                              " handles: 3 to 64 of at most 2^40 bytes, and 1 to " +
                              std::to_string(max_processes) + " handles are possible");
    }
    SegmentHeader header = place_everything(shape, description.size());
    seal(header, description);
    return header;
}

void write_header(std::byte* segment, SegmentHeader header, const std::string& description) {
    std::memcpy(segment + header_bytes, description.data(), description.size());
    std::memcpy(segment, &header, sizeof header);
}

SegmentHeader read_header(const std::byte* segment, std::size_t bytes, const std::string& name,
                          std::string& description, SegmentKind expected_kind) {
    const auto refuse = [&name](const std::string& why) -> void {
        throw SegmentMismatch("cannot attach '" + name + "': " + why);
    };
    if (bytes < header_bytes) {
        refuse("the file has " + std::to_string(bytes) + " bytes, a segment at least " +
               std::to_string(header_bytes) + " (truncated, or not a segment)");
    }
    SegmentHeader header;
    std::memcpy(&header, segment, sizeof header);
    if (std::memcmp(header.magic, segment_magic, sizeof header.magic) != 0) {
        refuse("the file does not begin with 'mpbuffer' (not a segment of this library)");
    }
    if (header.kind != SegmentKind::buffer && header.kind != SegmentKind::weights) {
        refuse("it is of kind " + std::to_string(static_cast<std::uint32_t>(header.kind)) +
               ", which this mpbuffer does not know (of a later one, or damaged)");
    }
    const FormatVersion reads = format_of(header.kind);
    if (header.format.major != reads.major) {
        refuse(std::string("it is ") + kind_in_words(header.kind) + " of format " +
               format_in_words(header.format) + ", this mpbuffer reads " +
               std::to_string(reads.major) + ".x; use the version of mpbuffer that made it");
    }
    if (header.signature != signature_of(header.kind)) {
        refuse(
            "another build of mpbuffer has laid it out in another way; use the same build in "
            "all processes");
    }
    if (header.total_bytes != bytes) {
        refuse("the file has " + std::to_string(bytes) + " bytes, its header says " +
               std::to_string(header.total_bytes) + " (truncated, or damaged)");
    }
    if (header.description_bytes > std::min(bytes - header_bytes, max_description_bytes)) {
        refuse("the description's length of " + std::to_string(header.description_bytes) +
               " bytes does not fit into the file (damaged)");
    }
    description.assign(reinterpret_cast<const char*>(segment) + header_bytes,
                       header.description_bytes);
    if (header.checksum != header_checksum(header, description)) {
        refuse("the checksum of its header is wrong (damaged)");
    }
    const auto planned = expected_header(header);
    if (!planned) refuse("the shape in its header cannot be (damaged)");
    // Everything's place follows from the shape: whatever differs is damage.
    SegmentHeader expected = *planned;
    expected.format.minor = header.format.minor;
    expected.seed = header.seed;
    expected.created_at = header.created_at;
    expected.checksum = header.checksum;
    if (std::memcmp(&expected, &header, sizeof header) != 0) {
        refuse("the header's offsets do not follow from its shape (damaged)");
    }
    if (expected_kind != SegmentKind::none && header.kind != expected_kind) {
        refuse(std::string("it holds ") + kind_in_words(header.kind) + ", expected " +
               kind_in_words(expected_kind));
    }
    return header;
}

}  // namespace mpbuffer
