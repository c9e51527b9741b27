#include <doctest/doctest.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <list>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/tsan.hpp"
#include "forked_child.hpp"
#include "format/header.hpp"
#include "os/file_locks.hpp"
#include "segment/names.hpp"
#include "segment/segment_file.hpp"
#include "segment/sweep.hpp"

using namespace mpbuffer;

namespace {

constexpr unsigned populate_write = 23;  // MADV_POPULATE_WRITE
constexpr std::size_t size = 1 << 16;

bool exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

SegmentOptions in(const ScratchDirectory& scratch, bool named = false) {
    SegmentOptions options;
    options.directory = scratch.path();
    options.force_named_creation = named;
    return options;
}

// A published segment with the magic, whose last byte says `mark`.
SharedSegment make(const std::string& name, const SegmentOptions& options, int mark = 0) {
    SharedSegment segment = SharedSegment::create(name, size, options);
    std::memcpy(segment.data(), segment_magic, sizeof segment_magic);
    segment.data()[size - 1] = static_cast<std::byte>(mark);
    segment.make_visible();
    segment.keep_in_children();
    return segment;
}

SegmentOptions nameless_in(const ScratchDirectory& scratch) {
    SegmentOptions options = in(scratch);
    options.nameless = true;
    return options;
}

// Without what is nameless, which other programs of this user may have meanwhile.
std::vector<std::string> named_in(const ScratchDirectory& scratch) {
    std::vector<std::string> names = list_segments(scratch.path());
    std::erase_if(names, [&](const std::string& name) {
        return !std::filesystem::exists(segment_path(name, scratch.path()));
    });
    return names;
}

// Whether this process has a file of the directory, or a nameless segment, open or mapped.
// Allocates nothing: in a child.
bool holds_file_in(const ScratchDirectory& scratch) {
    constexpr const char* nameless = "/memfd:mpbuffer-";
    char inside[300];
    std::snprintf(inside, sizeof inside, "%s/", scratch.path().c_str());
    for (int fd = 0; fd < 256; ++fd) {
        char link[64];
        char path[512];
        std::snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        const ssize_t length = readlink(link, path, sizeof path - 1);
        if (length <= 0) continue;
        path[length] = '\0';
        if (std::strstr(path, inside) != nullptr) return true;
        if (std::strstr(path, nameless) != nullptr) return true;
    }
    char text[1 << 16];
    std::size_t kept = 0;
    const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    for (;;) {
        const ssize_t got = read(maps, text + kept, sizeof text - 1 - kept);
        if (got <= 0) break;
        text[kept + static_cast<std::size_t>(got)] = '\0';
        if (std::strstr(text, inside) != nullptr) return true;
        if (std::strstr(text, nameless) != nullptr) return true;
        // What the next part begins with may be the rest of a path.
        kept = std::min<std::size_t>(kept + static_cast<std::size_t>(got), 300);
        std::memmove(text, text + std::strlen(text) - kept, kept);
    }
    close(maps);
    return false;
}

void write_file(const std::string& path, const std::string& text, mode_t mode = 0600) {
    std::ofstream(path) << text;
    chmod(path.c_str(), mode);
}

template <class Failure, class Call>
std::string refusal(const Call& call) {
    try {
        call();
    } catch (const Failure& failure) {
        return failure.what();
    }
    return "";
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

int open_descriptors() {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
        count += entry.path().empty() ? 0 : 1;
    }
    return count;
}

}  // namespace

TEST_CASE("names") {
    for (const char* good : {"a", "A.b_c-9", "1234-0123456789ab", "..", ".hidden"}) {
        CHECK_NOTHROW(require_valid_name(good));
    }
    CHECK_NOTHROW(require_valid_name(std::string(128, 'x')));
    for (const char* bad : {"", "a/b", "a b", "\xc3\xa9", ".tmp-x", "a\n"}) {
        CHECK_THROWS_AS(require_valid_name(bad), InvalidArgument);
    }
    CHECK_THROWS_AS(require_valid_name(std::string(129, 'x')), InvalidArgument);
    CHECK_THROWS_AS(require_valid_name(std::string("a\0b", 3)), InvalidArgument);
    std::set<std::string> names;
    for (int n = 0; n < 1000; ++n) names.insert(generate_name());
    CHECK(names.size() == 1000);
    CHECK_NOTHROW(require_valid_name(*names.begin()));
    CHECK(names.begin()->rfind(std::to_string(getpid()) + "-", 0) == 0);
}

TEST_CASE("create, publish, attach, last one out, without a name and with a temporary one") {
    const Watchdog watchdog;
    const int descriptors = open_descriptors();
    for (const bool named : {false, true}) {
        CAPTURE(named);
        const ScratchDirectory scratch;
        const SegmentOptions options = in(scratch, named);
        SharedSegment mine = SharedSegment::create("apex", size, options);
        CHECK(mine.is_open());
        CHECK(mine.size() == size);
        CHECK(mine.name() == "apex");
        CHECK(std::all_of(mine.data(), mine.data() + size,
                          [](std::byte b) { return b == std::byte{0}; }));
        CHECK_FALSE(exists(scratch.file("apex")));
        CHECK(scratch.is_empty() == !named);
        CHECK_THROWS_AS(mine.make_visible(), InvalidArgument);  // no magic yet
        CHECK_THROWS_AS(SharedSegment::attach("apex", options), SegmentNotFound);
        CHECK(named_in(scratch).empty());
        CHECK(sweep_segments(scratch.path()).empty());

        std::memcpy(mine.data(), segment_magic, sizeof segment_magic);
        mine.make_visible();
        CHECK_THROWS_AS(mine.make_visible(), InvalidArgument);
        CHECK(named_in(scratch) == std::vector<std::string>{"apex"});
        struct stat facts;
        REQUIRE(stat(scratch.file("apex").c_str(), &facts) == 0);
        CHECK((facts.st_mode & 07777) == 0600);
        CHECK(facts.st_nlink == 1);
        CHECK(static_cast<std::size_t>(facts.st_blocks) * 512 >= size);

        SharedSegment other = SharedSegment::attach("apex", options);
        CHECK(other.size() == size);
        other.data()[9] = std::byte{42};
        CHECK(mine.data()[9] == std::byte{42});
        mine.close();
        CHECK_FALSE(mine.is_open());
        CHECK(mine.data() == nullptr);
        mine.close();
        CHECK(exists(scratch.file("apex")));
        CHECK_THROWS_AS(mine.make_visible(), BufferClosed);
        CHECK_THROWS_AS((void)mine.open_lock_descriptor(), BufferClosed);
        const OwnedDescriptor locks = other.open_lock_descriptor();
        REQUIRE(try_lock(locks.number(), lock_byte::role, LockKind::exclusive));
        other.close(locks.number());
        CHECK(scratch.is_empty());
    }
    CHECK(open_descriptors() == descriptors);
}

TEST_CASE("the default directory is left as it was") {
    const std::string name = "test-" + generate_name();
    const std::string path = "/dev/shm/mpbuffer-" + std::to_string(geteuid()) + "-" + name;
    {
        const SharedSegment segment = make(name, {});
        CHECK(exists(path));
        const auto names = list_segments();
        CHECK(std::find(names.begin(), names.end(), name) != names.end());
    }
    CHECK_FALSE(exists(path));
}

TEST_CASE("a segment given up before it is published leaves nothing") {
    for (const bool named : {false, true}) {
        const ScratchDirectory scratch;
        SegmentOptions options = in(scratch, named);
        (void)SharedSegment::create("apex", size, options);
        CHECK(scratch.is_empty());
        int calls = 0;
        options.progress = [&](std::size_t) {
            if (++calls == 2) throw std::runtime_error("interrupted");
        };
        CHECK_THROWS_WITH(SharedSegment::create("apex", std::size_t{65} << 20, options),
                          "interrupted");
        CHECK(scratch.is_empty());
    }
}

TEST_CASE("moving hands the segment over") {
    const ScratchDirectory scratch;
    SharedSegment first = make("a", in(scratch));
    SharedSegment second = std::move(first);
    CHECK_FALSE(first.is_open());  // NOLINT(bugprone-use-after-move): what is tested
    CHECK(second.is_open());
    second = make("b", in(scratch));
    CHECK(named_in(scratch) == std::vector<std::string>{"b"});
}

TEST_CASE("a name in use is refused, early and at the last moment") {
    const Watchdog watchdog;
    for (const bool named : {false, true}) {
        CAPTURE(named);
        const ScratchDirectory scratch;
        const SegmentOptions options = in(scratch, named);
        SharedSegment slower = SharedSegment::create("apex", size, options);
        std::memcpy(slower.data(), segment_magic, sizeof segment_magic);
        const SharedSegment faster = make("apex", options);
        const std::string early =
            refusal<SegmentExists>([&] { SharedSegment::create("apex", size, options); });
        CHECK(contains(early, "cannot create 'apex'"));
        CHECK(contains(early, "is in use by a living process"));
        CHECK_THROWS_AS(slower.make_visible(), SegmentExists);
        slower.close();
        CHECK(SharedSegment::attach("apex", options).is_open());
    }
}

TEST_CASE("what is not ours is neither replaced nor swept") {
    const ScratchDirectory scratch;
    const auto create = [&] { SharedSegment::create("apex", size, in(scratch)); };
    const std::string path = scratch.file("apex");

    write_file(path, "somebody's notes");
    CHECK(contains(refusal<SegmentExists>(create), "is no mpbuffer segment of this user"));
    CHECK(exists(path));
    SharedSegment::attach("apex", in(scratch)).close();  // as after the layout has refused it
    CHECK(exists(path));
    unlink(path.c_str());

    REQUIRE(symlink("/etc/hostname", path.c_str()) == 0);
    CHECK_THROWS_AS(create(), SegmentExists);
    unlink(path.c_str());
    REQUIRE(mkdir(path.c_str(), 0700) == 0);
    CHECK_THROWS_AS(create(), SegmentExists);
    rmdir(path.c_str());
    REQUIRE(mkfifo(path.c_str(), 0600) == 0);
    CHECK_THROWS_AS(create(), SegmentExists);
    CHECK(sweep_segments(scratch.path()).empty());
    unlink(path.c_str());

    if (geteuid() == 0) {
        write_file(path, std::string(segment_magic, 8) + "and more");
        REQUIRE(chown(path.c_str(), 12345, 12345) == 0);
        CHECK_THROWS_AS(create(), SegmentExists);
        CHECK(exists(path));
    } else {
        MESSAGE("skipped: a foreign owner needs root");
    }
}

TEST_CASE("attach refuses, each with its reason") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    const SegmentOptions options = in(scratch);
    const std::string path = scratch.file("apex");
    const auto attach = [&] { SharedSegment::attach("apex", options); };
    CHECK(contains(refusal<SegmentNotFound>(attach), "cannot attach 'apex': there is no " + path));
    CHECK_THROWS_AS(SharedSegment::attach("../apex", options), InvalidArgument);
    SegmentOptions nowhere;
    nowhere.directory = scratch.path() + "/nowhere";
    CHECK_THROWS_AS(SharedSegment::attach("apex", nowhere), SegmentNotFound);
    CHECK_THROWS_AS(SharedSegment::create("apex", size, nowhere), SystemFailure);
    CHECK_THROWS_AS(SharedSegment::create("apex", 0, options), InvalidArgument);

    write_file(path, std::string(100, '\0'), 0640);
    CHECK(contains(refusal<SegmentMismatch>(attach), "has mode 0640, expected 0600"));
    write_file(path, "", 0600);
    std::filesystem::resize_file(path, 0);
    CHECK(contains(refusal<SegmentMismatch>(attach), "has 0 bytes"));
    unlink(path.c_str());
    const std::string target = scratch.path() + "/target";
    write_file(target, std::string(100, '\0'));
    REQUIRE(symlink(target.c_str(), path.c_str()) == 0);
    CHECK(contains(refusal<SegmentMismatch>(attach), "symbolic link"));
    unlink(path.c_str());
    REQUIRE(mkfifo(path.c_str(), 0600) == 0);
    CHECK(contains(refusal<SegmentMismatch>(attach), "not a regular file"));
    unlink(path.c_str());
    REQUIRE(mkdir(path.c_str(), 0700) == 0);
    CHECK(contains(refusal<SegmentMismatch>(attach), "not a regular file"));
    rmdir(path.c_str());

    if (geteuid() != 0) {
        MESSAGE("skipped: a foreign owner needs root");
        return;
    }
    write_file(path, std::string(100, '\0'));
    REQUIRE(chown(path.c_str(), 12345, 12345) == 0);
    CHECK(contains(refusal<SegmentMismatch>(attach), "belongs to user 12345, expected 0"));
    chmod(scratch.path().c_str(), 0755);
    ForkedChild stranger([&](const Channel&) {
        const std::string theirs = scratch.path() + "/mpbuffer-12346-apex";
        std::rename(path.c_str(), theirs.c_str());
        if (setresuid(12346, 12346, 12346) != 0) return 3;
        try {
            attach();
        } catch (const SystemFailure& failure) {
            return failure.code == EACCES && contains(failure.what(), "permission denied") ? 0 : 2;
        }
        return 1;
    });
    CHECK(stranger.wait() == 0);
}

TEST_CASE("a truncated file has the size that it has") {
    const ScratchDirectory scratch;
    SharedSegment segment = make("apex", in(scratch));
    REQUIRE(ftruncate(segment.data_descriptor(), 4096) == 0);
    CHECK(SharedSegment::attach("apex", in(scratch)).size() == 4096);
}

TEST_CASE("presence: parent and forked child keep the segment, the last one removes it") {
    const Watchdog watchdog;
    for (const bool child_is_last : {true, false}) {
        CAPTURE(child_is_last);
        const ScratchDirectory scratch;
        SharedSegment segment = make("apex", in(scratch));
        ForkedChild child([&](const Channel& parent) {
            parent.hear();
            segment.close();
            parent.tell();
            return stay_until_killed();
        });
        if (child_is_last) {
            segment.close();
            CHECK(exists(scratch.file("apex")));
            CHECK(sweep_segments(scratch.path()).empty());
            child.tell();
            child.hear();
        } else {
            child.tell();
            child.hear();
            CHECK(exists(scratch.file("apex")));
            segment.close();
        }
        CHECK(scratch.is_empty());
    }
}

TEST_CASE("presence: a forked child that only has the mapping left is still there") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    SharedSegment segment = make("apex", in(scratch));
    ForkedChild child([&](const Channel& parent) {
        ::close(segment.data_descriptor());
        parent.tell();
        return stay_until_killed();
    });
    child.hear();
    segment.close();
    CHECK(exists(scratch.file("apex")));
    child.kill_to_zombie();
    CHECK(comes_true([&] { return !sweep_segments(scratch.path()).empty(); }));
}

TEST_CASE("a child that another thread forks keeps nothing of what is being created") {
    const Watchdog watchdog;
    for (const bool named : {false, true}) {
        for (const bool fails : {false, true}) {
            CAPTURE(named);
            CAPTURE(fails);
            const ScratchDirectory scratch;
            std::atomic<int> step{0};
            std::thread creating([&] {
                SegmentOptions options = in(scratch, named);
                options.progress = [&step, fails](std::size_t done) {
                    if (done != 0 || step != 0) return;
                    step = 1;
                    while (step != 2) std::this_thread::yield();
                    if (fails) throw std::runtime_error("interrupted");
                };
                try {
                    make("apex", options).close();
                } catch (const std::runtime_error&) {
                }
            });
            CHECK(comes_true([&step] { return step == 1; }));
            ForkedChild child([&](const Channel& parent) {
                parent.tell(holds_file_in(scratch) ? 1 : 0);
                return stay_until_killed();
            });
            CHECK(child.hear() == 0);
            step = 2;
            creating.join();
            CHECK(scratch.is_empty());
            make("apex", in(scratch));
            CHECK(scratch.is_empty());
        }
    }
}

// AddressSanitizer's allocator, held by a thread at the fork, stays locked in the child.
#if !defined(__SANITIZE_ADDRESS__)
TEST_CASE("a child that is forked at any moment keeps no file that is only passed through") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
        threads.emplace_back([&, i] {
            for (int round = i; !stop; round += 2) {
                // A name that a child may still have until its handlers have run is not used again.
                const bool named = round % 6 < 4;
                const std::string name = named ? "apex" + std::to_string(round) : generate_name();
                SharedSegment made = SharedSegment::create(
                    name, size, named ? in(scratch, round % 4 < 2) : nameless_in(scratch));
                std::memcpy(made.data(), segment_magic, sizeof segment_magic);
                made.make_visible();
                SharedSegment same = SharedSegment::attach(name, in(scratch));
                SharedSegment moved = std::move(same);
                {
                    const ForkPause pause;
                    const OwnedDescriptor locks = moved.open_lock_descriptor();
                }
                SharedSegment::attach_descriptor(made.data_descriptor(), name, in(scratch));
                made.close();
            }
        });
    }
    int holding = 0;
    for (int i = 0; i < 300; ++i) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(watchdog_seconds);
            _exit(holds_file_in(scratch) ? 1 : 0);
        }
        REQUIRE(child > 0);
        int status = -1;
        REQUIRE(waitpid(child, &status, 0) == child);
        REQUIRE(WIFEXITED(status));
        holding += WEXITSTATUS(status);
    }
    stop = true;
    for (std::thread& thread : threads) thread.join();
    CHECK(holding == 0);
    sweep_segments(scratch.path());
    CHECK(scratch.is_empty());
}
#endif

// A sanitizer's allocator that a helping thread holds at the fork stays locked in the child.
#if !MPBUFFER_TSAN && !defined(__SANITIZE_ADDRESS__)
TEST_CASE("a child that goes on in the middle of its parent's creation gets an error") {
    const Watchdog watchdog;
    for (const bool named : {false, true}) {
        CAPTURE(named);
        const ScratchDirectory scratch;
        const pid_t parent = getpid();
        pid_t child = 0;
        SegmentOptions options = in(scratch, named);
        options.progress = [&](std::size_t done) {
            if (done != 0 && child == 0) child = fork();
        };
        const std::size_t pages = std::size_t{80} << 20;  // threads help to supply them
        std::string message;
        SharedSegment segment;
        try {
            segment = SharedSegment::create("apex", pages, options);
        } catch (const BufferClosed& closed) {
            message = closed.what();
        } catch (...) {
            message = "another error";
        }
        if (getpid() != parent) {
            const bool told = message.find("forked in the middle of it") != std::string::npos;
            _exit(told && !holds_file_in(scratch) ? 0 : 1);
        }
        REQUIRE(child > 0);
        int status = -1;
        REQUIRE(waitpid(child, &status, 0) == child);
        CHECK(status == 0);
        CHECK(message.empty());
        CHECK(segment.size() == pages);
        std::memcpy(segment.data(), segment_magic, sizeof segment_magic);
        segment.make_visible();
        segment.close();
        CHECK(scratch.is_empty());
    }
}
#endif

TEST_CASE("presence: unrelated processes, by name and by descriptor") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    SharedSegment segment = make("apex", in(scratch), 5);
    const int passed = dup(segment.data_descriptor());
    const int reading = fcntl(passed, F_DUPFD_CLOEXEC, 3);
    segment.close();  // what was handed over on the way to a spawned child keeps it
    CHECK(exists(scratch.file("apex")));
    SharedSegment second = SharedSegment::attach_descriptor(passed, "apex", in(scratch));
    ::close(reading);
    CHECK(fcntl(passed, F_GETFD) != -1);
    ::close(passed);
    CHECK(second.data()[size - 1] == std::byte{5});
    CHECK(exists(scratch.file("apex")));
    CHECK(sweep_segments(scratch.path()).empty());
    CHECK(fcntl(second.data_descriptor(), F_GETFD) == FD_CLOEXEC);
    second.close();
    CHECK(scratch.is_empty());
    CHECK_THROWS_AS(SharedSegment::attach_descriptor(passed, "apex", in(scratch)), SystemFailure);
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    CHECK_THROWS_AS(SharedSegment::attach_descriptor(ends[0], "apex", in(scratch)),
                    SegmentMismatch);
    ::close(ends[0]);
    ::close(ends[1]);
}

TEST_CASE("a descriptor attaches also when the name is gone, and removes no other's name") {
    const ScratchDirectory scratch;
    SharedSegment old = make("apex", in(scratch), 1);
    unlink(scratch.file("apex").c_str());
    SharedSegment same =
        SharedSegment::attach_descriptor(old.data_descriptor(), "apex", in(scratch));
    CHECK(same.data()[size - 1] == std::byte{1});
    const SharedSegment young = make("apex", in(scratch), 2);
    old.close();
    same.close();
    CHECK(SharedSegment::attach("apex", in(scratch)).data()[size - 1] == std::byte{2});
}

TEST_CASE("the sweep removes what killed processes left, and nothing that lives") {
    const Watchdog watchdog;
    for (const bool published : {true, false}) {
        CAPTURE(published);
        const ScratchDirectory scratch;
        const SharedSegment living = make("living", in(scratch));
        ForkedChild child([&](const Channel& parent) {
            SharedSegment dying = SharedSegment::create("dying", size, in(scratch, true));
            if (published) {
                std::memcpy(dying.data(), segment_magic, sizeof segment_magic);
                dying.make_visible();
            }
            parent.tell();
            return stay_until_killed();
        });
        child.hear();
        CHECK(sweep_segments(scratch.path()).empty());
        child.kill_to_zombie();
        std::vector<std::string> removed;
        CHECK(comes_true([&] {
            removed = sweep_segments(scratch.path());
            return !removed.empty();
        }));
        REQUIRE(removed.size() == 1);
        CHECK(removed[0].rfind(published ? "dying" : ".tmp-", 0) == 0);
        CHECK(named_in(scratch) == std::vector<std::string>{"living"});
    }
    CHECK(sweep_segments("/dev/shm/not-there").empty());
}

TEST_CASE("each creation sweeps, and takes a dead segment's name over") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    ForkedChild dying([&](const Channel&) -> int {
        const SharedSegment one = make("apex", in(scratch), 1);
        const SharedSegment two = make("other", in(scratch), 1);
        _exit(0);  // nobody closes them
    });
    REQUIRE(dying.wait() == 0);
    CHECK(named_in(scratch).size() == 2);
    // still there for a successor as long as nobody creates
    CHECK(SharedSegment::attach("other", in(scratch)).is_open());
    CHECK(named_in(scratch).size() == 1);
    SharedSegment waiting = SharedSegment::create("new", size, in(scratch));
    CHECK(named_in(scratch).empty());
    std::memcpy(waiting.data(), segment_magic, sizeof segment_magic);
    ForkedChild child([&](const Channel&) -> int {
        const SharedSegment segment = make("new", in(scratch), 1);
        _exit(0);
    });
    REQUIRE(child.wait() == 0);
    waiting.make_visible();  // over one that died after this one was created
    CHECK(SharedSegment::attach("new", in(scratch)).data()[size - 1] == std::byte{0});
}

TEST_CASE("an attach meets the last one out: it waits a little, and then there is nothing") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    SharedSegment segment = make("apex", in(scratch));
    const OwnedDescriptor remover_locks = segment.open_lock_descriptor();
    const int remover = remover_locks.number();
    unlock(segment.data_descriptor(), lock_byte::presence);
    REQUIRE(try_lock(remover, lock_byte::presence, LockKind::exclusive));
    const auto begin = std::chrono::steady_clock::now();
    CHECK(contains(refusal<SegmentNotFound>([&] { SharedSegment::attach("apex", in(scratch)); }),
                   "is being removed"));
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(2));
    CHECK_THROWS_AS(
        SharedSegment::attach_descriptor(segment.data_descriptor(), "apex", in(scratch)),
        SegmentNotFound);
    CHECK_THROWS_AS(SharedSegment::create("apex", size, in(scratch)), SegmentExists);

    ForkedChild child([&](const Channel& parent) {
        parent.tell();
        return SharedSegment::attach("apex", in(scratch)).is_open() ? 0 : 1;
    });
    child.hear();
    std::this_thread::sleep_for(std::chrono::milliseconds(15));
    unlock(remover, lock_byte::presence);  // it was a sweep that thought better of it
    CHECK(child.wait() == 0);
}

TEST_CASE("race: creators by temporary names against sweeps") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    std::list<ForkedChild> sweepers;
    for (int n = 0; n < 2; ++n) {
        sweepers.emplace_back([&](const Channel&) -> int {
            for (;;) sweep_segments(scratch.path());
        });
    }
    ForkedChild creator([&](const Channel&) {
        const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(700);
        int made = 0;
        while (std::chrono::steady_clock::now() < end) {
            SharedSegment segment = make("raced", in(scratch, true), 7);
            if (SharedSegment::attach("raced", in(scratch)).data()[size - 1] != std::byte{7}) {
                return 1;
            }
            struct stat facts;
            if (fstat(segment.data_descriptor(), &facts) != 0 || facts.st_nlink != 1) return 2;
            ++made;
        }
        return made > 20 ? 0 : 3;
    });
    CHECK(creator.wait() == 0);
    sweepers.clear();
    sweep_segments(scratch.path());
    CHECK(scratch.is_empty());
}

TEST_CASE("race: many create, attach and leave under one name, and nothing is left") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    std::list<ForkedChild> children;
    for (int n = 0; n < 4; ++n) {
        children.emplace_back([&](const Channel& parent) {
            const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(700);
            std::uint64_t attached = 0;
            while (std::chrono::steady_clock::now() < end) {
                try {
                    const SharedSegment segment = make("raced", in(scratch, n % 2 == 0), 7);
                    std::this_thread::yield();
                } catch (const SegmentExists&) {
                }
                try {
                    const SharedSegment segment = SharedSegment::attach("raced", in(scratch));
                    if (segment.data()[size - 1] != std::byte{7}) return 1;
                    ++attached;
                    // as long as it is held, the name leads to it
                    struct stat facts;
                    if (fstat(segment.data_descriptor(), &facts) != 0 || facts.st_nlink == 0) {
                        return 2;
                    }
                } catch (const SegmentNotFound&) {
                }
            }
            parent.tell(attached);
            return 0;
        });
    }
    ForkedChild sweeper([&](const Channel&) -> int {
        for (;;) sweep_segments(scratch.path());
    });
    std::uint64_t attached = 0;
    for (ForkedChild& child : children) {
        attached += child.hear();
        CHECK(child.wait() == 0);
    }
    CHECK(attached > 0);
    CHECK(scratch.is_empty());
}

TEST_CASE("what is nameless is found by its generated name once it is published") {
    const ScratchDirectory scratch;
    const std::string name = generate_name();
    const auto found = [&] {
        const std::vector<std::string> names = list_segments(scratch.path());
        return std::count(names.begin(), names.end(), name);
    };
    SharedSegment made = SharedSegment::create(name, size, nameless_in(scratch));
    std::memcpy(made.data(), segment_magic, sizeof segment_magic);
    CHECK_THROWS_AS(SharedSegment::attach(name, in(scratch)), SegmentNotFound);
    CHECK(nameless_path(name).empty());
    CHECK(found() == 0);
    made.make_visible();
    CHECK_THROWS_AS(made.make_visible(), InvalidArgument);
    CHECK(scratch.is_empty());
    CHECK(found() == 1);
    CHECK(contains(nameless_path(name), "/proc/" + std::to_string(getpid()) + "/fd/"));
    {
        SharedSegment other = SharedSegment::attach(name, in(scratch));
        other.data()[size - 1] = std::byte{9};
        CHECK(made.data()[size - 1] == std::byte{9});
        made.close();
        SharedSegment third = SharedSegment::attach(name, in(scratch));
        CHECK(third.data()[size - 1] == std::byte{9});
        for (const off_t length : {off_t{0}, off_t{2 * size}}) {
            CHECK(ftruncate(third.data_descriptor(), length) == -1);
        }
    }
    CHECK(contains(refusal<SegmentNotFound>([&] { SharedSegment::attach(name, in(scratch)); }),
                   "name="));
    CHECK(found() == 0);
}

TEST_CASE("what is nameless needs a generated name and room for its number") {
    const ScratchDirectory scratch;
    for (const char* name : {"apex", "1-0123456789aX", "1-000000000000", "0123456789ab"}) {
        CHECK_THROWS_AS(SharedSegment::create(name, size, nameless_in(scratch)), InvalidArgument);
    }
    SegmentOptions options = nameless_in(scratch);
    CHECK_THROWS_AS(SharedSegment::create(generate_name(), 4095, options), InvalidArgument);
    options.overwrite = true;
    CHECK_THROWS_AS(SharedSegment::create(generate_name(), size, options), InvalidArgument);
}

TEST_CASE("overwriting takes the name and leaves its users what they have") {
    for (const bool named : {false, true}) {
        const ScratchDirectory scratch;
        SegmentOptions options = in(scratch, named);
        SharedSegment first = make("apex", options, 1);
        CHECK_THROWS_AS(make("apex", options, 2), SegmentExists);
        options.overwrite = true;
        SharedSegment second = make("apex", options, 2);
        CHECK(SharedSegment::attach("apex", options).data()[size - 1] == std::byte{2});
        CHECK(first.data()[size - 1] == std::byte{1});
        first.close();
        CHECK(SharedSegment::attach("apex", options).data()[size - 1] == std::byte{2});
        second.close();
        CHECK(scratch.is_empty());
        write_file(segment_path("apex", scratch.path()), "somebody's own");
        CHECK_THROWS_AS(make("apex", options), SegmentExists);
        std::filesystem::remove(segment_path("apex", scratch.path()));
    }
}

TEST_CASE("killed at any moment, creators leave nothing that a sweep does not remove") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    for (int n = 0; n < 60; ++n) {
        ForkedChild child([&](const Channel& parent) -> int {
            parent.tell();
            for (;;) {
                try {
                    const SharedSegment segment = make("killed", in(scratch, n % 2 == 0));
                } catch (const SegmentExists&) {
                }
            }
        });
        child.hear();
        std::this_thread::sleep_for(std::chrono::microseconds(137 * n));
        child.signal(SIGKILL);
        child.wait();
    }
    sweep_segments(scratch.path());
    CHECK(scratch.is_empty());
}

TEST_CASE("a sandbox that refuses files without a name, or to name them, is no obstacle") {
    const Watchdog watchdog;
    for (const bool refuse_link : {false, true}) {
        CAPTURE(refuse_link);
        const ScratchDirectory scratch;
        ForkedChild child([&](const Channel&) {
            const bool refused =
                refuse_link
                    ? refuse_system_call(SYS_linkat, 4, AT_SYMLINK_FOLLOW, AT_SYMLINK_FOLLOW, EPERM)
                    : refuse_system_call(SYS_openat, 2, O_TMPFILE, O_TMPFILE, EOPNOTSUPP);
            if (!refused) return 77;
            SharedSegment created = SharedSegment::create("apex", size, in(scratch));
            if (named_in(scratch).size() != 0 || scratch.is_empty()) return 1;
            std::memcpy(created.data(), segment_magic, sizeof segment_magic);
            created.make_visible();
            if (!SharedSegment::attach("apex", in(scratch)).is_open()) return 2;
            created.close();
            return scratch.is_empty() ? 0 : 3;
        });
        const int status = child.wait();
        if (status == 77) {
            MESSAGE("skipped: the kernel has no system call filters");
        } else {
            CHECK(status == 0);
        }
    }
}

TEST_CASE("where rename without replacing is refused, a second link does") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    ForkedChild child([&](const Channel&) {
        if (!refuse_system_call(SYS_renameat2, 4, ~0u, RENAME_NOREPLACE, EINVAL)) return 77;
        SharedSegment first = make("apex", in(scratch, true));
        struct stat facts;
        if (fstat(first.data_descriptor(), &facts) != 0 || facts.st_nlink != 1) return 1;
        first.close();
        return scratch.is_empty() ? 0 : 2;
    });
    const int status = child.wait();
    CHECK((status == 0 || status == 77));
}

TEST_CASE("locks that the kernel refuses are an error at creation that leaves nothing") {
    const Watchdog watchdog;
    for (const bool named : {false, true}) {
        const ScratchDirectory scratch;
        ForkedChild child([&](const Channel&) {
            if (!refuse_system_call(SYS_fcntl, 1, ~0u, F_OFD_SETLK, EINVAL)) return 77;
            const std::string text = refusal<SystemFailure>(
                [&] { SharedSegment::create("apex", size, in(scratch, named)); });
            return contains(text, "open-file-description locks are refused") &&
                           contains(text, "tmpfs") && scratch.is_empty()
                       ? 0
                       : 1;
        });
        const int status = child.wait();
        CHECK((status == 0 || status == 77));
    }
}

TEST_CASE("an allocation that is interrupted each time goes on in smaller pieces") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    ForkedChild child([&](const Channel&) {
        // as older kernels do when signals come faster than 64 MB are allocated
        if (!refuse_system_call(SYS_fallocate, 3, ~0u, 64u << 20, EINTR)) return 77;
        if (!refuse_system_call(SYS_madvise, 2, ~0u, populate_write, EINVAL)) return 77;
        SegmentOptions options = in(scratch);
        int calls = 0;
        options.progress = [&](std::size_t) { ++calls; };
        const std::size_t bytes = (std::size_t{96} << 20) + 12345;
        const SharedSegment segment = SharedSegment::create("apex", bytes, options);
        struct stat facts;
        if (fstat(segment.data_descriptor(), &facts) != 0) return 1;
        if (static_cast<std::size_t>(facts.st_size) != bytes) return 2;
        if (static_cast<std::size_t>(facts.st_blocks) * 512 < bytes) return 3;
        return calls == 6 ? 0 : 4;
    });
    const int status = child.wait();
    CHECK((status == 0 || status == 77));
}

TEST_CASE("whatever the umask, the mode is 0600") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    ForkedChild child([&](const Channel&) {
        umask(0777);
        const SharedSegment nameless = make("a", in(scratch));
        const SharedSegment temporary_name = make("b", in(scratch, true));
        return SharedSegment::attach("a", in(scratch)).is_open() &&
                       SharedSegment::attach("b", in(scratch)).is_open()
                   ? 0
                   : 1;
    });
    CHECK(child.wait() == 0);
}

TEST_CASE("too little room is told before anything is made") {
    const ScratchDirectory scratch;
    SegmentOptions options = in(scratch);
    options.memory_roots.proc = scratch.path() + "/proc";
    options.memory_roots.cgroup = scratch.path() + "/cgroup";
    std::filesystem::create_directories(scratch.path() + "/proc");
    write_file(scratch.path() + "/proc/meminfo", "MemAvailable: 4096 kB\n");
    const std::string text = refusal<NotEnoughMemory>(
        [&] { SharedSegment::create("apex", std::size_t{8} << 20, options); });
    CHECK(contains(text, "cannot create 'apex': needs 8.0 MB, the machine's memory"));
    CHECK(contains(text, "has 4.0 MB free"));
    CHECK(SharedSegment::create("apex", size, options).is_open());
}

TEST_CASE("a small /dev/shm: an error at once, or when somebody else fills it meanwhile") {
    const Watchdog watchdog;
    const ScratchDirectory scratch;
    ForkedChild child([&](const Channel&) {
        if (unshare(CLONE_NEWNS) != 0 ||
            mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
            mount("small", scratch.path().c_str(), "tmpfs", 0, "size=96m") != 0) {
            return 77;
        }
        SegmentOptions options = in(scratch);
        const std::string early = refusal<NotEnoughMemory>(
            [&] { SharedSegment::create("apex", std::size_t{200} << 20, options); });
        if (!contains(early, "cannot create 'apex': needs 200.0 MB, " + scratch.path() +
                                 " has 96.0 MB free; leave out name=")) {
            return 1;
        }
        int filler = -1;
        options.progress = [&](std::size_t) {
            if (filler != -1) return;
            filler = open((scratch.path() + "/filler").c_str(), O_RDWR | O_CREAT, 0600);
            if (fallocate(filler, 0, 0, off_t{64} << 20) != 0) std::abort();
        };
        const std::string late = refusal<NotEnoughMemory>(
            [&] { SharedSegment::create("apex", std::size_t{80} << 20, options); });
        if (!contains(late, "needs ") || !contains(late, " MB free")) return 2;
        // What the failed creation had is free again.
        SegmentOptions plain = in(scratch);
        if (!make("apex", plain).is_open()) return 3;

        // No limit on the size of a tmpfs is no limit of 0.
        if (mount("unlimited", scratch.path().c_str(), "tmpfs", 0, "size=0") != 0) return 77;
        return make("apex", plain).is_open() ? 0 : 4;
    });
    const int status = child.wait();
    if (status == 77) {
        MESSAGE("skipped: no right to mount");
    } else {
        CHECK(status == 0);
    }
    CHECK(scratch.is_empty());
}
