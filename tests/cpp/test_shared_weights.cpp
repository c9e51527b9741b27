#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/tsan.hpp"
#include "buffer/replay_buffer.hpp"
#include "forked_child.hpp"
#include "ring_on_heap.hpp"
#include "segment/names.hpp"
#include "segment/sweep.hpp"
#include "weights/shared_weights.hpp"

using namespace mpbuffer;

namespace {

// Two arrays, one of them no multiple of anything, and one without a byte. All bytes of a version
// follow from its number.
const std::vector<std::uint64_t> part_bytes = {104, 0, 37};

struct Arrays {
    explicit Arrays(std::uint64_t number = 0) {
        for (const std::uint64_t bytes : part_bytes) {
            parts.emplace_back(bytes, std::byte(static_cast<unsigned char>(number)));
        }
    }
    std::vector<const std::byte*> sources() const {
        std::vector<const std::byte*> all;
        for (const auto& part : parts) all.push_back(part.data());
        return all;
    }
    std::vector<std::byte*> targets() {
        std::vector<std::byte*> all;
        for (auto& part : parts) all.push_back(part.data());
        return all;
    }
    std::vector<std::vector<std::byte>> parts;
};

WeightsSettings settings(unsigned slots = 4, const std::string& name = generate_name()) {
    return {name, part_bytes, slots, "described", {}};
}

std::unique_ptr<SharedWeights> make(unsigned slots = 4) {
    return SharedWeights::create(settings(slots), Arrays(1).sources());
}

std::unique_ptr<SharedWeights> attached(const std::string& name) {
    auto weights = SharedWeights::attach(name);
    weights->set_parts(part_bytes);
    return weights;
}

// The version that is read; ~0 if its bytes are not all of that version.
std::uint64_t read_by(SharedWeights& weights, std::uint64_t newer_than = 0) {
    Arrays got;
    const Publication read = weights.read(got.targets(), newer_than);
    if (read.version == 0) return 0;
    for (const auto& part : got.parts) {
        for (const std::byte byte : part) {
            if (byte != std::byte(static_cast<unsigned char>(read.version))) {
                return ~std::uint64_t{0};
            }
        }
    }
    return read.version;
}

std::uint64_t publish_next(SharedWeights& weights) {
    return weights.publish(Arrays(weights.newest() + 1).sources());
}

}  // namespace

TEST_CASE("what the creator gives is version 1, for whoever attaches") {
    const auto weights = make();
    const auto other = attached(weights->name());
    CHECK(other->description() == "described");
    CHECK(other->slot_count() == 4);
    CHECK(other->bytes() == 192 - 64 + 37);
    CHECK(read_by(*other) == 1);
    CHECK(read_by(*other, 1) == 0);
    CHECK(other->latest().version == 1);
    CHECK(other->latest().published_at <= monotonic_ns());
    CHECK(publish_next(*weights) == 2);
    CHECK(read_by(*other, 1) == 2);
    CHECK(other->newest() == 2);
    CHECK(other->repeated_reads() == 0);
}

TEST_CASE("one handle publishes at a time, and hands over") {
    const auto weights = make();
    const auto other = attached(weights->name());
    CHECK(weights->is_publisher());
    CHECK(other->publisher().process == weights->publisher().process);
    CHECK(other->publisher().pid == static_cast<std::uint64_t>(getpid()));
    try {
        publish_next(*other);
        CHECK(false);
    } catch (const PublisherBusy& busy) {
        const std::string told = busy.what();
        CHECK(told.starts_with("cannot publish to '" + weights->name() + "': process 1 (pid " +
                               std::to_string(getpid()) + ", running) is the publisher since 2"));
        CHECK(told.ends_with(" UTC; close it or call release_publisher() there"));
    }
    CHECK(read_by(*other) == 1);
    weights->release_publisher();
    CHECK(other->publisher().process == 0);
    CHECK(publish_next(*other) == 2);
    CHECK_THROWS_AS(publish_next(*weights), PublisherBusy);
    other->close();
    CHECK(publish_next(*weights) == 3);
    CHECK(read_by(*weights) == 3);
}

TEST_CASE("a closed handle refuses, and the last one removes the name") {
    const auto weights = make();
    const std::string path = segment_path(weights->name());
    {
        const auto other = attached(weights->name());
        other->close();
        other->close();
        CHECK_THROWS_AS(read_by(*other), BufferClosed);
        CHECK_THROWS_AS(publish_next(*other), BufferClosed);
        CHECK_THROWS_AS((void)other->latest(), BufferClosed);
        CHECK_THROWS_AS((void)other->newest(), BufferClosed);
        CHECK_THROWS_AS((void)other->publisher(), BufferClosed);
    }
    CHECK(std::filesystem::exists(path));
    weights->close();
    CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("what cannot be is refused, and leaves nothing behind") {
    const auto of_this_process = [] {  // of others', some come and go
        auto names = list_segments();
        std::erase_if(names, [](const std::string& name) {
            return name.rfind(std::to_string(getpid()) + "-", 0) != 0;
        });
        return names;
    };
    const auto left = of_this_process();
    CHECK_THROWS_AS((void)SharedWeights::create(settings(2), Arrays(1).sources()), InvalidArgument);
    CHECK_THROWS_AS((void)SharedWeights::create(settings(65), Arrays(1).sources()),
                    InvalidArgument);
    WeightsSettings huge = settings();
    huge.part_bytes = {~std::uint64_t{0}, ~std::uint64_t{0}};
    CHECK_THROWS_AS((void)SharedWeights::create(huge, Arrays(1).sources()), InvalidArgument);
    const auto weights = make();
    CHECK_THROWS_AS((void)SharedWeights::create(settings(4, weights->name()), Arrays(1).sources()),
                    SegmentExists);
    const auto other = SharedWeights::attach(weights->name());
    CHECK_THROWS_AS(other->set_parts({104, 0, 36}), SegmentMismatch);
    CHECK_THROWS_AS(other->set_parts({~std::uint64_t{0}, 9}), SegmentMismatch);
    const std::vector<const std::byte*> too_few(2, nullptr);
    CHECK_THROWS_AS(weights->publish(too_few), InvalidArgument);
    CHECK(read_by(*weights) == 1);
    weights->close();
    other->close();
    CHECK(of_this_process() == left);
}

TEST_CASE("damage after attach is told, and nothing outside is read or waited for") {
    const Watchdog watchdog;
    std::mt19937_64 random(41);
    const auto weights = make(3);
    const auto other = attached(weights->name());
    SegmentHeader header;
    REQUIRE(pread(weights->data_descriptor(), &header, sizeof header, 0) == sizeof header);
    const std::size_t bytes = header.total_bytes;
    void* const memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, weights->data_descriptor(), 0);
    REQUIRE(memory != MAP_FAILED);
    auto* const base = static_cast<std::byte*>(memory);
    const WeightsEntry& parts = header.weights;
    auto* const board = reinterpret_cast<VersionBoard*>(base + parts.board_offset);
    auto* const slots = reinterpret_cast<VersionSlot*>(base + parts.slots_offset);
    auto* const lines = reinterpret_cast<ReaderLine*>(base + parts.readers_offset);

    board->offer = offer_word::make(1, 77, 0);
    Arrays got;
    const std::string why = "slot 77 is offered, there are 3 (damaged)";
    const std::string named = "'" + weights->name() + "': " + why;
    CHECK_THROWS_WITH_AS((void)other->read(got.targets(), 0), ("cannot read " + named).c_str(),
                         SegmentMismatch);
    CHECK_THROWS_WITH_AS((void)other->latest(), ("cannot read " + named).c_str(), SegmentMismatch);
    CHECK_THROWS_WITH_AS(publish_next(*weights), ("cannot publish to " + named).c_str(),
                         SegmentMismatch);
    CHECK_THROWS_WITH_AS((void)SharedWeights::attach(weights->name()),
                         ("cannot attach " + named).c_str(), SegmentMismatch);
    board->offer = offer_word::make(2, 0, 200);
    CHECK_THROWS_AS((void)other->read(got.targets(), 0), SegmentMismatch);
    board->offer = offer_word::make(9, 1, 0);
    slots[1].version = 0;
    CHECK_THROWS_AS((void)other->read(got.targets(), 0), SegmentMismatch);
    CHECK_THROWS_AS((void)other->latest(), SegmentMismatch);

    std::uint64_t refused = 0;
    for (int round = 0; round < 20'000 / sanitizer_slowdown; ++round) {
        const auto any = [&] { return random() >> random() % 64; };
        switch (random() % 5) {
            case 0: board->offer = any(); break;
            case 1: board->offer = offer_word::make(any() >> 16, random() % 3, random() % 4); break;
            case 2: slots[random() % 3].version = any(); break;
            case 3: lines[random() % (max_processes + 1)].mark = any(); break;
            default: board->lines_used = any(); break;
        }
        const auto tried = [&](auto&& call) {
            try {
                call();
            } catch (const SegmentMismatch&) {
                ++refused;
            }
        };
        tried([&] { (void)other->read(got.targets(), random() % 3); });
        tried([&] { (void)other->latest(); });
        tried([&] { publish_next(*weights); });
    }
    CHECK(refused > 1000);
    board->offer = offer_word::make(5, 0, 0);
    slots[0].version = 5;
    for (unsigned i = 0; i <= max_processes; ++i) lines[i].mark = 0;
    CHECK(publish_next(*weights) == 6);
    CHECK(read_by(*other) == 6);
    munmap(memory, bytes);
}

TEST_CASE("weights and replay buffers are not taken for one another") {
    const auto weights = make();
    CHECK_THROWS_AS((void)ReplayBuffer::attach(weights->name()), SegmentMismatch);
    const auto buffer = ReplayBuffer::create({generate_name(), {10, 40, false, 0, 0}, 1, "", {}});
    CHECK_THROWS_AS((void)SharedWeights::attach(buffer->name()), SegmentMismatch);
}

TEST_CASE("a forked child's copy reads, and has not its parent's role") {
    const Watchdog watchdog;
    const auto weights = make();
    ForkedChild child([&](const Channel& parent) {
        parent.tell(read_by(*weights));
        try {
            publish_next(*weights);
        } catch (const PublisherBusy&) {
            parent.tell(77);
        }
        parent.hear();
        parent.tell(publish_next(*weights));
        parent.hear();
        weights->close();
        return 0;
    });
    CHECK(child.hear() == 1);
    CHECK(child.hear() == 77);
    CHECK(publish_next(*weights) == 2);
    weights->release_publisher();
    child.tell();
    CHECK(child.hear() == 3);
    CHECK_THROWS_AS(publish_next(*weights), PublisherBusy);
    child.tell();
    CHECK(child.wait() == 0);
    CHECK(publish_next(*weights) == 4);
}

namespace {

std::byte* page_to_stop_at = nullptr;

void stop_at_the_page(int, siginfo_t*, void*) {
    mprotect(page_to_stop_at, 4096, PROT_READ | PROT_WRITE);
    raise(SIGSTOP);
}

// In a child: stops in the middle of the copy, and goes on with it once it is continued. The
// version read, as read_by() gives it.
std::uint64_t read_with_a_stop(SharedWeights& weights) {
    void* const page = mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    page_to_stop_at = static_cast<std::byte*>(page);
    struct sigaction action = {};
    action.sa_sigaction = stop_at_the_page;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, nullptr);
    Arrays got;
    std::vector<std::byte*> targets = got.targets();
    targets.back() = page_to_stop_at;
    const Publication read = weights.read(targets, 0);
    const auto other = [&](std::byte byte) {
        return byte != std::byte(static_cast<unsigned char>(read.version));
    };
    if (std::any_of(got.parts[0].begin(), got.parts[0].end(), other) ||
        std::any_of(page_to_stop_at, page_to_stop_at + part_bytes.back(), other)) {
        return ~std::uint64_t{0};
    }
    return read.version;
}

void wait_until_stopped(const ForkedChild& child) {
    int status = 0;
    REQUIRE(waitpid(child.pid(), &status, WUNTRACED) == child.pid());
    REQUIRE(WIFSTOPPED(status));
}

}  // namespace

TEST_CASE("readers that were stopped or killed in their copies hold up nobody") {
    const Watchdog watchdog;
    const auto weights = make(4);
    std::vector<std::unique_ptr<ForkedChild>> readers;
    std::uint64_t version = 1;
    for (int i = 0; i < 3; ++i) {  // each has another slot: none is left but the offered one
        readers.push_back(std::make_unique<ForkedChild>([&](const Channel& parent) {
            const std::uint64_t got = read_with_a_stop(*weights);
            parent.tell(got);
            parent.tell(weights->repeated_reads());
            return 0;
        }));
        wait_until_stopped(*readers.back());
        CHECK(publish_next(*weights) == ++version);
        CHECK(weights->latest().version == version);
    }
    for (int i = 0; i < 20; ++i) {
        CHECK(publish_next(*weights) == ++version);
        CHECK(weights->latest().version == version);
        CHECK(read_by(*weights) == version);
    }
    readers[1]->signal(SIGKILL);
    readers[1]->wait();
    for (int i = 0; i < 20; ++i) {
        CHECK(publish_next(*weights) == ++version);
        CHECK(read_by(*weights) == version);
    }
    for (const int i : {0, 2}) {
        readers[i]->signal(SIGCONT);
        const std::uint64_t got = readers[i]->hear();
        const std::uint64_t repeats = readers[i]->hear();
        CHECK((got == version || repeats == 0));
        CHECK(repeats <= 1);
        CHECK(readers[i]->wait() == 0);
    }
}

// Sanitizers make a hundred instructions of one; these two cases are for the other builds.
#if !MPBUFFER_TSAN && !defined(__SANITIZE_ADDRESS__)

namespace {

// Runs `body` in a child, one instruction after another, and kills it after so many; the number
// that it had run when it ended by itself, or `most`.
std::uint64_t run_instructions(std::uint64_t most, const std::function<void()>& body,
                               SharedWeights& weights, bool& allowed) {
    const ForkedChild child([&](const Channel&) {
        (void)weights.latest();  // what a handle does once in a forked child is done before
        if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) return 1;
        raise(SIGSTOP);
        body();
        raise(SIGSTOP);
        return 0;
    });
    int status = 0;
    if (waitpid(child.pid(), &status, WUNTRACED) != child.pid() || !WIFSTOPPED(status)) {
        allowed = false;
        return 0;
    }
    for (std::uint64_t done = 0; done < most; ++done) {
        if (ptrace(PTRACE_SINGLESTEP, child.pid(), nullptr, nullptr) != 0) {
            allowed = false;
            return done;
        }
        waitpid(child.pid(), &status, 0);
        if (!WIFSTOPPED(status) || WSTOPSIG(status) == SIGSTOP) return done;
    }
    return most;
}

// How many instructions are between two kills: so many that a few seconds are enough, or as many as
// MPBUFFER_KILL_STRIDE says; with 1, every one.
std::uint64_t stride_for(std::uint64_t instructions) {
    constexpr std::uint64_t bearable = 15'000;  // steps in all
    const char* const wanted = std::getenv("MPBUFFER_KILL_STRIDE");
    if (wanted != nullptr) return std::max<std::uint64_t>(1, std::strtoull(wanted, nullptr, 10));
    return 1 + instructions * instructions / (2 * bearable);
}

}  // namespace

// Each kill has a segment of its own, so that all children run the same instructions.

TEST_CASE("a publisher killed after any instruction leaves a whole version and its role") {
    const auto run = [](std::uint64_t most, std::uint64_t& ran, bool& allowed) {
        auto weights = make();
        weights->release_publisher();
        const auto publish_in_child = [&weights] { publish_next(*weights); };
        ran = run_instructions(most, publish_in_child, *weights, allowed);
        return weights;
    };
    bool allowed = true;
    std::uint64_t all = 0;
    CHECK(read_by(*run(~std::uint64_t{0}, all, allowed)) == (allowed ? 2 : 1));
    if (!allowed) {
        MESSAGE("not run: no ptrace here");
        return;
    }
    REQUIRE(all > 100);
    std::uint64_t before = 0;
    std::uint64_t after = 0;
    for (std::uint64_t instructions = 0; instructions < all; instructions += stride_for(all)) {
        std::uint64_t ran = 0;
        const auto weights = run(instructions, ran, allowed);
        if (ran < instructions) break;  // a few more or less each time: it was done
        const std::uint64_t found = read_by(*weights);
        ++(found == 1 ? before : after);
        if (found != 1) REQUIRE(found == 2);
        REQUIRE(weights->publisher().process == 0);
        for (std::uint64_t version = found + 1; version < found + 4; ++version) {
            REQUIRE(publish_next(*weights) == version);
            REQUIRE(read_by(*weights) == version);
            REQUIRE(weights->latest().version == version);
        }
    }
    CHECK(before > 0);
    if (stride_for(all) < 300) CHECK(after > 0);
    MESSAGE(all << " instructions, killed " << before << " times before the offer, " << after
                << " times after it, " << stride_for(all) << " instructions apart");
}

TEST_CASE("a reader killed after any instruction holds up nobody") {
    const auto run = [](std::uint64_t most, std::uint64_t& ran, bool& allowed) {
        auto weights = make(3);
        const auto read_in_child = [&weights] { read_by(*weights); };
        ran = run_instructions(most, read_in_child, *weights, allowed);
        return weights;
    };
    bool allowed = true;
    std::uint64_t all = 0;
    run(~std::uint64_t{0}, all, allowed);
    if (!allowed) return;
    REQUIRE(all > 100);
    for (std::uint64_t instructions = 0; instructions < all; instructions += stride_for(all)) {
        std::uint64_t ran = 0;
        const auto weights = run(instructions, ran, allowed);
        if (ran < instructions) break;  // a few more or less each time: it was done
        for (std::uint64_t version = 2; version < 6; ++version) {
            REQUIRE(publish_next(*weights) == version);
            REQUIRE(weights->latest().version == version);
            REQUIRE(read_by(*weights) == version);
        }
        CHECK(weights->repeated_reads() == 0);
    }
    MESSAGE(all << " instructions, " << stride_for(all) << " apart");
}

#endif
