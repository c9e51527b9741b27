#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "forked_child.hpp"
#include "os/pages.hpp"

using namespace mpbuffer;

namespace {

const RoomLeft enough_room = [](std::size_t missing) { return missing; };

constexpr std::size_t mb = std::size_t{1} << 20;

// A file of shared memory without a page, mapped.
struct Mapped {
    explicit Mapped(std::size_t bytes) : bytes(bytes) {
        fd = memfd_create("mpbuffer-test", MFD_CLOEXEC);
        REQUIRE(ftruncate(fd, static_cast<off_t>(bytes)) == 0);
        void* const mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        REQUIRE(mapped != MAP_FAILED);
        memory = static_cast<std::byte*>(mapped);
    }
    ~Mapped() {
        munmap(memory, bytes);
        close(fd);
    }
    std::size_t allocated() const {
        struct stat facts;
        fstat(fd, &facts);
        return static_cast<std::size_t>(facts.st_blocks) * 512;
    }
    std::size_t in_page_table() const {
        std::vector<unsigned char> pages((bytes + 4095) / 4096);
        REQUIRE(mincore(memory, bytes, pages.data()) == 0);
        return static_cast<std::size_t>(
            std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return page & 1; }));
    }
    std::size_t bytes;
    int fd = -1;
    std::byte* memory = nullptr;
};

}  // namespace

TEST_CASE("every page is supplied, whatever the size") {
    for (const std::size_t bytes :
         {std::size_t{1}, std::size_t{5000}, 8 * mb, 8 * mb + 1, 97 * mb}) {
        const Mapped file(bytes);
        std::size_t supplied = 0;
        const Supply outcome = supply_pages(file.memory, bytes, {}, enough_room, supplied);
        if (outcome == Supply::unsupported) return;
        CHECK(outcome == Supply::done);
        CHECK(supplied == bytes);
        CHECK(file.allocated() >= bytes);
        CHECK(file.in_page_table() == (bytes + 4095) / 4096);
        CHECK(file.memory[bytes - 1] == std::byte{0});
    }
}

TEST_CASE("progress is told, grows, and may give up") {
    const Mapped file(200 * mb);
    std::vector<std::size_t> told;
    std::size_t supplied = 0;
    const auto note = [&told](std::size_t done) { told.push_back(done); };
    if (supply_pages(file.memory, file.bytes, note, enough_room, supplied) == Supply::unsupported)
        return;
    CHECK(told.front() == 0);
    CHECK(std::is_sorted(told.begin(), told.end()));
    CHECK(told.back() <= file.bytes);

    const Mapped other(200 * mb);
    const auto give_up = [](std::size_t) { throw std::runtime_error("enough"); };
    CHECK_THROWS_WITH(supply_pages(other.memory, other.bytes, give_up, enough_room, supplied),
                      "enough");
    CHECK(other.allocated() < other.bytes);
}

TEST_CASE("what has no room for the rest ends the supply") {
    const Mapped file(200 * mb);
    std::size_t supplied = 0;
    std::atomic<int> questions{0};
    const RoomLeft room_left = [&](std::size_t missing) -> std::size_t {
        ++questions;
        return missing > 100 * mb ? 40 * mb : 0;
    };
    const Supply outcome = supply_pages(file.memory, file.bytes, {}, room_left, supplied);
    if (outcome == Supply::unsupported) return;
    CHECK(outcome == Supply::no_room);
    CHECK(supplied < 160 * mb);
    CHECK(supplied >= 80 * mb);
    CHECK(questions >= 3);
}

TEST_CASE("memory that is private is zero and aligned, of any size") {
    for (const std::size_t bytes :
         {std::size_t{1}, std::size_t{64}, std::size_t{100'000}, 5 * mb}) {
        const PrivateMemory memory(bytes);
        CHECK(reinterpret_cast<std::uintptr_t>(memory.data()) % 64 == 0);
        CHECK(std::all_of(memory.data(), memory.data() + bytes,
                          [](std::byte each) { return each == std::byte{0}; }));
        memory.data()[bytes - 1] = std::byte{1};
    }
}

TEST_CASE("spreading over nodes works, or is not needed") {
    const Mapped file(4 * mb);
    interleave_nodes(file.memory, file.bytes, "cannot create 'apex'");
    file.memory[0] = std::byte{1};
    CHECK(file.memory[0] == std::byte{1});
}
