#include "os/process_stat.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "os/descriptor.hpp"

namespace mpbuffer {

namespace {

// As read(2), but for EINTR.
ssize_t read_retrying(const Descriptor& file, char* to, std::size_t bytes) {
    ssize_t got;
    do {
        got = ::read(file.number(), to, bytes);
    } while (got == -1 && errno == EINTR);
    return got;
}

// The beginnings of a file's lines, however long the lines are.
class Lines {
  public:
    explicit Lines(const char* path) : file_(open_retrying(path, O_RDONLY)) {}

    // The next line's first characters; nullptr at the end.
    const char* next() {
        std::size_t length = 0;
        for (;;) {
            if (at_ == got_ && !fill()) return nullptr;
            const char c = text_[at_++];
            if (c == '\n') break;
            if (length < sizeof line_ - 1) line_[length++] = c;
        }
        line_[length] = '\0';
        return line_;
    }
    // Whether the file was read to its end without an error.
    bool whole() const { return whole_; }

  private:
    bool fill() {
        const ssize_t got = read_retrying(file_, text_, sizeof text_);
        whole_ = got == 0;
        at_ = 0;
        got_ = got > 0 ? static_cast<std::size_t>(got) : 0;
        return got > 0;
    }

    const Descriptor file_;
    char text_[4096];
    std::size_t at_ = 0;
    std::size_t got_ = 0;
    char line_[160];
    bool whole_ = false;
};

bool is_zombie(char state) { return state == 'Z' || state == 'X' || state == 'x'; }

std::optional<ProcessStat> read_stat(const char* path) {
    const Descriptor file(open_retrying(path, O_RDONLY));
    if (file.number() < 0) return std::nullopt;
    char text[1024];
    std::size_t length = 0;
    while (length < sizeof text - 1) {
        const ssize_t got = read_retrying(file, text + length, sizeof text - 1 - length);
        if (got <= 0) break;
        length += static_cast<std::size_t>(got);
    }
    text[length] = '\0';

    // "pid (command) state ppid ...": the command may hold anything, parentheses included. The
    // state is field 3, the number of threads field 20, the start time field 22.
    const char* at = std::strrchr(text, ')');
    if (at == nullptr || at[1] != ' ' || at[2] == '\0') return std::nullopt;
    ProcessStat stat{at[2], 0, 0};
    at += 2;
    for (int field = 3; field < 22; ++field) {
        at = std::strchr(at, ' ');
        if (at == nullptr) return std::nullopt;
        ++at;
        if (field + 1 == 20) stat.threads = std::strtoull(at, nullptr, 10);
    }
    stat.start_time = std::strtoull(at, nullptr, 10);
    return stat;
}

std::uint64_t inode_of(const char* path) {
    struct stat facts;
    return ::stat(path, &facts) == 0 ? static_cast<std::uint64_t>(facts.st_ino) : 0;
}

// A thread of the process that has not ended; 0 if none is found.
long living_thread(pid_t pid) {
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%ld/task", static_cast<long>(pid));
    const Descriptor folder(open_retrying(path, O_RDONLY | O_DIRECTORY));
    alignas(dirent64) char entries[2048];
    ssize_t bytes;
    while ((bytes = getdents64(folder.number(), entries, sizeof entries)) > 0) {
        for (ssize_t at = 0; at < bytes;) {
            const auto* entry = reinterpret_cast<const dirent64*>(entries + at);
            at += entry->d_reclen;
            const long thread = std::strtol(entry->d_name, nullptr, 10);
            if (thread == 0) continue;
            std::snprintf(path, sizeof path, "/proc/%ld/task/%ld/stat", static_cast<long>(pid),
                          thread);
            const auto stat = read_stat(path);
            if (stat && !is_zombie(stat->state)) return thread;
        }
    }
    return 0;
}

}  // namespace

std::optional<ProcessStat> read_process_stat(pid_t pid) {
    char path[48] = "/proc/self/stat";
    if (pid != 0) std::snprintf(path, sizeof path, "/proc/%ld/stat", static_cast<long>(pid));
    return read_stat(path);
}

std::uint64_t own_pid_namespace() { return inode_of("/proc/self/ns/pid"); }

std::uint64_t own_time_namespace() { return inode_of("/proc/self/ns/time"); }

bool proc_is_of_own_namespace() {
    Lines lines("/proc/self/status");
    bool same_pid = false;
    while (const char* line = lines.next()) {
        char* rest = nullptr;
        if (std::strncmp(line, "Pid:", 4) == 0) {
            same_pid = std::strtol(line + 4, nullptr, 10) == getpid();
        } else if (std::strncmp(line, "NSpid:", 6) == 0) {
            // The pids from the namespace of the mount inwards: one, if that is the caller's own.
            return std::strtol(line + 6, &rest, 10) == getpid() && *rest == '\0';
        }
    }
    return same_pid;
}

bool has_ended(pid_t pid, std::uint64_t start_time) {
    if (kill(pid, 0) == -1 && errno == ESRCH) return true;
    if (!proc_is_of_own_namespace()) return false;
    const auto stat = read_process_stat(pid);
    if (!stat) return false;
    return stat->start_time != start_time || (is_zombie(stat->state) && stat->threads <= 1);
}

std::optional<MappedByte> mapped_byte(pid_t pid, std::uint64_t address) {
    char path[64] = "/proc/self/maps";
    if (pid != 0) {
        if (!proc_is_of_own_namespace()) return std::nullopt;
        // A first thread that has ended has no memory any more, though the process has.
        const auto stat = read_process_stat(pid);
        const long thread = stat && is_zombie(stat->state) ? living_thread(pid) : pid;
        if (thread == 0) return std::nullopt;
        std::snprintf(path, sizeof path, "/proc/%ld/task/%ld/maps", static_cast<long>(pid), thread);
    }
    Lines lines(path);
    bool any = false;
    // "start-end permissions offset major:minor inode path", in the order of the addresses.
    while (const char* line = lines.next()) {
        any = true;
        unsigned long long start;
        unsigned long long end;
        unsigned long long offset;
        unsigned major;
        unsigned minor;
        unsigned long long inode;
        if (std::sscanf(line, "%llx-%llx %*s %llx %x:%x %llu", &start, &end, &offset, &major,
                        &minor, &inode) != 6) {
            return std::nullopt;
        }
        if (start > address) return MappedByte{0, 0, 0};
        if (address < end) {
            if (inode == 0) return MappedByte{0, 0, 0};
            return MappedByte{std::uint64_t{major} << 32 | minor, inode,
                              offset + (address - start)};
        }
    }
    if (!any || !lines.whole()) return std::nullopt;
    return MappedByte{0, 0, 0};
}

}  // namespace mpbuffer
