#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "buffer/replay_buffer.hpp"
#include "forked_child.hpp"
#include "os/descriptor.hpp"
#include "os/file_locks.hpp"

using namespace mpbuffer;

namespace {

std::unique_ptr<ReplayBuffer> create(const ScratchDirectory& scratch, const std::string& name) {
    const RingShape shape{8, 8, true, 0.6, 1e-4};
    SegmentOptions options;
    options.directory = scratch.path();
    return ReplayBuffer::create({name, shape, 7, R"({"fields": []})", options});
}

std::unique_ptr<ReplayBuffer> attach(const ScratchDirectory& scratch, const std::string& name) {
    SegmentOptions options;
    options.directory = scratch.path();
    return ReplayBuffer::attach(name, options);
}

void add(ReplayBuffer& buffer) {
    const std::uint64_t value = 1;
    const FieldSource source{reinterpret_cast<const std::byte*>(&value), 8, 0, 8};
    buffer.add(1, {&source, 1}, nullptr, 0);
}

// The open descriptors of the buffer's file, ascending.
std::vector<int> descriptors_of(const std::string& path) {
    struct stat wanted;
    REQUIRE(stat(path.c_str(), &wanted) == 0);
    std::vector<int> found;
    for (int fd = 3; fd < 256; ++fd) {
        struct stat facts;
        if (fstat(fd, &facts) == 0 && facts.st_ino == wanted.st_ino &&
            facts.st_dev == wanted.st_dev) {
            found.push_back(fd);
        }
    }
    return found;
}

// A file of the program's own, under a number that it took from somebody.
class ProgramsFile {
  public:
    explicit ProgramsFile(int number) : number_(number) {
        const int fd = memfd_create("programs-file", MFD_CLOEXEC);
        REQUIRE(write(fd, "its own", 7) == 7);
        REQUIRE(dup3(fd, number, O_CLOEXEC) == number);
        REQUIRE(fstat(fd, &facts_) == 0);
        ::close(fd);
    }
    ProgramsFile(const ProgramsFile&) = delete;
    ProgramsFile& operator=(const ProgramsFile&) = delete;
    ~ProgramsFile() { ::close(number_); }

    // Open under its number, with what was written, and without a lock in the map's bytes.
    bool untouched() const {
        struct stat facts;
        char text[8] = {};
        if (fstat(number_, &facts) != 0 || facts.st_ino != facts_.st_ino ||
            facts.st_size != facts_.st_size || pread(number_, text, 7, 0) != 7 ||
            std::string(text) != "its own") {
            return false;
        }
        const int other = open_lock_descriptor(number_);
        bool locked = false;
        for (std::uint64_t byte = 0; byte <= lock_byte::presence; ++byte) {
            locked = locked || held_elsewhere(other, byte);
        }
        ::close(other);
        return !locked;
    }

  private:
    int number_;
    struct stat facts_;
};

std::string refusal(const std::function<void()>& call) {
    try {
        call();
    } catch (const SystemFailure& failure) {
        CHECK(failure.code == EBADF);
        return failure.what();
    }
    return "nothing was thrown";
}

void take_role(ReplayBuffer& buffer) { buffer.take_learner_role(); }

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a descriptor is ours until its number is another file's, or another owner's") {
    const int fd = memfd_create("owned", MFD_CLOEXEC);
    OwnedDescriptor owned(fd);
    CHECK(owned.ours());
    CHECK(owned.require("cannot test") == fd);
    OwnedDescriptor moved = std::move(owned);
    CHECK(moved.ours());
    CHECK_FALSE(owned.present());
    owned.close();
    CHECK(moved.ours());

    SUBCASE("closed") {
        ::close(fd);
        CHECK_FALSE(moved.ours());
        CHECK(contains(refusal([&] { (void)moved.require("cannot test"); }),
                       "cannot test: descriptor " + std::to_string(fd) +
                           " was closed by this program, expected"));
    }
    SUBCASE("another file") {
        const ProgramsFile file(fd);
        CHECK_FALSE(moved.ours());
        CHECK(contains(refusal([&] { (void)moved.require("cannot test"); }), "programs-file"));
        moved.close();
        CHECK(file.untouched());
    }
    SUBCASE("another owner of the same file") {
        const int other = open_lock_descriptor(fd);
        REQUIRE(dup3(other, fd, O_CLOEXEC) == fd);
        ::close(other);
        const OwnedDescriptor newer(fd);
        CHECK_FALSE(moved.ours());
        CHECK(contains(refusal([&] { (void)moved.require("cannot test"); }), "another handle"));
        moved.close();
        CHECK(newer.ours());
    }
    moved.close();
    moved.close();
    CHECK_FALSE(moved.present());
}

TEST_CASE("numbers that the program took for its own files stay its own") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    for (const bool learner_before : {false, true}) {
        CAPTURE(learner_before);
        auto buffer = create(scratch, "buffer");
        add(*buffer);
        if (learner_before) take_role(*buffer);
        std::vector<std::unique_ptr<ProgramsFile>> files;
        const std::vector<int> numbers = descriptors_of(scratch.file("buffer"));
        REQUIRE(numbers.size() == 2);  // the mapped one, and the one for locks
        for (const int number : numbers) files.push_back(std::make_unique<ProgramsFile>(number));
        const auto all_untouched = [&] {
            return std::all_of(files.begin(), files.end(),
                               [](const auto& file) { return file->untouched(); });
        };

        add(*buffer);
        {
            CHECK(buffer->stored_size() == 2);
        }
        if (!learner_before) {
            const std::string message = refusal([&] { take_role(*buffer); });
            CHECK(contains(message, "cannot take the learner's role of 'buffer'"));
            CHECK(contains(message, "programs-file"));
        } else {
            CHECK(contains(refusal([&] { buffer->release_learner(); }),
                           "cannot release the learner's role of 'buffer'"));
        }
        CHECK(contains(refusal([&] { (void)buffer->data_descriptor(); }), "programs-file"));
        CHECK(contains(refusal([&] { (void)buffer->processes(); }), "programs-file"));
        ForkedChild child([&](const Channel&) {
            add(*buffer);  // its descriptor for locks is opened through the name
            buffer->close();
            return all_untouched() ? 0 : 1;
        });
        CHECK(child.wait() == 0);
        CHECK(all_untouched());
        buffer->close();
        CHECK(all_untouched());
        CHECK(scratch.is_empty());  // asked, and removed, through the name
        buffer.reset();
        CHECK(all_untouched());
    }
}

TEST_CASE("a handle whose descriptors were closed leaves those of a later handle alone") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    auto first = create(scratch, "buffer");
    take_role(*first);
    const std::vector<int> numbers = descriptors_of(scratch.file("buffer"));
    for (const int number : numbers) ::close(number);
    const auto second = attach(scratch, "buffer");
    REQUIRE(descriptors_of(scratch.file("buffer")) == numbers);
    take_role(*second);
    CHECK(contains(refusal([&] { (void)first->processes(); }), "another handle"));
    first.reset();
    CHECK(descriptors_of(scratch.file("buffer")) == numbers);
    ForkedChild other([&](const Channel&) {
        const auto third = attach(scratch, "buffer");
        try {
            take_role(*third);
        } catch (const LearnerBusy&) {
            return 0;
        }
        return 1;
    });
    CHECK(other.wait() == 0);
    add(*second);
    CHECK(second->processes().size() == 1);
    second->close();
    CHECK(scratch.is_empty());
}

TEST_CASE("an owner cannot be proved dead through the program's file: its claim stays") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const auto buffer = create(scratch, "buffer");
    ForkedChild holder([&](const Channel& parent) {
        add(*buffer);
        parent.tell(buffer->processes().size());
        return stay_until_killed();
    });
    CHECK(holder.hear() == 2);
    const std::vector<int> numbers = descriptors_of(scratch.file("buffer"));
    std::vector<std::unique_ptr<ProgramsFile>> files;
    auto* const words = static_cast<std::byte*>(
        mmap(nullptr, std::filesystem::file_size(scratch.file("buffer")), PROT_READ | PROT_WRITE,
             MAP_SHARED, buffer->data_descriptor(), 0));
    REQUIRE(words != MAP_FAILED);
    const SlotRing ring(words, buffer->shape());
    for (std::uint64_t slot = 0; slot < 8; ++slot) {
        ring.word(slot) = slot_word::claimed(8 + slot, 2, 1, true);
    }
    for (const int number : numbers) files.push_back(std::make_unique<ProgramsFile>(number));
    CHECK(contains(refusal([&] { add(*buffer); }), "cannot ask who is alive in 'buffer'"));
    for (std::uint64_t slot = 0; slot < 8; ++slot) {
        CHECK(ring.word(slot) == slot_word::claimed(8 + slot, 2, 1, true));
    }
    for (const auto& file : files) CHECK(file->untouched());
    munmap(words, std::filesystem::file_size(scratch.file("buffer")));
}
