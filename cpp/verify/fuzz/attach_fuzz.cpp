// One file, though long: subjects, mutations and calls follow one recipe, and none is of use alone.
#include "attach_fuzz.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "buffer/replay_buffer.hpp"
#include "format/header.hpp"
#include "format/row_layout.hpp"
#include "format/row_schema.hpp"
#include "format/slot_word.hpp"
#include "inspect/inspection.hpp"
#include "os/file_locks.hpp"
#include "os/process_stat.hpp"
#include "ring/sequence_writer.hpp"
#include "ring/slot_ring.hpp"
#include "segment/names.hpp"
#include "segment/process_table.hpp"
#include "segment/segment_file.hpp"
#include "select/sum_tree.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define MPBUFFER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MPBUFFER_ASAN 1
#endif
#endif
#ifdef MPBUFFER_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#endif

namespace mpbuffer::fuzz {

namespace {

constexpr std::size_t extra_bytes = 16384;  // by which a file may be longer than the valid one
constexpr std::uint64_t largest_row_used = 1 << 16;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "attach_fuzz: %s\n", what);
    std::abort();
}

void require(bool right, const char* what) {
    if (!right) fail(what);
}

class Recipe {
  public:
    Recipe(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
    bool is_over() const { return at_ >= size_; }
    template <class Number>
    Number take() {
        Number number{};
        const std::size_t bytes = std::min(sizeof number, size_ - at_);
        if (bytes != 0) std::memcpy(&number, data_ + at_, bytes);
        at_ += bytes;
        return number;
    }
    std::uint64_t below(std::uint64_t bound) { return take<std::uint32_t>() % bound; }

  private:
    const std::uint8_t* data_;
    std::size_t size_;
    std::size_t at_ = 0;
};

std::string directory;

void remove_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(directory, ignored);
}

// A valid segment, kept as it was; its file, in use by this program, which gets it back before
// each case; and a copy in private memory, of whose header the same is true.
struct Subject {
    std::string name;
    bool of_frames = false;
    SegmentHeader header;
    std::string description;
    std::vector<std::byte> valid;
    std::vector<std::byte> memory;
    int fd = -1;
    std::byte* file = nullptr;  // valid.size() + extra_bytes of address space
};

// Gives record `number` an epoch; of a process that lives (this one), or of none.
void pretend_process(std::byte* base, const SegmentHeader& header, unsigned number, bool living) {
    ProcessTable table(base + header.process_table_offset, header.max_handles);
    ProcessRecord& record = table.record(number);
    record.epoch = 1;
    record.pid = static_cast<std::uint64_t>(getpid());
    record.start_time = read_process_stat(0)->start_time - (living ? 0 : 1);
    record.pid_namespace = own_pid_namespace();
    record.time_namespace = own_time_namespace();
    record.mapped_at = reinterpret_cast<std::uintptr_t>(base + header.process_table_offset);
    auto* high_water =
        reinterpret_cast<std::atomic<std::uint64_t>*>(base + header.process_table_offset);
    *high_water = std::max<std::uint64_t>(*high_water, number);
}

void pretend_claim(std::byte* base, const SegmentHeader& header, std::uint64_t slot,
                   unsigned number) {
    std::atomic<std::uint64_t>& word = SlotRing(base, header.ring[0]).word(slot);
    const std::uint64_t seq = slot_word::seq(word) + header.ring[0].capacity;
    word = slot_word::claimed(seq, number, 1, false);
    auto* counters = reinterpret_cast<RingCounters*>(base + header.ring[0].counters_offset);
    counters->cursor = std::max<std::uint64_t>(counters->cursor, seq + 1);
}

// Of the subject whose rows are sequences.
constexpr std::size_t longest_sequence = 6;
constexpr std::size_t step_bytes = 24;
RowLayout sequence_layout() {
    const Schema step({{"id", 8, 8}, {"obs", 12, 4}, {"state", 4, 4}});
    return RowLayout(step, SequenceShape{longest_sequence, 2, {false, false, true}});
}

Sequence some_sequence(std::uint64_t first, std::size_t steps) {
    Sequence sequence;
    sequence.begins_episode = first % 2 == 0;
    for (std::size_t k = 0; k < steps; ++k) {
        auto step = std::make_shared<StoredStep>();
        step->bytes = std::make_unique<std::byte[]>(step_bytes);
        std::memcpy(step->bytes.get(), &first, sizeof first);
        sequence.steps.push_back(std::move(step));
    }
    return sequence;
}

// Of the subject whose rows share frames: a stack of two, and the next one.
constexpr std::size_t stack_bytes = 2 * 160;
constexpr std::uint64_t frames_in_a_stack = 2;
RowLayout frames_layout() {
    const Schema row({{"id", 8, 8}, {"stack", stack_bytes, 1}, {"next_stack", stack_bytes, 1}});
    const PlaneCut cut{1, frames_in_a_stack, false, 1};
    return RowLayout(row, {PlaneCut(), cut, cut});
}

struct FramesRow {
    std::uint64_t id;
    std::array<std::uint8_t, stack_bytes> stack;
    std::array<std::uint8_t, stack_bytes> next;

    explicit FramesRow(std::uint64_t number) : id(number) {
        for (std::size_t i = 0; i < stack_bytes; ++i) {
            stack[i] = static_cast<std::uint8_t>(number + i / 160);
            next[i] = static_cast<std::uint8_t>(stack[i] + 1);
        }
    }
};

void add_frames_row(ReplayBuffer& buffer, std::uint64_t number, const float* leaf) {
    const FramesRow row(number);
    const FieldSource fields[] = {
        {reinterpret_cast<const std::byte*>(&row.id), 0, 0, 8},
        {reinterpret_cast<const std::byte*>(row.stack.data()), 0, 0, stack_bytes},
        {reinterpret_cast<const std::byte*>(row.next.data()), 0, 0, stack_bytes}};
    buffer.add(1, fields, leaf, leaf == nullptr ? 0 : 0.5);
}

struct Plan {
    RingShape shape;
    std::string description;
    std::uint64_t rows;
    bool with_learner;
    bool with_claims;
    bool of_frames = false;
};

const char* const example_description =
    R"({"class": "PrioritizedReplayBuffer", "fields": [{"name": "a", "descr": "<f4", "shape": [10]}],)"
    R"( "strict": false, "attributes": {}})";

SegmentOptions options() {
    SegmentOptions in_directory;
    in_directory.directory = directory;
    return in_directory;
}

std::vector<std::byte>& values() {
    static std::vector<std::byte> bytes(8 * largest_row_used);
    return bytes;
}

Subject make_subject(const std::string& name, const Plan& plan) {
    Subject subject;
    subject.name = name;
    subject.of_frames = plan.of_frames;
    const auto buffer = ReplayBuffer::create({name, plan.shape, 42, plan.description, options()});
    const std::string path = segment_path(name, directory);
    subject.fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    require(subject.fd >= 0, "no file");
    require(try_lock(subject.fd, lock_byte::presence, LockKind::shared), "no presence");
    struct stat facts;
    require(fstat(subject.fd, &facts) == 0, "no file size");
    subject.valid.resize(static_cast<std::size_t>(facts.st_size));
    void* const mapped = mmap(nullptr, subject.valid.size() + extra_bytes, PROT_READ | PROT_WRITE,
                              MAP_SHARED, subject.fd, 0);
    require(mapped != MAP_FAILED, "no mapping");
    subject.file = static_cast<std::byte*>(mapped);
    subject.header = read_header(subject.file, subject.valid.size(), name, subject.description);

    const FieldSource source{values().data(), 0, 0, plan.shape.row_bytes};
    const std::vector<float> leaves(plan.rows, 0.5f);
    if (plan.of_frames) {
        buffer->describe_rows(frames_layout());
        for (std::uint64_t row = 0; row < plan.rows; ++row) {
            add_frames_row(*buffer, row, &leaves[row]);
        }
    } else if (!plan.shape.sources.empty()) {
        buffer->describe_rows(sequence_layout());
        for (std::uint64_t row = 0; row < plan.rows; ++row) {
            const Sequence sequence = some_sequence(row, 1 + row % longest_sequence);
            std::uint64_t written = 0;
            buffer->add_sequences({&sequence, 1}, &leaves[row], 0.5, written);
        }
    }
    for (std::uint64_t row = 0; row < plan.rows && plan.shape.sources.empty(); ++row) {
        buffer->add(1, {&source, 1}, plan.shape.prioritized ? &leaves[row] : nullptr, 0.5);
    }
    if (plan.with_learner) {
        const FieldTarget target{values().data(), 0, plan.shape.row_bytes};
        std::array<std::int64_t, 4> indexes{};
        std::array<std::uint64_t, 4> generations{};
        std::array<float, 4> weights{};
        buffer->gather(4, 0.4, {{&target, 1}, indexes.data(), generations.data(), weights.data()});
        const std::array<double, 4> priorities{1, 2, 3, 4};
        const std::array<float, 4> new_leaves{1, 2, 3, 4};
        buffer->update(indexes, generations, priorities, new_leaves);
    }
    buffer->close();
    if (plan.with_claims) {
        pretend_process(subject.file, subject.header, 7, true);
        pretend_process(subject.file, subject.header, 8, false);
        pretend_claim(subject.file, subject.header, 1, 7);
        if (plan.shape.capacity > 2) pretend_claim(subject.file, subject.header, 2, 8);
    }
    std::memcpy(subject.valid.data(), subject.file, subject.valid.size());
    subject.memory = subject.valid;
    return subject;
}

std::vector<Subject> make_subjects() {
    char pattern[] = "/dev/shm/attach-fuzz-XXXXXX";
    require(mkdtemp(pattern) != nullptr, "no scratch directory");
    directory = pattern;
    std::atexit(remove_directory);
    std::vector<Subject> all;
    const std::string text = example_description;
    all.push_back(make_subject("full", {{10, 40, true, 0.6, 1e-4}, text, 15, true, false}));
    all.push_back(make_subject("uniform", {{10, 40, false, 0, 0}, text, 4, false, false}));
    all.push_back(make_subject("one", {{1, 40, true, 0.6, 1e-4}, text, 3, true, false}));
    all.push_back(make_subject("claims", {{40, 40, true, 0.6, 1e-4}, text, 60, true, true}));
    all.push_back(make_subject("empty", {{17, 40, true, 0.6, 1e-4}, text, 0, false, false}));
    all.push_back(make_subject("bare", {{33, 8, false, 0, 0}, "", 33, false, false}));
    all.push_back(make_subject("held", {{2, 40, true, 1, 0}, text, 3, true, true}));
    RingShape sequences{20, sequence_layout().stored_bytes(), true, 0.6, 1e-4};
    sequences.sources = {{96, step_bytes}};
    all.push_back(make_subject("sequences", {sequences, text, 30, false, false}));
    RingShape frames{20, frames_layout().stored_bytes(), true, 0.6, 1e-4};
    frames.sources = {{40, 160}};
    all.push_back(make_subject("frames", {frames, text, 30, false, false, true}));
    all.push_back(make_subject("big", {{200, 1000, true, 0.6, 0}, text, 250, true, false}));
    return all;
}

Subject& subject_of(std::uint64_t choice) {
    static std::vector<Subject> subjects = make_subjects();
    return subjects[choice % subjects.size()];
}

// Changes a segment as a recipe says. `base` has `valid.size() + extra_bytes` bytes if it is a
// file; of private memory `valid.size()`.
class Mutation {
  public:
    Mutation(const Subject& subject, std::byte* base, Recipe& recipe, bool of_file)
        : subject_(subject),
          ring_(subject.header.ring[0]),
          base_(base),
          recipe_(recipe),
          of_file_(of_file),
          size_(subject.valid.size()) {}

    std::size_t size() const { return size_; }

    void change_header() {
        switch (recipe_.take<std::uint8_t>() % 9) {
            case 0: put(recipe_.below(header_bytes), recipe_.take<std::uint8_t>()); break;
            case 1: flip(recipe_.below(sizeof(SegmentHeader))); break;
            case 2: put(8 * recipe_.below(sizeof(SegmentHeader) / 8), number()); break;
            case 3: put(4 * recipe_.below(sizeof(SegmentHeader) / 4), narrow(number())); break;
            case 4: put(offsetof(SegmentHeader, ring) + 8 * recipe_.below(7), number()); break;
            case 5: put(offsetof(SegmentHeader, ring) + 32 + 8 * recipe_.below(2), real()); break;
            case 6: change_size(); break;
            case 7: change_description(); break;
            case 8: put(offsetof(SegmentHeader, max_handles), number()); break;
        }
    }

    void change_body() {
        const RingEntry& sources = subject_.header.ring[1];
        ring_ = subject_.header.ring[0];
        if (sources.used != 0 && recipe_.take<std::uint8_t>() % 2 == 0) ring_ = sources;
        if (sources.used != 0 && recipe_.take<std::uint8_t>() % 4 == 0) return change_references();
        switch (recipe_.take<std::uint8_t>() % 10) {
            case 0: put(recipe_.below(subject_.valid.size() - 8), number()); break;
            case 1: flip(recipe_.below(subject_.valid.size())); break;
            case 2: change_word(slot()); break;
            case 3: put(head_at(slot()) + offsetof(SlotHead, leaf_in), narrow_real()); break;
            case 4: change_leaf(); break;
            case 5: change_counter(); break;
            case 6: change_process(); break;
            case 7:
                put(subject_.header.process_table_offset + 8 * recipe_.below(8), number());
                break;
            case 8:
                put(subject_.header.role_line_offset + 8 * recipe_.below(16),
                    recipe_.take<std::uint8_t>() % 2 == 0 ? number() : bits(real()));
                break;
            case 9: fill_with_noise(); break;
        }
    }

    // A header that is right for a file of another shape: what is in there then means other things.
    void change_shape() {
        RingShape shape{1 + recipe_.below(300), recipe_.below(400),
                        recipe_.take<std::uint8_t>() % 2 == 0, std::abs(real()), std::abs(real())};
        shape.max_handles = recipe_.below(100);
        if (!(shape.alpha <= 1e300)) shape.alpha = 0.5;
        if (!(shape.eps <= 1e300)) shape.eps = 0;
        if (subject_.header.ring[1].used != 0) {
            if (recipe_.take<std::uint8_t>() % 2 == 0) {
                shape.row_bytes = subject_.of_frames ? frames_layout().stored_bytes()
                                                     : sequence_layout().stored_bytes();
            }
            shape.row_bytes = std::max<std::uint64_t>(shape.row_bytes, 8);
            const std::uint64_t bytes = subject_.of_frames && recipe_.take<std::uint8_t>() % 4 != 0
                                            ? 160
                                            : 1 + recipe_.below(40);
            shape.sources = {{fewest_sources + recipe_.below(100), bytes}};
        }
        const SegmentHeader header = plan_segment(shape, subject_.description, number());
        if (header.total_bytes > available()) return;
        std::memcpy(base_, &header, sizeof header);
        size_ = header.total_bytes;
    }

    void seal() {
        SegmentHeader header;
        std::memcpy(&header, base_, sizeof header);
        std::string text;
        if (header.description_bytes <= std::min(available(), subject_.valid.size()) - header_bytes)
            text.assign(reinterpret_cast<const char*>(base_) + header_bytes,
                        header.description_bytes);
        header.checksum = header_checksum(header, text);
        std::memcpy(base_, &header, sizeof header);
    }

  private:
    std::size_t available() const {
        return subject_.valid.size() + (of_file_ ? extra_bytes : std::size_t{0});
    }
    std::size_t present() const { return std::min(size_, subject_.valid.size()); }
    template <class Number>
    void put(std::size_t offset, Number value) {
        if (sizeof value > present() || offset > present() - sizeof value) return;
        std::memcpy(base_ + offset, &value, sizeof value);
    }
    void flip(std::size_t offset) {
        if (offset >= present()) return;
        base_[offset] ^= static_cast<std::byte>(1u << recipe_.take<std::uint8_t>() % 8);
    }
    static std::uint32_t narrow(std::uint64_t value) { return static_cast<std::uint32_t>(value); }
    static std::uint64_t bits(double value) {
        std::uint64_t image;
        std::memcpy(&image, &value, sizeof image);
        return image;
    }

    std::uint64_t slot() { return recipe_.below(ring_.capacity); }
    std::size_t head_at(std::uint64_t slot) const {
        return ring_.heads_offset + slot * ring_.head_stride;
    }

    // Numbers at which something might go wrong.
    std::uint64_t number() {
        const std::uint64_t capacity = ring_.capacity;
        const std::uint64_t near[] = {0,
                                      1,
                                      2,
                                      8,
                                      64,
                                      62,
                                      63,
                                      1022,
                                      1023,
                                      4096,
                                      capacity - 1,
                                      capacity,
                                      capacity + 1,
                                      2 * capacity,
                                      3 * capacity,
                                      subject_.valid.size(),
                                      subject_.valid.size() - 1,
                                      ring_.records_offset,
                                      ring_.heads_offset,
                                      std::uint64_t{1} << 31,
                                      std::uint64_t{1} << 32,
                                      std::uint64_t{1} << 40,
                                      std::uint64_t{1} << 46,
                                      std::uint64_t{1} << 48,
                                      std::uint64_t{1} << 63,
                                      0 - capacity,
                                      ~std::uint64_t{0}};
        const std::uint8_t choice = recipe_.take<std::uint8_t>();
        if (choice >= 200) return recipe_.take<std::uint64_t>();
        const std::uint64_t base = near[choice % std::size(near)];
        return choice < 100 ? base : base + recipe_.take<std::uint8_t>() % 5 - 2;
    }

    double real() {
        constexpr double near[] = {0,
                                   -0.0,
                                   1,
                                   -1,
                                   0.5,
                                   1e-45,
                                   1e-300,
                                   1e300,
                                   3e38,
                                   5e38,
                                   std::numeric_limits<double>::infinity(),
                                   -std::numeric_limits<double>::infinity(),
                                   std::numeric_limits<double>::quiet_NaN()};
        const std::uint8_t choice = recipe_.take<std::uint8_t>();
        return choice < 200 ? near[choice % std::size(near)] : recipe_.take<double>();
    }
    float narrow_real() {
        const double wide = real();
        const std::uint32_t any = recipe_.take<std::uint32_t>();
        if (any % 4 != 0) {
            if (!(std::abs(wide) <= double{std::numeric_limits<float>::max()})) {
                return wide > 0 ? std::numeric_limits<float>::infinity()
                                : std::numeric_limits<float>::quiet_NaN();
            }
            return static_cast<float>(wide);
        }
        float value;
        std::memcpy(&value, &any, sizeof value);
        return value;
    }

    void change_size() {
        const std::uint64_t wanted = recipe_.take<std::uint8_t>() % 2 == 0
                                         ? recipe_.below(available() + 1)
                                         : size_ + recipe_.take<std::uint8_t>() - 128;
        size_ = std::min<std::uint64_t>(wanted, available());
        if (recipe_.take<std::uint8_t>() % 2 == 0) {
            put(offsetof(SegmentHeader, total_bytes), std::uint64_t{size_});
        }
    }

    void change_description() {
        const std::size_t length = subject_.description.size() + 64;
        for (int i = recipe_.take<std::uint8_t>() % 16; i >= 0; --i) {
            put(header_bytes + recipe_.below(length), recipe_.take<std::uint8_t>());
        }
    }

    void change_word(std::uint64_t slot) {
        const std::uint64_t seq = (recipe_.take<std::uint8_t>() % 2 == 0)
                                      ? slot + ring_.capacity * recipe_.below(5)
                                      : number();
        constexpr unsigned owners[] = {0, 0, 1, 2, 7, 8, 62, 63, 1022, 1023};
        const unsigned owner = owners[recipe_.take<std::uint8_t>() % std::size(owners)];
        const std::uint8_t more = recipe_.take<std::uint8_t>();
        put(head_at(slot), more >= 250 ? recipe_.take<std::uint64_t>()
                                       : slot_word::claimed(seq, owner, more % 3, more % 2 == 0));
    }

    // What a record has: when it was born, of a sequence its steps, and where they are.
    void change_references() {
        const RingEntry& rows = subject_.header.ring[0];
        const std::size_t record = rows.records_offset + rows.stride * recipe_.below(rows.capacity);
        if (subject_.of_frames) return put(record + 4 * recipe_.below(6), narrow(number()));
        switch (recipe_.take<std::uint8_t>() % 3) {
            case 0: put(record, number()); break;
            case 1: put(record + RowLayout::about_at, narrow(number())); break;
            case 2:
                put(record + RowLayout::steps_at + 4 * recipe_.below(longest_sequence),
                    narrow(number()));
                break;
        }
    }

    void change_leaf() {
        if (ring_.prioritized == 0) return;
        const std::uint64_t at = recipe_.below(padded_leaves(ring_.capacity));
        put(ring_.leaf_offset + at * sizeof(float), narrow_real());
        if (at < ring_.capacity && recipe_.take<std::uint8_t>() % 2 == 0) {
            put(head_at(at) + offsetof(SlotHead, lap), narrow(number()));
        }
    }

    void change_counter() {
        switch (recipe_.take<std::uint8_t>() % 6) {
            case 0: put(ring_.counters_offset + offsetof(RingCounters, cursor), number()); break;
            case 1:
                put(ring_.counters_offset + offsetof(RingCounters, clear_before), number());
                break;
            case 2: put(ring_.counters_offset + offsetof(RingCounters, filled), number()); break;
            case 3:
                put(ring_.counters_offset + offsetof(RingCounters, recount_requests), number());
                break;
            case 4:
                put(ring_.counters_offset + offsetof(RingCounters, max_priority), real());
                break;
            case 5: put(ring_.counters_offset + offsetof(RingCounters, early), number()); break;
        }
    }

    void change_process() {
        constexpr unsigned numbers[] = {1, 2, 3, 7, 8, 9, 61, 62};
        const unsigned index = numbers[recipe_.take<std::uint8_t>() % std::size(numbers)] - 1;
        const std::size_t record =
            subject_.header.process_table_offset + 64 + index * sizeof(ProcessRecord);
        put(record + 8 * recipe_.below(20), number());  // of the rows and of their sources
    }

    void fill_with_noise() {
        const std::size_t from =
            subject_.header.process_table_offset +
            recipe_.below(subject_.valid.size() - subject_.header.process_table_offset);
        std::size_t length = recipe_.below(2048);
        std::uint64_t noise = recipe_.take<std::uint64_t>() | 1;
        for (std::size_t at = from & ~std::size_t{7}; length >= 8; at += 8, length -= 8) {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            put(at, noise);
        }
    }

    const Subject& subject_;
    RingEntry ring_;
    std::byte* base_;
    Recipe& recipe_;
    bool of_file_;
    std::size_t size_;
};

template <class Call>
bool ends_well(const char* what, Call&& call) {
    const auto count = [what](const char* kind) {
        ++counts().errors[std::string(what) + ": " + kind];
    };
    ++counts().calls;
    try {
        call();
        return true;
    } catch (const SegmentNotFound&) {
        count("SegmentNotFound");
    } catch (const SegmentMismatch&) {
        count("SegmentMismatch");
    } catch (const ProcessTableFull&) {
        count("ProcessTableFull");
    } catch (const RoleBusy&) {
        count("RoleBusy");
    } catch (const SlotsHeld&) {
        count("SlotsHeld");
    } catch (const EmptyBuffer&) {
        count("EmptyBuffer");
    } catch (const NotEnoughMemory&) {
        count("NotEnoughMemory");
    } catch (const Error& error) {
        fail(error.what());  // none other fits
    }
    return false;
}

// Whether add() would go on trying for its whole second: no claim can succeed soon.
bool add_would_wait(std::byte* base, const RingEntry& shape) {
    const SlotRing ring(base, shape);
    const std::uint64_t position = ring.counters().cursor;
    if (position > slot_word::max_seq) return true;
    for (std::uint64_t slot = 0; slot < ring.capacity(); ++slot) {
        const std::uint64_t word = ring.word(slot);
        if (slot_word::seq(word) < position + ring.capacity() && slot_word::owner(word) != 7) {
            return false;
        }
    }
    return true;
}

// One in so many of the adds that would wait a second is made all the same.
constexpr std::uint64_t patience = 5000;

void use_sequences(ReplayBuffer& buffer, std::byte* base, Recipe& recipe, Mutation* meanwhile) {
    if (!ends_well("describe", [&] { buffer.describe_rows(sequence_layout()); })) return;
    constexpr std::size_t most = 8;
    // Exactly as large as the fields are: what is written beyond is found out.
    std::vector<std::byte> ids(most * longest_sequence * 8), obs(most * longest_sequence * 12);
    std::vector<std::byte> states(most * 4), mask(most * longest_sequence);
    std::vector<std::byte> is_first(most * longest_sequence);
    std::array<std::int64_t, most> indexes{};
    std::array<std::uint64_t, most> generations{};
    std::array<float, most> weights{};
    for (int call = 0; call < 12; ++call) {
        const std::uint8_t choice = recipe.take<std::uint8_t>();
        const std::size_t count = 1 + choice / 16 % most;
        const std::size_t across = choice % 2 == 0 ? 0 : count;
        const FieldTarget fields[] = {
            {ids.data(), 0, longest_sequence * 8, across},
            {obs.data(), 8, longest_sequence * 12, across},
            {states.data(), 20, 4},
            {mask.data(), 0, longest_sequence, across},
            {is_first.data(), 0, longest_sequence, across},
        };
        const SampleTarget sampled{fields, indexes.data(), generations.data(), weights.data()};
        switch (choice / 2 % 7) {
            case 0:
                if (add_would_wait(base, buffer.shape()) && recipe.below(patience) != 1) break;
                ends_well("add", [&] {
                    const Sequence sequence = some_sequence(choice, 1 + choice % longest_sequence);
                    std::uint64_t written = 0;
                    buffer.add_sequences({&sequence, 1}, nullptr, 0, written);
                });
                break;
            case 1:
                if (!buffer.prioritized()) break;
                ends_well("sample", [&] { buffer.gather(count, 0.4, sampled); });
                break;
            case 2: ends_well("sample", [&] { buffer.gather_uniform(count, sampled); }); break;
            case 3: ends_well("count", [&] { (void)buffer.stored_size(); }); break;
            case 4:
                ends_well("read", [&] {
                    for (const std::uint64_t slot : buffer.filled_slots(true)) {
                        (void)buffer.read_slot(slot, count - 1, fields);
                    }
                });
                break;
            case 5: ends_well("clear", [&] { buffer.clear(); }); break;
            case 6:
                if (meanwhile != nullptr) meanwhile->change_body();
                break;
        }
    }
}

void use_frames(ReplayBuffer& buffer, std::byte* base, Recipe& recipe, Mutation* meanwhile) {
    if (!ends_well("describe", [&] { buffer.describe_rows(frames_layout()); })) return;
    constexpr std::size_t most = 8;
    std::vector<std::byte> ids(most * 8), stacks(most * stack_bytes), nexts(most * stack_bytes);
    std::array<std::int64_t, most> indexes{};
    std::array<std::uint64_t, most> generations{};
    std::array<float, most> weights{};
    const FieldTarget fields[] = {
        {ids.data(), 0, 8}, {stacks.data(), 0, stack_bytes}, {nexts.data(), 0, stack_bytes}};
    const SampleTarget sampled{fields, indexes.data(), generations.data(), weights.data()};
    for (int call = 0; call < 12; ++call) {
        const std::uint8_t choice = recipe.take<std::uint8_t>();
        const std::size_t count = 1 + choice / 16 % most;
        switch (choice % 7) {
            case 0:
                if (add_would_wait(base, buffer.shape()) && recipe.below(patience) != 1) break;
                ends_well("add", [&] { add_frames_row(buffer, choice, nullptr); });
                break;
            case 1:
                if (!buffer.prioritized()) break;
                ends_well("sample", [&] { buffer.gather(count, 0.4, sampled); });
                break;
            case 2: ends_well("sample", [&] { buffer.gather_uniform(count, sampled); }); break;
            case 3: ends_well("look", [&] { (void)buffer.statistics(); }); break;
            case 4:
                ends_well("read", [&] {
                    for (const std::uint64_t slot : buffer.filled_slots(true)) {
                        (void)buffer.read_slot(slot, count - 1, fields);
                    }
                });
                break;
            case 5: ends_well("clear", [&] { buffer.clear(); }); break;
            case 6:
                if (meanwhile != nullptr) meanwhile->change_body();
                break;
        }
    }
}

void use(ReplayBuffer& buffer, bool of_frames, std::byte* base, Recipe& recipe,
         Mutation* meanwhile) {
    const RingEntry& ring = buffer.shape();
    if (ring.row_bytes > largest_row_used) return;
    if (buffer.has_sources()) {
        const auto use_sources = of_frames ? use_frames : use_sequences;
        return use_sources(buffer, base, recipe, meanwhile);
    }
    const FieldSource source{values().data(), ring.row_bytes, 0, ring.row_bytes};
    const FieldTarget target{values().data(), 0, ring.row_bytes};
    constexpr std::size_t most = 8;
    std::array<std::int64_t, most> indexes{};
    std::array<std::uint64_t, most> generations{};
    std::array<float, most> weights{};
    const std::array<double, most> priorities{1, 2, 3, 4, 5, 6, 7, 8};
    const std::array<float, most> leaves{1, 2, 3, 4, 5, 6, 7, 8};
    const SampleTarget sampled{{&target, 1}, indexes.data(), generations.data(), weights.data()};
    const auto require_slots = [&](std::size_t count) {
        for (std::size_t i = 0; i < count; ++i) {
            require(indexes[i] >= 0 && static_cast<std::uint64_t>(indexes[i]) < ring.capacity,
                    "an index beyond the buffer");
        }
    };

    for (int call = 0; call < 12; ++call) {
        const std::uint8_t choice = recipe.take<std::uint8_t>();
        const std::size_t count = 1 + choice / 16 % most;
        switch (choice % 16) {
            case 0:
            case 1:
                if (add_would_wait(base, ring) && recipe.below(patience) != 1) break;
                ends_well("add", [&] {
                    const std::uint64_t n = std::min<std::uint64_t>(count, ring.capacity);
                    const bool with_leaves = ring.prioritized != 0 && choice % 16 == 0;
                    require(buffer.add(n, {&source, 1}, with_leaves ? leaves.data() : nullptr,
                                       with_leaves ? 8 : 0) < ring.capacity,
                            "a slot beyond the buffer");
                });
                break;
            case 2:
            case 3:
            case 4:
                if (ring.prioritized == 0) break;
                ends_well("sample", [&] {
                    buffer.gather(count, 0.4, sampled);
                    require_slots(count);
                });
                break;
            case 5:
            case 6:
                if (ring.prioritized == 0) break;
                ends_well("update", [&] {
                    for (std::size_t i = 0; i < count; ++i) {
                        indexes[i] = static_cast<std::int64_t>(recipe.below(ring.capacity));
                    }
                    std::span<const std::uint64_t> known(generations.data(), count);
                    if (choice % 16 == 5) known = {};
                    buffer.update({indexes.data(), count}, known, {priorities.data(), count},
                                  {leaves.data(), count});
                });
                break;
            case 7:
            case 8:
                ends_well("sample uniform", [&] {
                    buffer.gather_uniform(count, sampled);
                    require_slots(count);
                });
                break;
            case 9: ends_well("stored size", [&] { (void)buffer.stored_size(); }); break;
            case 10:
                ends_well("read", [&] {
                    for (const std::uint64_t slot : buffer.filled_slots(count % 2 == 0)) {
                        (void)buffer.read_slot(slot, 0, {&target, 1});
                    }
                });
                break;
            case 11: ends_well("clear", [&] { buffer.clear(); }); break;
            case 12:
                ends_well("look", [&] {
                    (void)buffer.next_slot();
                    (void)buffer.max_priority();
                    (void)buffer.rows_added();
                    (void)buffer.learner_status();
                    (void)buffer.statistics();
                    (void)buffer.processes();
                    (void)buffer.leaves();
                });
                break;
            case 13:
                if (ring.prioritized == 0) break;
                ends_well("generation", [&] {
                    const auto slot = static_cast<std::int64_t>(recipe.below(ring.capacity));
                    std::uint64_t seq = 0;
                    buffer.find_generations({&slot, 1}, {&seq, 1});
                });
                break;
            case 14: ends_well("release", [&] { buffer.release_learner(); }); break;
            case 15:
                if (meanwhile != nullptr) meanwhile->change_body();
                break;
        }
    }
}

void inspect(const Subject& subject, Scrutiny scrutiny) {
    ends_well("inspect", [&] {
        const Inspection report =
            inspect_segment(subject.name, scrutiny, directory, std::chrono::microseconds(0));
        ++counts().inspections;
        require(report.damages >= report.damage.size(), "damage is not counted");
        counts().inspected_damaged += report.damages != 0;
    });
}

void read_from_memory(Subject& subject, Recipe& recipe, bool seal) {
    ++counts().headers;
    std::byte* const memory = subject.memory.data();
    const std::size_t touched =
        std::min(subject.valid.size(), header_bytes + subject.description.size() + 64 + 8);
    std::memcpy(memory, subject.valid.data(), touched);
    Mutation mutation(subject, memory, recipe, false);
    if (recipe.take<std::uint8_t>() % 8 == 0) mutation.change_shape();
    for (int change = 0; change < 8 && !recipe.is_over(); ++change) mutation.change_header();
    if (seal) {
        ++counts().sealed_headers;
        mutation.seal();
    }
    ASAN_POISON_MEMORY_REGION(memory + mutation.size(), subject.valid.size() - mutation.size());
    std::string description;
    if (ends_well("read header",
                  [&] { (void)read_header(memory, mutation.size(), subject.name, description); })) {
        ++counts().accepted_headers;
    }
    ASAN_UNPOISON_MEMORY_REGION(memory, subject.valid.size());
}

void use_file(Subject& subject, Recipe& recipe, bool seal, bool scribble) {
    ++counts().files;
    // Shrinking first gives zeros behind the valid size, as it was.
    require(ftruncate(subject.fd, static_cast<off_t>(subject.valid.size())) == 0, "no ftruncate");
    require(ftruncate(subject.fd, static_cast<off_t>(subject.valid.size() + extra_bytes)) == 0,
            "no ftruncate");
    std::memcpy(subject.file, subject.valid.data(), subject.valid.size());
    Mutation mutation(subject, subject.file, recipe, true);
    const std::uint8_t kinds = recipe.take<std::uint8_t>();
    if (kinds % 4 == 0) mutation.change_shape();
    for (int change = 0; change < kinds / 4 % 4 - 1; ++change) mutation.change_header();
    for (int change = 0; change < kinds / 16; ++change) mutation.change_body();
    if (seal) {
        ++counts().sealed_files;
        mutation.seal();
    }
    require(ftruncate(subject.fd, static_cast<off_t>(mutation.size())) == 0, "no ftruncate");

    inspect(subject, Scrutiny::every_slot);
    std::unique_ptr<ReplayBuffer> buffer;
    if (!ends_well("attach", [&] { buffer = ReplayBuffer::attach(subject.name, options()); })) {
        return;
    }
    ++counts().attached_files;
    use(*buffer, subject.of_frames, subject.file, recipe, scribble ? &mutation : nullptr);
    // A second handle, and the learner's role from the first to it.
    if (recipe.take<std::uint8_t>() % 4 == 0) {
        std::unique_ptr<ReplayBuffer> other;
        if (ends_well("attach", [&] { other = ReplayBuffer::attach(subject.name, options()); })) {
            buffer->close();
            use(*other, subject.of_frames, subject.file, recipe, scribble ? &mutation : nullptr);
        }
    }
    inspect(subject, Scrutiny::every_slot);
}

}  // namespace

Counts& counts() {
    static Counts all;
    return all;
}

void print_counts() {
    const Counts& all = counts();
    std::printf("headers read from memory      %10" PRIu64 "\n", all.headers);
    std::printf("  with a right checksum       %10" PRIu64 "\n", all.sealed_headers);
    std::printf("  accepted                    %10" PRIu64 "\n", all.accepted_headers);
    std::printf("files attached to             %10" PRIu64 "\n", all.files);
    std::printf("  with a right checksum       %10" PRIu64 "\n", all.sealed_files);
    std::printf("  accepted                    %10" PRIu64 "\n", all.attached_files);
    std::printf("calls                         %10" PRIu64 "\n", all.calls);
    std::printf("inspections                   %10" PRIu64 "\n", all.inspections);
    std::printf("  that told of damage         %10" PRIu64 "\n", all.inspected_damaged);
    for (const auto& [what, times] : all.errors) {
        std::printf("%-30s%10" PRIu64 "\n", what.c_str(), times);
    }
    std::fflush(stdout);
}

}  // namespace mpbuffer::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace mpbuffer::fuzz;
    Recipe recipe(data, size);
    const std::uint8_t flags = recipe.take<std::uint8_t>();
    Subject& subject = subject_of(flags >> 3);
    const bool seal = (flags & seals) != 0;
    if ((flags & uses_a_file) != 0) {
        use_file(subject, recipe, seal, (flags & scribbles) != 0);
    } else {
        read_from_memory(subject, recipe, seal);
    }
    return 0;
}

extern "C" int LLVMFuzzerInitialize(int*, char***) {
    (void)mpbuffer::fuzz::counts();
    std::atexit(mpbuffer::fuzz::print_counts);
    return 0;
}
