#include "os/memory_room.hpp"

#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <optional>
#include <sstream>

#include "base/error.hpp"

namespace mpbuffer {

namespace {

constexpr std::uint64_t absurdly_large = std::uint64_t{1} << 60;  // v1 says "none" as 2^63 - 4096

std::optional<std::string> first_word_of(const std::string& path) {
    std::ifstream file(path);
    std::string word;
    if (!(file >> word)) return std::nullopt;
    return word;
}

std::optional<std::uint64_t> number_in(const std::string& word) {
    if (word.empty() || word.size() > 19) return std::nullopt;
    std::uint64_t value = 0;
    for (const char digit : word) {
        if (digit < '0' || digit > '9') return std::nullopt;
        value = value * 10 + static_cast<std::uint64_t>(digit - '0');
    }
    return value;
}

std::optional<std::uint64_t> number_of(const std::string& path) {
    const auto word = first_word_of(path);
    return word ? number_in(*word) : std::nullopt;
}

// The value after `key` at the start of a line: "inactive_file 123", "MemAvailable: 123 kB".
std::optional<std::uint64_t> value_of(const std::string& path, const std::string& key) {
    std::ifstream file(path);
    std::string line;
    while (std::getline(file, line)) {
        std::istringstream words(line);
        std::string name;
        std::string value;
        if (words >> name >> value && name == key) return number_in(value);
    }
    return std::nullopt;
}

struct CgroupFiles {
    const char* limit;
    const char* usage;
    const char* inactive;  // of the group and all below it, as the usage is
    const char* active;
};

constexpr CgroupFiles version_2 = {"memory.max", "memory.current", "inactive_file", "active_file"};
constexpr CgroupFiles version_1 = {"memory.limit_in_bytes", "memory.usage_in_bytes",
                                   "total_inactive_file", "total_active_file"};

void add_limit_of_group(const std::string& mount, const std::string& group,
                        const CgroupFiles& files, std::vector<RoomLimit>& limits) {
    const std::string folder = mount + (group == "/" ? "" : group);
    const auto limit = number_of(folder + "/" + files.limit);
    if (!limit || *limit >= absurdly_large) return;
    const std::uint64_t usage = number_of(folder + "/" + files.usage).value_or(0);
    const std::string stat = folder + "/memory.stat";
    const std::uint64_t cache =
        value_of(stat, files.inactive).value_or(0) + value_of(stat, files.active).value_or(0) / 2;
    const std::uint64_t held = usage > cache ? usage - cache : 0;
    limits.push_back({*limit > held ? *limit - held : 0,
                      "cgroup " + group + " (" + folder + "/" + files.limit + " = " +
                          readable_bytes(*limit) + ") has",
                      true});
}

// The group and all its ancestors as far as they are mounted. In a container the path may be one
// of the host, of which only the last part is there, as the mount's root.
void add_limits_along(const std::string& mount, std::string group, const CgroupFiles& files,
                      std::vector<RoomLimit>& limits) {
    if (group.find("/..") != std::string::npos) group = "/";  // outside of our cgroup namespace
    while (group.size() > 1) {
        add_limit_of_group(mount, group, files, limits);
        group.erase(group.rfind('/'));
    }
    add_limit_of_group(mount, "/", files, limits);
}

void add_cgroup_limits(const MemoryRoots& roots, std::vector<RoomLimit>& limits) {
    std::ifstream memberships(roots.proc + "/self/cgroup");
    std::string line;
    while (std::getline(memberships, line)) {  // "id:controllers:/path"
        const std::size_t first = line.find(':');
        if (first == std::string::npos) continue;
        const std::size_t second = line.find(':', first + 1);
        if (second == std::string::npos || second + 1 >= line.size()) continue;
        if (line[second + 1] != '/') continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const std::string group = line.substr(second + 1);
        if (controllers.empty()) {
            add_limits_along(roots.cgroup, group, version_2, limits);
            add_limits_along(roots.cgroup + "/unified", group, version_2, limits);
        } else if (("," + controllers + ",").find(",memory,") != std::string::npos) {
            add_limits_along(roots.cgroup + "/memory", group, version_1, limits);
        }
    }
}

// 8 bytes of page table per page in each of several processes, and 9 of the file's index.
constexpr std::uint64_t overhead_divisor = 64;

bool lives_in_memory(const std::string& directory) {
    struct statfs facts;
    if (directory.empty()) return true;
    if (statfs(directory.c_str(), &facts) == -1) return true;
    switch (static_cast<std::uint32_t>(facts.f_type)) {
        case 0x01021994:  // tmpfs
        case 0x858458f6:  // ramfs
        case 0x958458f6:  // hugetlbfs
            return true;
        default: return false;
    }
}

void add_limit_of_file_system(const std::string& directory, std::vector<RoomLimit>& limits) {
    struct statvfs space;
    if (statvfs(directory.c_str(), &space) == -1) {
        throw_system_failure("cannot ask for the free space of " + directory, errno);
    }
    if (space.f_blocks != 0) {  // a tmpfs without a size limit says 0 of 0
        limits.push_back({static_cast<std::uint64_t>(space.f_bavail) * space.f_frsize,
                          directory + " has", false});
    }
}

// How many of the bytes the limit has no room for.
std::uint64_t missing(std::uint64_t bytes, const RoomLimit& limit) {
    const std::uint64_t overhead = limit.memory ? kernel_overhead(bytes) : 0;
    const std::uint64_t room = limit.bytes > overhead ? limit.bytes - overhead : 0;
    return bytes > room ? bytes - room : 0;
}

}  // namespace

std::vector<RoomLimit> room_limits(const std::string& directory, const MemoryRoots& roots) {
    std::vector<RoomLimit> limits;
    if (!directory.empty()) add_limit_of_file_system(directory, limits);
    struct rlimit file_size;
    if (getrlimit(RLIMIT_FSIZE, &file_size) == 0 && file_size.rlim_cur != RLIM_INFINITY) {
        limits.push_back({static_cast<std::uint64_t>(file_size.rlim_cur),
                          "the limit on file sizes (ulimit -f) has", false});
    }
    if (!lives_in_memory(directory)) return limits;
    if (const auto kilobytes = value_of(roots.proc + "/meminfo", "MemAvailable:")) {
        limits.push_back({*kilobytes * 1024, "the machine's memory (MemAvailable) has", true});
    }
    add_cgroup_limits(roots, limits);
    return limits;
}

std::uint64_t kernel_overhead(std::uint64_t bytes) {
    return bytes / overhead_divisor + (std::uint64_t{1} << 20);
}

std::uint64_t largest_room(const std::string& directory, const MemoryRoots& roots) {
    std::uint64_t least = ~std::uint64_t{0};
    for (const RoomLimit& limit : room_limits(directory, roots)) {
        std::uint64_t room = limit.bytes;
        if (limit.memory) {  // solved for the bytes themselves
            room -= std::min(room, kernel_overhead(0));
            room -= (room + 1) / (overhead_divisor + 1);
        }
        least = std::min(least, room);
    }
    return least;
}

std::optional<std::uint64_t> spare_room(std::size_t bytes, const std::string& directory,
                                        const MemoryRoots& roots) {
    std::uint64_t least = ~std::uint64_t{0};
    for (const RoomLimit& limit : room_limits(directory, roots)) {
        if (missing(bytes, limit) != 0) return std::nullopt;
        const std::uint64_t needed = bytes + (limit.memory ? kernel_overhead(bytes) : 0);
        least = std::min(least, limit.bytes - needed);
    }
    return least;
}

void require_room(std::size_t bytes, const std::string& what, const std::string& directory,
                  const MemoryRoots& roots) {
    const std::vector<RoomLimit> limits = room_limits(directory, roots);
    const auto worst = std::max_element(limits.begin(), limits.end(),
                                        [bytes](const RoomLimit& a, const RoomLimit& b) {
                                            return missing(bytes, a) < missing(bytes, b);
                                        });
    if (worst == limits.end() || missing(bytes, *worst) == 0) return;
    std::string why = "cannot " + what + ": needs " + readable_bytes(bytes);
    if (worst->memory && worst->bytes >= bytes) {
        why += " and " + readable_bytes(kernel_overhead(bytes)) + " for the kernel's tables";
    }
    why += ", " + worst->where + " " + readable_bytes(worst->bytes) + " free";
    if (worst->where == directory + " has") {
        why += "; leave out name=, since memory without a name needs no room there, or make " +
               directory + " larger (docker run --shm-size)";
    }
    throw NotEnoughMemory(why);
}

std::string readable_bytes(std::uint64_t bytes) {
    static constexpr const char* units[] = {"bytes", "KB", "MB", "GB", "TB", "PB", "EB"};
    if (bytes < 1024) return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes");
    double value = static_cast<double>(bytes);
    unsigned unit = 0;
    while (value >= 1023.95 && unit < 6) {
        value /= 1024;
        ++unit;
    }
    char text[32];
    std::snprintf(text, sizeof text, "%.1f %s", value, units[unit]);
    return text;
}

}  // namespace mpbuffer
