#include <doctest/doctest.h>
#include <sys/resource.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/error.hpp"
#include "forked_child.hpp"
#include "os/memory_room.hpp"

using namespace mpbuffer;

namespace {

constexpr std::uint64_t mb = std::uint64_t{1} << 20;

// A made-up /proc and /sys/fs/cgroup.
struct MadeUpMachine {
    ScratchDirectory scratch;
    MemoryRoots roots{scratch.path() + "/proc", scratch.path() + "/cgroup"};

    MadeUpMachine() { write("proc/meminfo", "MemTotal: 99 kB\nMemAvailable:   8388608 kB\n"); }

    void write(const std::string& path, const std::string& text) const {
        const std::filesystem::path file = scratch.path() + "/" + path;
        std::filesystem::create_directories(file.parent_path());
        std::ofstream(file) << text;
    }
    void group_v2(const std::string& path, const std::string& limit, std::uint64_t usage,
                  std::uint64_t inactive = 0, std::uint64_t active = 0) const {
        write("cgroup" + path + "/memory.max", limit + "\n");
        write("cgroup" + path + "/memory.current", std::to_string(usage) + "\n");
        write("cgroup" + path + "/memory.stat", "anon 1\nfile 999999999999\ninactive_file " +
                                                    std::to_string(inactive) + "\nactive_file " +
                                                    std::to_string(active) + "\n");
    }
    void group_v1(const std::string& path, const std::string& limit, std::uint64_t usage,
                  std::uint64_t cache) const {
        write("cgroup/memory" + path + "/memory.limit_in_bytes", limit + "\n");
        write("cgroup/memory" + path + "/memory.usage_in_bytes", std::to_string(usage) + "\n");
        write("cgroup/memory" + path + "/memory.stat",
              "inactive_file 999999999999\ntotal_inactive_file " + std::to_string(cache / 2) +
                  "\ntotal_active_file " + std::to_string(cache - cache / 2) + "\n");
    }

    std::string refusal(std::uint64_t bytes) const {
        try {
            require_room(bytes, "create 'apex'", scratch.path(), roots);
        } catch (const NotEnoughMemory& error) {
            return error.what();
        }
        return "";
    }
    std::uint64_t room() const { return largest_room(scratch.path(), roots); }
    std::uint64_t least_memory() const {
        std::uint64_t least = ~std::uint64_t{0};
        for (const RoomLimit& limit : room_limits(scratch.path(), roots)) {
            if (limit.memory && limit.bytes < least) least = limit.bytes;
        }
        return least;
    }
};

bool contains(const std::string& text, const std::string& part) {
    INFO(text);
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("bytes are written as df -h does") {
    CHECK(readable_bytes(0) == "0 bytes");
    CHECK(readable_bytes(1) == "1 byte");
    CHECK(readable_bytes(1023) == "1023 bytes");
    CHECK(readable_bytes(1024) == "1.0 KB");
    CHECK(readable_bytes(64 * mb) == "64.0 MB");
    CHECK(readable_bytes(1024 * mb - 1) == "1.0 GB");
    CHECK(readable_bytes(~std::uint64_t{0}) == "16.0 EB");
}

TEST_CASE("this machine has room for a little and not for everything") {
    CHECK_NOTHROW(require_room(4096, "create 'apex'", "/dev/shm"));
    CHECK_THROWS_AS(require_room(std::size_t{1} << 60, "create 'apex'", "/dev/shm"),
                    NotEnoughMemory);
    CHECK_THROWS_AS(require_room(4096, "create 'apex'", "/dev/shm/not-there"), SystemFailure);
}

TEST_CASE("a machine without cgroups, or without /proc, is limited by what it tells") {
    const MadeUpMachine machine;
    CHECK(machine.least_memory() == 8192 * mb);
    CHECK(contains(machine.refusal(9000 * mb),
                   "cannot create 'apex': needs 8.8 GB, the machine's memory (MemAvailable) has "
                   "8.0 GB free"));
    std::filesystem::remove_all(machine.roots.proc);
    CHECK(machine.least_memory() == ~std::uint64_t{0});
    CHECK(machine.refusal(4096) == "");
}

TEST_CASE("a size that only just fits leaves no memory for the kernel's tables") {
    const MadeUpMachine machine;
    CHECK(contains(machine.refusal(8192 * mb - 4096), "for the kernel's tables"));
    CHECK(machine.refusal(8000 * mb) == "");
}

TEST_CASE("the largest room is the most that is not refused") {
    for (std::uint64_t available = 8191 * 1024; available < 8191 * 1024 + 140; ++available) {
        const MadeUpMachine machine;
        machine.write("proc/self/cgroup", "0::/job\n");
        machine.group_v2("/job", std::to_string(available), 0);
        CHECK(machine.refusal(machine.room()) == "");
        CHECK(machine.refusal(machine.room() + 1) != "");
    }
    const MadeUpMachine crowded;
    crowded.write("proc/meminfo", "MemAvailable: 1000 kB\n");
    CHECK(crowded.room() == 0);
    std::filesystem::remove_all(crowded.roots.proc);
    CHECK(crowded.room() > mb);  // the file system's
}

TEST_CASE("cgroup v2: the tightest ancestor counts") {
    const MadeUpMachine machine;
    machine.write("proc/self/cgroup", "0::/slice/job/step\n");
    machine.group_v2("/slice", std::to_string(300 * mb), 100 * mb);
    machine.group_v2("/slice/job", "max", 100 * mb);
    machine.group_v2("/slice/job/step", std::to_string(900 * mb), 50 * mb);
    CHECK(machine.least_memory() == 200 * mb);
    const std::string refusal = machine.refusal(210 * mb);
    CHECK(contains(refusal, "cannot create 'apex': needs 210.0 MB, cgroup /slice ("));
    CHECK(contains(refusal, "/cgroup/slice/memory.max = 300.0 MB) has 200.0 MB free"));
    CHECK(machine.refusal(190 * mb) == "");
}

TEST_CASE("cgroup v2: page cache of the group can be reclaimed") {
    const MadeUpMachine machine;
    machine.write("proc/self/cgroup", "0::/job\n");
    machine.group_v2("/job", std::to_string(300 * mb), 290 * mb, 60 * mb, 40 * mb);
    CHECK(machine.least_memory() == 90 * mb);  // half of what is active
    machine.group_v2("/job", std::to_string(300 * mb), 290 * mb, 400 * mb);
    CHECK(machine.least_memory() == 300 * mb);  // never more than the limit
    machine.group_v2("/job", std::to_string(300 * mb), 400 * mb);
    CHECK(machine.least_memory() == 0);
}

TEST_CASE("in a container the group's path may be the host's, and the limit at the root") {
    const MadeUpMachine machine;
    machine.group_v2("", std::to_string(64 * mb), 4 * mb);
    for (const char* path : {"/", "/docker/0123/gone", "/../../elsewhere"}) {
        machine.write("proc/self/cgroup", std::string("0::") + path + "\n");
        CHECK(machine.least_memory() == 60 * mb);
    }
    CHECK(contains(machine.refusal(100 * mb), "cgroup / ("));
}

TEST_CASE("cgroup v1, alone or beside v2") {
    const MadeUpMachine machine;
    machine.write("proc/self/cgroup", "9:name=systemd:/x\n4:memory:/job/a\n1:cpu:/\n0::/\n");
    machine.group_v1("", "9223372036854771712", 8000 * mb, 0);
    machine.group_v1("/job/a", std::to_string(512 * mb), 300 * mb, 100 * mb);
    CHECK(machine.least_memory() == 287 * mb);
    CHECK(contains(machine.refusal(400 * mb), "memory.limit_in_bytes = 512.0 MB) has 287.0 MB"));
    machine.group_v1("/job", std::to_string(200 * mb), 150 * mb, 0);
    CHECK(machine.least_memory() == 50 * mb);
    machine.write("proc/self/cgroup", "4:cpu,memory:/job\n");
    CHECK(machine.least_memory() == 50 * mb);
    machine.write("proc/self/cgroup", "4:memory:/job\n0::/new\n");
    machine.group_v2("/unified/new", std::to_string(20 * mb), 0);
    CHECK(machine.least_memory() == 20 * mb);
}

TEST_CASE("nonsense in the files is no limit") {
    const MadeUpMachine machine;
    machine.write("proc/self/cgroup", "\n:\n::\n0::\n4:memory\nrubbish\n0::relative\n0::/job\n");
    for (const char* limit : {"", "-1", "12x", "99999999999999999999999", "max"}) {
        machine.group_v2("/job", limit, 0);
        CHECK(machine.least_memory() == 8192 * mb);
    }
    machine.write("cgroup/job/memory.max", "0\n");
    CHECK(machine.least_memory() == 0);
}

TEST_CASE("a directory on a disk is limited by its free space alone") {
    const MadeUpMachine machine;
    machine.write("proc/meminfo", "MemAvailable: 1 kB\n");
    bool memory = false;
    for (const RoomLimit& limit : room_limits("/", machine.roots)) memory |= limit.memory;
    const bool root_in_memory = room_limits("/", MemoryRoots{"/proc", "/nowhere"}).size() > 1;
    CHECK(memory == root_in_memory);
}

TEST_CASE("memory without a name is limited by memory alone") {
    const MadeUpMachine machine;
    machine.write("proc/meminfo", "MemAvailable: 1048576 kB\n");
    CHECK(spare_room(900 * mb, "", machine.roots) > 100 * mb);
    CHECK(spare_room(900 * mb, "", machine.roots) < 124 * mb);
    CHECK_FALSE(spare_room(1024 * mb, "", machine.roots));
    CHECK(largest_room("", machine.roots) < 1024 * mb);
    CHECK_THROWS_AS(require_room(2048 * mb, "create 'x'", "", machine.roots), NotEnoughMemory);
}

TEST_CASE("a limit on the size of files is named") {
    const Watchdog watchdog;
    ForkedChild child([](const Channel&) {
        const rlimit limit = {1 * mb, 1 * mb};
        setrlimit(RLIMIT_FSIZE, &limit);
        try {
            require_room(2 * mb, "create 'apex'", "/dev/shm");
        } catch (const NotEnoughMemory& error) {
            return contains(error.what(), "ulimit -f") ? 0 : 2;
        }
        return 1;
    });
    CHECK(child.wait() == 0);
}
