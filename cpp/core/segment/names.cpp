#include "segment/names.hpp"

#include <dirent.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "format/header.hpp"

namespace mpbuffer {

std::string generate_name() {
    std::uint64_t random = 0;
    if (getrandom(&random, sizeof random, GRND_NONBLOCK) != sizeof random) {
        random = monotonic_ns() * 0x9e3779b97f4a7c15u >> 16;
    }
    char name[40];
    std::snprintf(
        name, sizeof name, "%ld-%012llx", static_cast<long>(getpid()),
        static_cast<unsigned long long>(std::max<std::uint64_t>(random & 0xffffffffffffu, 1)));
    return name;
}

std::uint64_t id_in(const std::string& name) {
    constexpr std::size_t digits = 12;
    if (name.size() < digits + 2 || name[name.size() - digits - 1] != '-') return 0;
    std::uint64_t id = 0;
    for (const char digit : name.substr(name.size() - digits)) {
        const bool is_letter = digit >= 'a' && digit <= 'f';
        if (!is_letter && (digit < '0' || digit > '9')) return 0;
        id = id * 16 + static_cast<std::uint64_t>(is_letter ? digit - 'a' + 10 : digit - '0');
    }
    return id;
}

void require_valid_name(const std::string& name) {
    const auto allowed = [](char c) {
        return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
               c == '.' || c == '_' || c == '-';
    };
    if (!name.empty() && name.size() <= 128 && !is_temporary(name) &&
        std::all_of(name.begin(), name.end(), allowed)) {
        return;
    }
    throw InvalidArgument("cannot use '" + name + "' as a buffer's name: got " +
                          std::to_string(name.size()) +
                          " characters, expected 1 to 128 of A-Z a-z 0-9 . _ -, not beginning "
                          "with .tmp-");
}

bool is_temporary(const std::string& name) { return name.starts_with(temporary_prefix); }

std::string file_prefix() { return "mpbuffer-" + std::to_string(geteuid()) + "-"; }

std::string label_of_segment(const std::string& name) { return file_prefix() + name; }

std::string segment_path(const std::string& name, const std::string& directory) {
    return directory + "/" + label_of_segment(name);
}

std::vector<std::string> names_in(const std::string& directory) {
    std::vector<std::string> names;
    DIR* const entries = opendir(directory.c_str());
    if (entries == nullptr) return names;
    const std::string prefix = file_prefix();
    while (const dirent* entry = readdir(entries)) {  // NOLINT(concurrency-mt-unsafe)
        const std::string file = entry->d_name;
        if (file.size() > prefix.size() && file.rfind(prefix, 0) == 0) {
            names.push_back(file.substr(prefix.size()));
        }
    }
    closedir(entries);
    std::sort(names.begin(), names.end());
    return names;
}

std::string why_not_found(const std::string& name) {
    if (id_in(name) == 0) {
        return "; expected a buffer that some process has open (where systemd's RemoveIPC=yes "
               "holds, the end of its user's session removes it)";
    }
    return ", and no process that can be looked at has memory of that name open; a buffer that "
           "another user's, a non-dumpable or another pid namespace's process is to find needs a "
           "name=, and one that any other process is to find must not have shared=False";
}

void throw_not_opened(const std::string& verb, const std::string& path, int code,
                      const std::string& hint) {
    switch (code) {
        case ENOENT:
        case ENOTDIR: throw SegmentNotFound(verb + ": there is no " + path + hint);
        case ELOOP:
            throw SegmentMismatch(verb + ": " + path +
                                  " is a symbolic link, expected a regular file");
        case EISDIR:
        case ENXIO:
        case ENODEV: throw SegmentMismatch(verb + ": " + path + " is not a regular file");
        default: throw_system_failure(verb + ": " + path, code);
    }
}

struct stat require_own_file(int fd, const std::string& path, const std::string& verb) {
    struct stat facts;
    if (fstat(fd, &facts) == -1) throw_system_failure(verb + ": " + path, errno);
    if (!S_ISREG(facts.st_mode)) {
        throw SegmentMismatch(verb + ": " + path + " is not a regular file");
    }
    if (facts.st_uid != geteuid()) {
        throw SegmentMismatch(verb + ": " + path + " belongs to user " +
                              std::to_string(facts.st_uid) + ", expected " +
                              std::to_string(geteuid()));
    }
    return facts;
}

std::size_t require_segment_file(int fd, const std::string& path, const std::string& verb) {
    const struct stat facts = require_own_file(fd, path, verb);
    if ((facts.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
        throw SegmentMismatch(verb + ": " + path + " has mode " + mode_in_words(facts.st_mode) +
                              ", expected 0600");
    }
    if (facts.st_size < static_cast<off_t>(sizeof segment_magic)) {
        throw SegmentMismatch(verb + ": " + path + " has " + std::to_string(facts.st_size) +
                              " bytes, expected a whole segment");
    }
    return static_cast<std::size_t>(facts.st_size);
}

std::string mode_in_words(mode_t mode) {
    char text[8];
    std::snprintf(text, sizeof text, "%04o", static_cast<unsigned>(mode & 07777));
    return text;
}

}  // namespace mpbuffer
