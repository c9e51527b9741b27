#include "weights/shared_weights.hpp"

#include <utility>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/shared_copy.hpp"

namespace mpbuffer {

namespace {

constexpr std::uint64_t part_alignment = 64;

// Where each part begins, and behind the last the length of all; false if that is no number.
bool place_parts(const std::vector<std::uint64_t>& part_bytes, std::vector<std::uint64_t>& offsets,
                 std::uint64_t& total) {
    offsets.clear();
    total = 0;
    for (const std::uint64_t bytes : part_bytes) {
        std::uint64_t begin = 0;
        if (__builtin_add_overflow(total, part_alignment - 1, &begin)) return false;
        begin = begin / part_alignment * part_alignment;
        offsets.push_back(begin);
        if (__builtin_add_overflow(begin, bytes, &total)) return false;
    }
    return true;
}

// Makes a sentence of what the slots tell of damage.
template <class Call>
auto naming(const char* verb, const std::string& name, Call&& call) {
    try {
        return call();
    } catch (const SegmentMismatch& damage) {
        throw SegmentMismatch("cannot " + std::string(verb) + " '" + name + "': " + damage.what());
    }
}

}  // namespace

std::unique_ptr<SharedWeights> SharedWeights::create(const WeightsSettings& settings,
                                                     std::span<const std::byte* const> first) {
    return made_by([&] {
        std::vector<std::uint64_t> offsets;
        std::uint64_t bytes = 0;
        if (!place_parts(settings.part_bytes, offsets, bytes)) bytes = ~std::uint64_t{0};
        const SegmentHeader header = plan_segment(
            WeightsShape{bytes, settings.slots, settings.max_handles}, settings.description);
        SharedSegment segment =
            SharedSegment::create(settings.name, header.total_bytes, settings.segment);
        write_header(segment.data(), header, settings.description);
        std::unique_ptr<SharedWeights> weights(
            new SharedWeights(std::move(segment), header, settings.description));
        weights->start();
        weights->set_parts(settings.part_bytes);
        weights->publish(first);
        weights->segment_.make_visible();
        return weights;
    });
}

SharedWeights::SharedWeights(SharedSegment segment, const SegmentHeader& header,
                             std::string description)
    : Attachable(std::move(segment), header, std::move(description), RoleKind::publisher) {
    const WeightsEntry& weights = header_.weights;
    slots_ =
        VersionSlots(at<VersionBoard>(weights.board_offset), at<VersionSlot>(weights.slots_offset),
                     slot_count(), at<ReaderLine>(weights.readers_offset), max_handles() + 1,
                     at<std::byte>(weights.versions_offset), weights.stride);
    naming("attach", name_, [this] { return slots_.offer_now(); });
}

SharedWeights::~SharedWeights() {
    leave_children();
    close();
    unwatch();
}

void SharedWeights::close() noexcept {
    if (!is_open()) return;
    accepting_ = false;
    const Guard nobody_publishes(publish_mutex_);
    const Guard nobody_reads(read_mutex_);
    const GuardOfOne nobody_asks(asking_);
    let_others_run();
    leave();
}

void SharedWeights::forget_parent() noexcept {
    accepting_ = true;
    publish_mutex_.renew_in_child();
    read_mutex_.renew_in_child();
    asking_.renew_in_child();
}

void SharedWeights::enroll() const {
    identity_ = processes_.enroll(locks("enroll in"));
    slots_.open_line(identity_.number);
}

// Dead or stopped, by proof; a stopped one that goes on finds its copy overwritten and repeats it.
bool SharedWeights::gone(unsigned number, std::uint64_t mark) const {
    if (number == identity_.number) return false;
    if (processes_.dead(number, reader_mark::epoch(mark), reader_mark::epoch_bits,
                        locks("publish to"))) {
        // Fails where the number's next owner has a mark of its own by now.
        slots_.line(number).mark.compare_exchange_strong(mark, 0, std::memory_order_relaxed);
        return true;
    }
    const char state = processes_.state(number, locks("ask who is alive in"));
    return state == 'T' || state == 't' || state == 'X';
}

void SharedWeights::set_parts(const std::vector<std::uint64_t>& part_bytes) {
    std::vector<std::uint64_t> offsets;
    std::uint64_t total = 0;
    if (!place_parts(part_bytes, offsets, total) || total != bytes()) {
        throw SegmentMismatch("cannot attach '" + name_ + "': its arrays make " +
                              std::to_string(total) + " bytes, its header says " +
                              std::to_string(bytes()));
    }
    part_bytes_ = part_bytes;
    part_offsets_ = std::move(offsets);
}

std::uint64_t SharedWeights::publish(std::span<const std::byte* const> parts) {
    const CoreCall call;
    let_others_copy(bytes());
    const Guard guard(publish_mutex_);
    ready();
    if (parts.size() != part_bytes_.size()) {
        throw InvalidArgument("cannot publish to '" + name_ + "': got " +
                              std::to_string(parts.size()) + " arrays, expected " +
                              std::to_string(part_bytes_.size()));
    }
    if (!role_.held()) {
        role_.take();
        role_.name_holder(identity_.number);
    }
    const auto copy = [&](std::byte* record) {
        for (std::size_t i = 0; i < parts.size(); ++i) {
            if (part_bytes_[i] == 0) continue;  // then the pointer may be null
            store_to_record(record + part_offsets_[i], parts[i], part_bytes_[i]);
        }
    };
    return naming("publish to", name_, [&] {
        return slots_.publish(monotonic_ns(), copy, [this](unsigned number, std::uint64_t mark) {
            return gone(number, mark);
        });
    });
}

Publication SharedWeights::read(std::span<std::byte* const> parts, std::uint64_t newer_than) {
    const CoreCall call;
    let_others_copy(bytes());
    const Guard guard(read_mutex_);
    ready();
    if (parts.size() != part_bytes_.size()) {
        throw InvalidArgument("cannot read '" + name_ + "': got " + std::to_string(parts.size()) +
                              " arrays, expected " + std::to_string(part_bytes_.size()));
    }
    const auto copy = [&](const std::byte* record) {
        for (std::size_t i = 0; i < parts.size(); ++i) {
            if (part_bytes_[i] == 0) continue;
            load_from_record(parts[i], record + part_offsets_[i], part_bytes_[i]);
        }
    };
    return naming("read", name_, [&] {
        return slots_.read(
            identity_.number, identity_.epoch, newer_than, copy,
            [this](unsigned number, std::uint64_t mark) { return gone(number, mark); });
    });
}

Publication SharedWeights::latest() const {
    const GuardOfMany stays_open(asking_);
    ready();
    return naming("read", name_, [this] {
        return slots_.latest(
            [this](unsigned number, std::uint64_t mark) { return gone(number, mark); });
    });
}

std::uint64_t SharedWeights::newest() const {
    if (accepting_) return slots_.newest();
    const GuardOfMany until_closed(asking_);
    ready();
    return slots_.newest();
}

std::uint64_t SharedWeights::repeated_reads() const {
    const GuardOfMany stays_open(asking_);
    ready();
    return slots_.line(identity_.number).repeats.load(std::memory_order_relaxed);
}

RoleHolder SharedWeights::publisher() const {
    const GuardOfMany stays_open(asking_);
    ready();
    return role_.status().holder;
}

void SharedWeights::release_publisher() {
    const Guard guard(publish_mutex_);
    release_role();
}

void SharedWeights::release_role() {
    if (role_.held() && here()) role_.release();
}

}  // namespace mpbuffer
