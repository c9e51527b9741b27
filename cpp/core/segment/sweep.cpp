#include "segment/sweep.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <set>

#include "base/error.hpp"
#include "format/header.hpp"
#include "os/descriptor.hpp"
#include "segment/names.hpp"

namespace mpbuffer {

namespace {

enum class Removal { absent, removed, in_use, being_removed, not_ours };

Removal remove_if_dead(const std::string& path, bool temporary,
                       Remove what = Remove::what_is_dead) {
    struct stat facts;
    if (lstat(path.c_str(), &facts) == -1) {
        if (errno == EACCES) throw_system_failure("cannot look at " + path, errno);
        return errno == ENOENT ? Removal::absent : Removal::not_ours;
    }
    if (!S_ISREG(facts.st_mode) || facts.st_uid != geteuid()) return Removal::not_ours;
    const PassingDescriptor file(
        [&] { return open_to_keep(path.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK); });
    if (file.number() < 0) return errno == ENOENT ? Removal::absent : Removal::not_ours;
    if (fstat(file.number(), &facts) == -1 || !S_ISREG(facts.st_mode) ||
        facts.st_uid != geteuid()) {
        return Removal::not_ours;
    }
    const PassingLock nobody_left(file.number(), lock_byte::presence, LockKind::exclusive);
    if (!nobody_left.held() && what != Remove::whatever_is_ours) {
        // One question: whoever held the lock a moment ago may have removed the file since.
        return held_shared_elsewhere(file.number(), lock_byte::presence) &&
                       resolves_to(path, file.number())
                   ? Removal::in_use
                   : Removal::being_removed;
    }
    if (!resolves_to(path, file.number())) return Removal::being_removed;
    if (!looks_like_segment(file.number(), temporary)) return Removal::not_ours;
    if (what != Remove::nothing && unlink(path.c_str()) == -1 && errno != ENOENT) {
        return Removal::not_ours;
    }
    return Removal::removed;
}

bool is_published(const NamelessPlace& place, std::uint64_t id) {
    const PassingDescriptor file(
        [&] { return open_to_keep(place.path.c_str(), O_RDONLY | O_NONBLOCK); });
    return file.number() >= 0 && is_nameless(file.number(), place.label, id);
}

}  // namespace

void sleep_a_millisecond() {
    const timespec pause = {0, 1'000'000};
    nanosleep(&pause, nullptr);
}

PassingLock::~PassingLock() {
    if (!held_) return;
    try {
        unlock(fd_, byte_);
    } catch (const Error&) {  // then the close that follows has to do
    }
}

bool take_presence(int fd) {
    for (int attempt = 0; attempt < patience_in_milliseconds; ++attempt) {
        if (try_lock(fd, lock_byte::presence, LockKind::shared)) return true;
        sleep_a_millisecond();
    }
    return false;
}

bool resolves_to(const std::string& path, int fd) {
    struct stat named;
    struct stat opened;
    return lstat(path.c_str(), &named) == 0 && fstat(fd, &opened) == 0 &&
           named.st_dev == opened.st_dev && named.st_ino == opened.st_ino;
}

bool looks_like_segment(int fd, bool temporary) {
    char start[sizeof segment_magic];
    const ssize_t got = pread(fd, start, sizeof start, 0);
    if (got == 0) return true;
    if (got != static_cast<ssize_t>(sizeof start)) return false;
    if (std::memcmp(start, segment_magic, sizeof start) == 0) return true;
    return temporary && std::all_of(start, start + sizeof start, [](char c) { return c == 0; });
}

void require_free_name(const std::string& path, const std::string& name, Remove what) {
    const std::string taken = "cannot create '" + name + "': " + path + " ";
    for (int attempt = 0; attempt < patience_in_milliseconds; ++attempt) {
        switch (remove_if_dead(path, false, what)) {
            case Removal::absent:
            case Removal::removed: return;
            case Removal::in_use:
                throw SegmentExists(taken +
                                    "is in use by a living process; expected a free name, or "
                                    "attach to it, or pass overwrite=True to take the name");
            case Removal::not_ours:
                throw SegmentExists(taken +
                                    "exists and is no mpbuffer segment of this user; expected a "
                                    "free name");
            case Removal::being_removed: sleep_a_millisecond();
        }
    }
    throw SegmentExists(taken +
                        "is being removed by another process and still there; expected a "
                        "free name");
}

void require_possible_name(const std::string& path, const std::string& name, bool overwrite) {
    if (overwrite && remove_if_dead(path, false, Remove::nothing) == Removal::in_use) return;
    require_free_name(path, name, overwrite ? Remove::nothing : Remove::what_is_dead);
}

std::vector<std::string> sweep_segments(const std::string& directory, bool look_only) {
    std::vector<std::string> removed;
    for (const std::string& name : names_in(directory)) {
        try {
            const std::string path = segment_path(name, directory);
            const Remove what = look_only ? Remove::nothing : Remove::what_is_dead;
            if (remove_if_dead(path, is_temporary(name), what) == Removal::removed) {
                removed.push_back(name);
            }
        } catch (const Error&) {  // a file that cannot be asked is left alone
        }
    }
    return removed;
}

std::vector<std::string> list_segments(const std::string& directory) {
    std::vector<std::string> names = names_in(directory);
    const auto hidden = [&](const std::string& name) {
        struct stat facts;
        return is_temporary(name) || lstat(segment_path(name, directory).c_str(), &facts) == -1 ||
               !S_ISREG(facts.st_mode) || facts.st_uid != geteuid();
    };
    names.erase(std::remove_if(names.begin(), names.end(), hidden), names.end());
    const std::string prefix = file_prefix();
    const auto ours = [&](const std::string& label) { return label.starts_with(prefix); };
    std::set<std::string> nameless;
    find_nameless(0, ours, [&](const NamelessPlace& place) {
        const std::string name = place.label.substr(prefix.size());
        if (!nameless.contains(name) && is_published(place, id_in(name))) nameless.insert(name);
        return false;
    });
    names.insert(names.end(), nameless.begin(), nameless.end());
    std::sort(names.begin(), names.end());
    return names;
}

bool find_by_name(const std::string& name, const std::function<bool(const NamelessPlace&)>& is_it) {
    const std::string label = label_of_segment(name);
    const auto creator = static_cast<pid_t>(std::strtol(name.c_str(), nullptr, 10));
    return find_nameless(creator, [&](const std::string& each) { return each == label; }, is_it);
}

std::string nameless_path(const std::string& name) {
    std::string path;
    find_by_name(name, [&](const NamelessPlace& place) {
        if (!is_published(place, id_in(name))) return false;
        path = place.path;
        return true;
    });
    return path;
}

}  // namespace mpbuffer
