#include "os/nameless_memory.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <vector>

#include "os/descriptor.hpp"

namespace mpbuffer {

namespace {

constexpr unsigned never_executed = 8;  // MFD_NOEXEC_SEAL, which older headers do not have

struct CloseFolder {
    void operator()(DIR* folder) const { closedir(folder); }
};
using Folder = std::unique_ptr<DIR, CloseFolder>;

Folder open_folder(const std::string& path) {
    const int fd = open_retrying(path.c_str(), O_RDONLY | O_DIRECTORY);
    if (fd < 0) return nullptr;
    DIR* const folder = fdopendir(fd);
    if (folder == nullptr) ::close(fd);
    return Folder(folder);
}

// The entries of a folder of /proc that are numbers.
std::vector<long> numbers_in(const std::string& path) {
    std::vector<long> numbers;
    const Folder folder = open_folder(path);
    if (!folder) return numbers;
    while (const dirent* entry = readdir(folder.get())) {  // NOLINT(concurrency-mt-unsafe)
        char* end = nullptr;
        const long number = std::strtol(entry->d_name, &end, 10);
        if (end != entry->d_name && *end == '\0') numbers.push_back(number);
    }
    return numbers;
}

// As readlink shows it: "/memfd:LABEL (deleted)"; empty if it is none.
std::string label_of(const std::string& link) {
    constexpr std::string_view before = "/memfd:";
    constexpr std::string_view after = " (deleted)";
    char text[320];
    const ssize_t length = readlink(link.c_str(), text, sizeof text);
    if (length <= 0 || length == static_cast<ssize_t>(sizeof text)) return {};
    const std::string_view target(text, static_cast<std::size_t>(length));
    if (!target.starts_with(before) || !target.ends_with(after)) return {};
    return std::string(target.substr(before.size(), target.size() - before.size() - after.size()));
}

// A process that may not be inspected, this one included, seems to be root's.
bool belongs_to_caller(long pid, const std::string& process) {
    struct stat facts;
    return pid == static_cast<long>(getpid()) ||
           (stat(process.c_str(), &facts) == 0 && facts.st_uid == geteuid());
}

}  // namespace

int make_nameless(const std::string& label) {
    int fd = memfd_create(label.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | never_executed);
    if (fd < 0 && errno == EINVAL) {
        fd = memfd_create(label.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
    }
    if (fd < 0) return fd;
    fchmod(fd, 0600);
    return move_above_standard_streams(fd);
}

void seal_size(int fd) noexcept {
    (void)fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
}

bool find_nameless(pid_t likely, const std::function<bool(const std::string&)>& wanted,
                   const std::function<bool(const NamelessPlace&)>& is_it) {
    const auto is_in = [&](long pid) {
        const std::string process = "/proc/" + std::to_string(pid);
        if (!belongs_to_caller(pid, process)) return false;
        const std::string folder = process + "/fd";
        for (const long number : numbers_in(folder)) {
            NamelessPlace place{{}, folder + "/" + std::to_string(number)};
            place.label = label_of(place.path);
            if (!place.label.empty() && wanted(place.label) && is_it(place)) return true;
        }
        return false;
    };
    if (likely > 0 && is_in(likely)) return true;
    const std::vector<long> processes = numbers_in("/proc");
    return std::any_of(processes.begin(), processes.end(),
                       [&](long pid) { return pid != likely && is_in(pid); });
}

bool is_nameless(int fd, const std::string& label, std::uint64_t id) {
    struct stat facts;
    std::uint64_t carried = 0;
    return fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode) && facts.st_uid == geteuid() &&
           label_of("/proc/self/fd/" + std::to_string(fd)) == label &&
           pread(fd, &carried, sizeof carried, nameless_id_offset) == sizeof carried &&
           carried == id && id != 0;
}

}  // namespace mpbuffer
