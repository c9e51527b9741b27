#include "ring/frame_writer.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/stop_points.hpp"
#include "ring/planes.hpp"

namespace mpbuffer {

namespace {

constexpr std::size_t most_known = 4096;
constexpr std::size_t positions_kept = 2048;

std::uint64_t mixed(std::uint64_t hash) {
    hash = (hash ^ (hash >> 32)) * 0xd6e8feb86659fd93u;
    return hash ^ (hash >> 32);
}

// Four words at a time, since a multiplication takes as long as four of them begin.
std::uint64_t hash_of(const std::byte* frame, std::size_t bytes) {
    constexpr std::uint64_t factor = 0x9e3779b97f4a7c15u;
    std::uint64_t lanes[4] = {1, 2, 3, 4};
    std::size_t at = 0;
    for (; at + 32 <= bytes; at += 32) {
        std::uint64_t words[4];
        std::memcpy(words, frame + at, 32);
        for (int i = 0; i < 4; ++i) lanes[i] = std::rotl((lanes[i] ^ words[i]) * factor, 29);
    }
    for (; at < bytes; at += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, frame + at, std::min<std::size_t>(8, bytes - at));
        lanes[0] = std::rotl((lanes[0] ^ word) * factor, 29);
    }
    return mixed(lanes[0] + mixed(lanes[1] + mixed(lanes[2] + mixed(lanes[3]))));
}

}  // namespace

FrameWriter::FrameWriter(const Sources& sources) : sources_(sources), writer_(sources) {
    const std::vector<StoredField>& fields = sources.layout().fields();
    separated_.resize(fields.size());
    std::vector<std::size_t> starts(fields.size(), none);
    for (std::size_t f = 0; f < fields.size(); ++f) {
        const StoredField& field = fields[f];
        if (!field.shared()) continue;
        starts[f] = references_.size();
        if (field.cut.last_axis) separated_[f].resize(field.bytes);
        for (std::size_t k = 0; k < field.cut.planes; ++k) {
            references_.push_back({field.cut.ring, f, k, field.plane_bytes(), none, {none, none}});
        }
    }
    // A field's next value is in the field after it of the same ring; a stack moves on by a plane.
    for (std::size_t f = 0; f < fields.size(); ++f) {
        if (!fields[f].shared()) continue;
        const std::size_t planes = fields[f].cut.planes;
        std::size_t next = f + 1;
        while (next < fields.size() &&
               (fields[next].cut.ring != fields[f].cut.ring || fields[next].cut.planes != planes)) {
            ++next;
        }
        for (std::size_t k = 0; k < planes; ++k) {
            Reference& here = references_[starts[f] + k];
            if (k + 1 < planes) here.last_row[1] = starts[f] + k + 1;
            if (next == fields.size()) continue;
            here.last_row[0] = starts[next] + k;
            if (k > 0) references_[starts[next] + k - 1].same_row = starts[f] + k;
        }
    }
    for (unsigned ring = 1; ring <= sources.rings(); ++ring) {
        known_.emplace_back(
            std::bit_ceil(std::clamp<std::size_t>(sources.ring(ring).capacity(), 16, most_known)));
    }
    planes_.resize(references_.size());
    positions_.resize(SourceWriter::rows_at_once * references_.size());
    rows_kept_ = std::max<std::uint64_t>(positions_kept / references_.size(), 1);
    history_.resize(rows_kept_ * references_.size());
}

// Finds the planes of row `i`; valid until the next call.
void FrameWriter::locate(std::span<const FieldSource> fields, std::uint64_t i) {
    const std::vector<StoredField>& stored = sources_.layout().fields();
    std::size_t a = 0;
    for (std::size_t f = 0; f < stored.size(); ++f) {
        if (!stored[f].shared()) continue;
        const PlaneCut& cut = stored[f].cut;
        const std::size_t bytes = stored[f].plane_bytes();
        const std::byte* value = fields[f].values + i * fields[f].step;
        if (cut.last_axis) {
            separate(separated_[f].data(), value, cut.planes, bytes / cut.element_bytes,
                     cut.element_bytes);
            value = separated_[f].data();
        }
        for (std::size_t k = 0; k < cut.planes; ++k) planes_[a++] = value + k * bytes;
    }
}

std::uint64_t FrameWriter::prepare(std::span<const FieldSource> fields, std::uint64_t first,
                                   std::uint64_t count, const PutSource& put) {
    count = writer_.few_enough(count);
    first_ = first;
    std::uint64_t ready = 0;
    for (; ready < count; ++ready) {
        locate(fields, first + ready);
        if (!prepare_row(positions_.data() + ready * references_.size(), put)) break;
    }
    writer_.note_birth();
    return ready;
}

bool FrameWriter::prepare_row(std::uint64_t* positions, const PutSource& put) {
    writer_.look();
    for (std::size_t a = 0; a < references_.size(); ++a) {
        const Reference& reference = references_[a];
        positions[a] = find_near(a, positions);
        if (positions[a] != 0) continue;
        const std::uint64_t hash = hash_of(planes_[a], reference.bytes);
        positions[a] = find_known(reference, planes_[a], hash);
        if (positions[a] != 0) {
            if (a == 0) find_stride(positions[0]);
            continue;
        }
        positions[a] = put(reference.ring, planes_[a]);
        if (positions[a] == 0) return false;
        ++frames_written_;
        remember(reference, hash, positions[a]);
    }
    frames_given_ += references_.size();
    std::copy_n(positions, references_.size(),
                history_.data() + rows_seen_ % rows_kept_ * references_.size());
    ++rows_seen_;
    return true;
}

const std::uint64_t* FrameWriter::row_before(std::uint64_t rows) const {
    if (rows > std::min(rows_seen_, rows_kept_)) return nullptr;
    return history_.data() + (rows_seen_ - rows) % rows_kept_ * references_.size();
}

// Where an environment's last row has the frame, or this row, if it is the usual place.
std::uint64_t FrameWriter::find_near(std::size_t a, const std::uint64_t* positions) const {
    const Reference& reference = references_[a];
    if (reference.same_row != none &&
        std::memcmp(planes_[a], planes_[reference.same_row], reference.bytes) == 0) {
        return positions[reference.same_row];
    }
    const std::uint64_t* const last = row_before(stride_);
    if (last == nullptr) return 0;
    std::uint64_t tried = 0;
    for (const std::size_t there : reference.last_row) {
        if (there == none || last[there] == tried) continue;
        tried = last[there];
        if (holds(reference, tried, planes_[a])) return tried;
    }
    return 0;
}

// Two places for each hash, the newer frame in the first.
std::uint64_t FrameWriter::find_known(const Reference& reference, const std::byte* frame,
                                      std::uint64_t hash) const {
    const std::vector<Known>& known = known_[reference.ring - 1];
    const Known* const places = &known[hash & (known.size() - 2)];
    for (std::size_t i = 0; i < 2; ++i) {
        if (places[i].hash == hash && holds(reference, places[i].position, frame)) {
            return places[i].position;
        }
    }
    return 0;
}

void FrameWriter::remember(const Reference& reference, std::uint64_t hash, std::uint64_t position) {
    std::vector<Known>& known = known_[reference.ring - 1];
    Known* const places = &known[hash & (known.size() - 2)];
    places[1] = places[0];
    places[0] = {hash, position};
}

// Whether that frame, which may be overwritten any time, is there and not soon too old.
bool FrameWriter::holds(const Reference& reference, std::uint64_t position,
                        const std::byte* frame) const {
    const SlotRing& ring = sources_.ring(reference.ring);
    if (writer_.soon_too_old(reference.ring, position)) return false;
    const std::uint64_t slot = position % ring.capacity();
    std::atomic<std::uint64_t>& word = ring.word(slot);
    const std::uint64_t expected = slot_word::committed(position);
    return word.load(std::memory_order_acquire) == expected &&
           equals_record(frame, ring.record(slot), reference.bytes) && unchanged(word, expected);
}

// The row that referred to this position is where the next ones of its environment will be looked
// for.
void FrameWriter::find_stride(std::uint64_t position) {
    for (std::uint64_t rows = 1; rows <= std::min(rows_seen_, rows_kept_); ++rows) {
        const std::uint64_t* const row = row_before(rows);
        if (std::find(row, row + references_.size(), position) != row + references_.size()) {
            stride_ = rows;
            return;
        }
    }
}

bool FrameWriter::store(std::span<const FieldSource> fields, std::uint64_t i, std::byte* record,
                        const PutSource& put) {
    std::uint64_t* const positions = positions_.data() + (i - first_) * references_.size();
    writer_.look();  // after the claim: see sources.hpp
    writer_.store_birth(record);
    stop_point(StopPoint::field_copied);
    bool located = false;
    const std::vector<StoredField>& stored = sources_.layout().fields();
    std::size_t a = 0;
    for (std::size_t f = 0; f < stored.size(); ++f) {
        const StoredField& field = stored[f];
        if (!field.shared()) {
            store_to_record(record + field.stored, fields[f].values + i * fields[f].step,
                            field.bytes);
            stop_point(StopPoint::field_copied);
            continue;
        }
        for (std::size_t k = 0; k < field.cut.planes; ++k, ++a) {
            const Reference& reference = references_[a];
            if (writer_.too_old(reference.ring, positions[a])) {
                if (!located) locate(fields, i);
                located = true;
                positions[a] = put(reference.ring, planes_[a]);
                if (positions[a] == 0) return false;
                ++frames_written_;
                remember(reference, hash_of(planes_[a], reference.bytes), positions[a]);
            }
            writer_.store_reference(record + field.stored + 4 * k, reference.ring, positions[a]);
        }
    }
    return true;
}

}  // namespace mpbuffer
