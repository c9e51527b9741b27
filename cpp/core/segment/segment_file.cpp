#include "segment/segment_file.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <optional>
#include <set>
#include <utility>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/guard.hpp"
#include "base/stop_points.hpp"
#include "os/descriptor.hpp"
#include "os/file_locks.hpp"
#include "os/nameless_memory.hpp"

namespace mpbuffer {

namespace {

constexpr char temporary_prefix[] = ".tmp-";
constexpr std::size_t largest_piece = std::size_t{64} << 20;
constexpr std::size_t smallest_piece = std::size_t{256} << 10;
// So many may make segments from the same room, and none asks too late whether any is left.
constexpr std::size_t creators_at_once = 16;
constexpr int patience_in_milliseconds = 100;  // with whoever is removing a file

// A lock for a moment. Released by hand, because a child forked meanwhile shares the description,
// and with it the lock, until it gets to close its copy.
class PassingLock {
  public:
    PassingLock(int fd, std::uint64_t byte, LockKind kind)
        : fd_(fd), byte_(byte), held_(try_lock(fd, byte, kind)) {}
    PassingLock(const PassingLock&) = delete;
    PassingLock& operator=(const PassingLock&) = delete;
    ~PassingLock() {
        if (!held_) return;
        try {
            unlock(fd_, byte_);
        } catch (const Error&) {  // then the close that follows has to do
        }
    }
    bool held() const { return held_; }
    void keep() { held_ = false; }

  private:
    int fd_;
    std::uint64_t byte_;
    bool held_;
};

std::string file_prefix() { return "mpbuffer-" + std::to_string(geteuid()) + "-"; }

std::string label_of(const std::string& name) { return file_prefix() + name; }

std::string path_of(const std::string& directory, const std::string& name) {
    return directory + "/" + label_of(name);
}

bool is_temporary(const std::string& name) { return name.rfind(temporary_prefix, 0) == 0; }

// Which directory's room there has to be, as memory_room.hpp has it.
std::string bounded_by(const SegmentOptions& options) {
    return options.nameless ? "" : options.directory;
}

// The number at the end of a generated name; 0 if it is no such name.
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

std::string absolute(const std::string& directory) {
    std::error_code ignored;
    const std::string path = std::filesystem::absolute(directory, ignored).string();
    return path.empty() ? directory : path;
}

void sleep_a_millisecond() {
    const timespec pause = {0, 1'000'000};
    nanosleep(&pause, nullptr);
}

bool resolves_to(const std::string& path, int fd) {
    struct stat named;
    struct stat opened;
    return lstat(path.c_str(), &named) == 0 && fstat(fd, &opened) == 0 &&
           named.st_dev == opened.st_dev && named.st_ino == opened.st_ino;
}

// Empty, or beginning with the magic; under a temporary name also still zero.
bool looks_like_segment(int fd, bool temporary) {
    char start[sizeof segment_magic];
    const ssize_t got = pread(fd, start, sizeof start, 0);
    if (got == 0) return true;
    if (got != static_cast<ssize_t>(sizeof start)) return false;
    if (std::memcmp(start, segment_magic, sizeof start) == 0) return true;
    return temporary && std::all_of(start, start + sizeof start, [](char c) { return c == 0; });
}

enum class Removal { absent, removed, in_use, being_removed, not_ours };

enum class Remove { nothing, what_is_dead, whatever_is_ours };

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

// Makes the way free for a segment of that name, or throws SegmentExists.
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

// What can be told before anything is made. With `overwrite` publish() takes the name away.
void require_possible_name(const std::string& path, const std::string& name, bool overwrite) {
    if (overwrite && remove_if_dead(path, false, Remove::nothing) == Removal::in_use) return;
    require_free_name(path, name, overwrite ? Remove::nothing : Remove::what_is_dead);
}

// Every name in the directory that begins with this user's prefix, without the prefix.
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

// Some kernels and sandboxes make a file without a name but refuse to give it one later; found
// out with an empty file, as giving a name works only once. Under a ForkPause.
int open_tmpfile(const std::string& directory) {
    const int flags = O_TMPFILE | O_RDWR;
    const PassingDescriptor trial([&] { return open_to_keep(directory.c_str(), flags, 0600); });
    if (trial.number() < 0) return -1;
    const std::string path = path_of(directory, temporary_prefix + generate_name());
    const std::string link = "/proc/self/fd/" + std::to_string(trial.number());
    if (linkat(AT_FDCWD, link.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) == -1) return -1;
    unlink(path.c_str());
    return open_to_keep(directory.c_str(), flags, 0600);
}

// Begins with the process whose pid the name has: its creator.
template <class IsIt>
bool find_by_name(const std::string& name, IsIt&& is_it) {
    const std::string label = label_of(name);
    const auto creator = static_cast<pid_t>(std::strtol(name.c_str(), nullptr, 10));
    return find_nameless(
        creator, [&](const std::string& each) { return each == label; }, std::forward<IsIt>(is_it));
}

bool is_published(const NamelessPlace& place, std::uint64_t id) {
    const PassingDescriptor file(
        [&] { return open_to_keep(place.path.c_str(), O_RDONLY | O_NONBLOCK); });
    return file.number() >= 0 && is_nameless(file.number(), place.label, id);
}

// Why there may be no file of that name, and what to do.
std::string why_not_found(const std::string& name) {
    if (id_in(name) == 0) {
        return "; expected a buffer that some process has open (where systemd's RemoveIPC=yes "
               "holds, the end of its user's session removes it)";
    }
    return ", and no process that can be looked at has memory of that name open; a buffer that "
           "another user's, a non-dumpable or another pid namespace's process is to find needs a "
           "name=";
}

// The shared presence lock; patient with a sweep or a last one out that is just looking.
bool take_presence(int fd) {
    for (int attempt = 0; attempt < patience_in_milliseconds; ++attempt) {
        if (try_lock(fd, lock_byte::presence, LockKind::shared)) return true;
        sleep_a_millisecond();
    }
    return false;
}

[[noreturn]] void throw_creation_failure(const std::string& verb, const std::string& directory,
                                         int code) {
    const std::string cause = verb + ": no file could be made in " + directory;
    if (code == ENOSPC || code == EDQUOT || code == ENOMEM) {
        throw NotEnoughMemory(cause + ": " + errno_sentence(code));
    }
    throw_system_failure(cause, code);
}

// "create 'apex'" of "cannot create 'apex'".
std::string what_of(const std::string& verb) { return verb.substr(verb.find(' ') + 1); }

[[noreturn]] void throw_no_room(std::size_t bytes, std::size_t done, const std::string& verb,
                                const SegmentOptions& options, int code) {
    require_room(bytes - done, what_of(verb), bounded_by(options), options.memory_roots);
    throw NotEnoughMemory(verb + ": needs " + readable_bytes(bytes) + ", only " +
                          readable_bytes(done) + " could be allocated" +
                          (options.nameless ? "" : " in " + options.directory) + ": " +
                          errno_sentence(code));
}

// Allocates every page, as long as there is room, in pieces between which the user may interrupt.
// The kernel undoes a piece when a signal comes, so under a fast timer a piece must shrink to get
// through at all.
void allocate(int fd, std::size_t bytes, const std::string& verb, const RoomLeft& room_left,
              const SegmentOptions& options) {
    std::size_t piece = largest_piece;
    std::size_t done = 0;
    unsigned interruptions = 0;
    while (done < bytes) {
        if (options.progress) call_back([&] { options.progress(done); });
        if (room_left(bytes - done) == 0) return;
        const std::size_t wanted = std::min(piece, bytes - done);
        if (fallocate(fd, 0, static_cast<off_t>(done), static_cast<off_t>(wanted)) == 0) {
            done += wanted;
            interruptions = 0;
            continue;
        }
        const int code = errno;
        if (code == EINTR && ++interruptions < 1000) {
            piece = std::max(piece / 2, smallest_piece);
            continue;
        }
        if (code == ENOSPC || code == ENOMEM || code == EDQUOT || code == EFBIG) {
            throw_no_room(bytes, done, verb, options, code);
        }
        throw_system_failure(verb + ": " + readable_bytes(bytes) + " cannot be allocated", code);
    }
}

// The file's size, if it is one that may be mapped.
std::size_t require_segment_file(int fd, const std::string& path, const std::string& verb) {
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
    if ((facts.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
        char mode[8];
        std::snprintf(mode, sizeof mode, "%04o", static_cast<unsigned>(facts.st_mode & 07777));
        throw SegmentMismatch(verb + ": " + path + " has mode " + mode + ", expected 0600");
    }
    if (facts.st_size < static_cast<off_t>(sizeof segment_magic)) {
        throw SegmentMismatch(verb + ": " + path + " has " + std::to_string(facts.st_size) +
                              " bytes, expected a whole segment");
    }
    return static_cast<std::size_t>(facts.st_size);
}

}  // namespace

SharedSegment::SharedSegment(SharedSegment&& other) noexcept { *this = std::move(other); }

SharedSegment& SharedSegment::operator=(SharedSegment&& other) noexcept {
    if (this == &other) return *this;
    close();
    const ForkPause pause;
    if (other.is_watched()) watch();
    other.unwatch();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    data_fd_ = std::move(other.data_fd_);
    published_ = std::exchange(other.published_, false);
    nameless_ = other.nameless_;
    overwrites_ = other.overwrites_;
    name_ = std::move(other.name_);
    directory_ = std::move(other.directory_);
    path_ = std::move(other.path_);
    return *this;
}

SharedSegment::~SharedSegment() { close(); }

void SharedSegment::take(PassingDescriptor& file) {
    const ForkPause pause;
    data_fd_ = OwnedDescriptor(file.release(pause));
    watch();
}

void SharedSegment::let_go() noexcept {
    if (data_ != nullptr) munmap(data_, size_);
    data_fd_.close();
    data_ = nullptr;
    size_ = 0;
}

void SharedSegment::after_fork_in_child() noexcept {
    let_go();
    unwatch_in_child();
}

SharedSegment SharedSegment::create(const std::string& name, std::size_t bytes,
                                    const SegmentOptions& options) {
    require_valid_name(name);
    const std::string verb = "cannot create '" + name + "'";
    const std::size_t least =
        options.nameless ? nameless_id_offset + sizeof(std::uint64_t) : sizeof segment_magic;
    if (bytes < least) {
        throw InvalidArgument(verb + ": got a size of " + std::to_string(bytes) +
                              " bytes, expected at least " + std::to_string(least));
    }
    if (options.nameless && (options.overwrite || id_in(name) == 0)) {
        throw InvalidArgument(verb + " without a name: expected a generated name, to find it by");
    }
    SharedSegment segment;
    segment.name_ = name;
    segment.directory_ = absolute(options.directory);
    segment.nameless_ = options.nameless;
    segment.overwrites_ = options.overwrite;
    sweep(segment.directory_);
    if (options.nameless) {
        require_room(bytes, what_of(verb), bounded_by(options), options.memory_roots);
        segment.open_nameless_memory(verb);
    } else {
        require_possible_name(path_of(segment.directory_, name), name, options.overwrite);
        require_room(bytes, what_of(verb), bounded_by(options), options.memory_roots);
        segment.open_file(verb, options);
    }
    // A child that progress has forked goes on in here, and has nothing to go on with.
    SegmentOptions in_this_process = options;
    if (options.progress) {
        in_this_process.progress = [&, maker = fork_generation()](std::size_t done) {
            options.progress(done);
            if (fork_generation() == maker) return;
            throw BufferClosed(verb +
                               ": this process was forked in the middle of it, and its parent has "
                               "the segment; create or attach in the child after the fork");
        };
    }
    segment.make_pages(bytes, verb, in_this_process);
    if (options.nameless) seal_size(segment.data_fd_.number());
    stop_point(StopPoint::segment_allocated);
    return segment;
}

void SharedSegment::open_nameless_memory(const std::string& verb) {
    PassingDescriptor file([this] { return make_nameless(label_of(name_)); });
    if (file.number() < 0) {
        throw_system_failure(verb + " without a name: memfd_create is refused; give it a name=",
                             errno);
    }
    const int fd = file.number();
    take(file);
    stop_point(StopPoint::segment_made);
    require_ofd_locks(fd);
    take_presence(fd);  // nobody else has it
    stop_point(StopPoint::segment_present);
}

void SharedSegment::open_file(const std::string& verb, const SegmentOptions& options) {
    if (!options.force_named_creation) {
        PassingDescriptor file([this] { return open_tmpfile(directory_); });
        if (const int fd = file.number(); fd >= 0) {
            take(file);
            stop_point(StopPoint::segment_made);
            fchmod(fd, 0600);  // whatever the umask took away
            require_ofd_locks(fd);
            take_presence(fd);  // nobody else can have this file
            stop_point(StopPoint::segment_present);
        }
    }
    // A sweep may find the temporary name before the lock is on it; then another is made.
    for (int attempt = 0; !is_open(); ++attempt) {
        const std::string path = path_of(directory_, temporary_prefix + generate_name());
        const int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW;
        PassingDescriptor file([&] { return open_to_keep(path.c_str(), flags, 0600); });
        if (file.number() < 0) throw_creation_failure(verb, options.directory, errno);
        stop_point(StopPoint::segment_made);
        fchmod(file.number(), 0600);
        bool present = false;
        try {
            present = take_presence(file.number());  // at once, before a sweep comes
        } catch (const SystemFailure&) {             // the question below tells why
        }
        try {
            require_ofd_locks(file.number());
        } catch (const Error&) {
            unlink(path.c_str());
            throw;
        }
        struct stat facts;
        if (present && fstat(file.number(), &facts) == 0 && facts.st_nlink > 0) {
            take(file);
            path_ = path;
            stop_point(StopPoint::segment_present);
        } else if (attempt == 100) {
            throw_creation_failure(verb, options.directory, EBUSY);
        }
    }
}

void SharedSegment::publish() {
    const std::string verb = "cannot publish '" + name_ + "'";
    if (!is_open()) throw BufferClosed(verb + ": the segment is closed");
    if (published_) throw InvalidArgument(verb + ": it is published already");
    if (std::memcmp(data_, segment_magic, sizeof segment_magic) != 0) {
        throw InvalidArgument(verb + ": its first bytes are not the magic that every segment has");
    }
    if (nameless_) {
        // Release: whoever reads the id reads, in the same file, what was written before it.
        std::atomic_ref(*reinterpret_cast<std::uint64_t*>(data_ + nameless_id_offset))
            .store(id_in(name_), std::memory_order_release);
        stop_point(StopPoint::segment_linked);
        published_ = true;
        return;
    }
    const std::string path = path_of(directory_, name_);
    const std::string link = "/proc/self/fd/" + std::to_string(data_fd_.require(verb));
    for (int attempt = 0; attempt < patience_in_milliseconds; ++attempt) {
        int result;
        if (path_.empty()) {
            result = linkat(AT_FDCWD, link.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW);
        } else {
            result = renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE);
            if (result == -1 && (errno == EINVAL || errno == ENOSYS)) {
                result = ::link(path_.c_str(), path.c_str());
                if (result == 0) unlink(path_.c_str());
            }
        }
        if (result == 0) {
            stop_point(StopPoint::segment_linked);
            path_ = path;
            published_ = true;
            return;
        }
        if (errno != EEXIST) throw_creation_failure(verb, directory_, errno);
        require_free_name(path, name_,
                          overwrites_ ? Remove::whatever_is_ours : Remove::what_is_dead);
    }
    throw SegmentExists(verb + ": " + path + " was taken again each time it became free");
}

SharedSegment SharedSegment::attach(const std::string& name, const SegmentOptions& options) {
    require_valid_name(name);
    SharedSegment segment;
    segment.name_ = name;
    segment.directory_ = absolute(options.directory);
    segment.path_ = path_of(segment.directory_, name);
    const std::string& path = segment.path_;
    const std::string verb = "cannot attach '" + name + "'";
    for (int attempt = 0; attempt < patience_in_milliseconds; ++attempt) {
        PassingDescriptor file(
            [&] { return open_to_keep(path.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK); });
        if (file.number() < 0) {
            switch (errno) {
                case ENOENT:
                case ENOTDIR:
                    if (segment.attach_nameless(verb)) return segment;
                    throw SegmentNotFound(verb + ": there is no " + path + why_not_found(name));
                case ELOOP:
                    throw SegmentMismatch(verb + ": " + path +
                                          " is a symbolic link, expected a regular file");
                case EISDIR:
                case ENXIO:
                case ENODEV: throw SegmentMismatch(verb + ": " + path + " is not a regular file");
                default: throw_system_failure(verb + ": " + path, errno);
            }
        }
        stop_point(StopPoint::attach_opened);
        const std::size_t bytes = require_segment_file(file.number(), path, verb);
        PassingLock presence(file.number(), lock_byte::presence, LockKind::shared);
        struct stat facts;
        if (presence.held() && fstat(file.number(), &facts) == 0 && facts.st_nlink > 0) {
            segment.published_ = true;
            presence.keep();
            stop_point(StopPoint::attach_present);
            segment.take(file);
            segment.map(bytes, verb);
            return segment;
        }
        sleep_a_millisecond();  // its last user is removing it; a new one may take the name
    }
    throw SegmentNotFound(verb + ": " + path +
                          " is being removed; expected a buffer that some process has open");
}

// False if no process of this user has it open where the caller may look.
bool SharedSegment::attach_nameless(const std::string& verb) {
    const std::uint64_t id = id_in(name_);
    if (id == 0) return false;
    return find_by_name(name_, [&](const NamelessPlace& place) {
        PassingDescriptor file(
            [&] { return open_to_keep(place.path.c_str(), O_RDWR | O_NONBLOCK); });
        if (file.number() < 0 || !is_nameless(file.number(), place.label, id)) return false;
        const std::size_t bytes = require_segment_file(file.number(), place.path, verb);
        if (!take_presence(file.number())) return false;
        path_.clear();
        published_ = true;
        take(file);
        map(bytes, verb);
        return true;
    });
}

SharedSegment SharedSegment::attach_descriptor(int fd, const std::string& name,
                                               const SegmentOptions& options) {
    require_valid_name(name);
    const std::string verb = "cannot attach '" + name + "'";
    SharedSegment segment;
    segment.name_ = name;
    segment.directory_ = absolute(options.directory);
    segment.path_ = path_of(segment.directory_, name);
    PassingDescriptor file([&] { return mpbuffer::open_lock_descriptor(fd); });
    const std::size_t bytes =
        require_segment_file(file.number(), "descriptor " + std::to_string(fd), verb);
    if (!take_presence(file.number())) {
        throw SegmentNotFound(verb + ": the file of descriptor " + std::to_string(fd) +
                              " is being removed; expected a buffer that some process has open");
    }
    segment.published_ = true;
    segment.take(file);
    segment.map(bytes, verb);
    return segment;
}

void SharedSegment::make_pages(std::size_t bytes, const std::string& verb,
                               const SegmentOptions& options) {
    const int fd = data_fd_.number();
    if (ftruncate(fd, static_cast<off_t>(bytes)) == -1) {
        if (errno == EFBIG || errno == ENOSPC) throw_no_room(bytes, 0, verb, options, errno);
        throw_creation_failure(verb, options.directory, errno);
    }
    map(bytes, verb);
    prefer_huge_pages(data_, bytes);
    if (options.interleave_nodes) interleave_nodes(data_, bytes, verb);
    std::atomic<std::size_t> lacking{0};
    const RoomLeft room_left = [&](std::size_t missing) noexcept -> std::size_t {
        try {
            const auto spare = spare_room(missing, bounded_by(options), options.memory_roots);
            if (spare) return std::max<std::size_t>(*spare / creators_at_once, 1);
            lacking = missing;
            return 0;
        } catch (const std::exception&) {  // the kernel tells
            return missing;
        }
    };
    std::size_t supplied = 0;
    const Supply outcome = supply_pages(data_, bytes, options.progress, room_left, supplied);
    if (outcome == Supply::unsupported) allocate(fd, bytes, verb, room_left, options);
    if (lacking != 0) {
        require_room(lacking, what_of(verb), bounded_by(options), options.memory_roots);
        throw NotEnoughMemory(
            verb + ": needs " + readable_bytes(bytes) +
            ", and there was no room in memory, or in this cgroup, for the last " +
            readable_bytes(lacking) +
            " of them for a moment: others are allocating, too; try it again");
    }
    if (outcome == Supply::no_room) throw_no_room(bytes, supplied, verb, options, ENOSPC);
}

void SharedSegment::map(std::size_t bytes, const std::string& verb) {
    const ForkPause pause;
    void* const memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, data_fd_.number(), 0);
    if (memory == MAP_FAILED) {
        const int code = errno;
        const std::string cause = verb + ": " + readable_bytes(bytes) + " cannot be mapped";
        if (code == ENOMEM) throw NotEnoughMemory(cause + ": " + errno_sentence(code));
        throw_system_failure(cause, code);
    }
    data_ = static_cast<std::byte*>(memory);
    size_ = bytes;
}

int SharedSegment::data_descriptor() const {
    return data_fd_.require("cannot hand '" + name_ + "' on");
}

// Through the name where the program closed the descriptor.
int SharedSegment::fresh_description() const {
    if (!data_fd_.ours() && !path_.empty()) {
        const int flags = O_RDWR | O_NOFOLLOW | O_NONBLOCK;
        const ForkPause pause;
        PassingDescriptor file([&] { return open_to_keep(path_.c_str(), flags); });
        if (file.number() >= 0 && data_fd_.same_file(file.number())) return file.release(pause);
    }
    return mpbuffer::open_lock_descriptor(
        data_fd_.require("cannot open a descriptor for the locks of '" + name_ + "'"));
}

OwnedDescriptor SharedSegment::open_lock_descriptor() const {
    if (!is_open()) {
        throw BufferClosed("cannot open a descriptor for locks: '" + name_ + "' is closed");
    }
    return OwnedDescriptor(fresh_description());
}

void SharedSegment::close(int lock_fd) noexcept {
    if (!is_open()) return;
    std::optional<PassingDescriptor> own;
    if (lock_fd < 0) {
        try {
            own.emplace([this] { return fresh_description(); });
            lock_fd = own->number();
        } catch (const std::exception&) {  // the next sweep removes what we cannot
        }
    }
    {
        const ForkPause pause;
        let_go();
        unwatch();
    }
    stop_point(StopPoint::segment_unmapped);
    if (lock_fd >= 0 && !path_.empty()) {
        try {
            const PassingLock nobody_left(lock_fd, lock_byte::presence, LockKind::exclusive);
            if (nobody_left.held() && resolves_to(path_, lock_fd) &&
                looks_like_segment(lock_fd, !published_)) {
                stop_point(StopPoint::last_one_out);
                unlink(path_.c_str());
                stop_point(StopPoint::last_unlinked);
            }
        } catch (const std::exception&) {
        }
    }
}

std::vector<std::string> SharedSegment::sweep(const std::string& directory, bool look_only) {
    std::vector<std::string> removed;
    for (const std::string& name : names_in(directory)) {
        try {
            const std::string path = path_of(directory, name);
            const Remove what = look_only ? Remove::nothing : Remove::what_is_dead;
            if (remove_if_dead(path, is_temporary(name), what) == Removal::removed) {
                removed.push_back(name);
            }
        } catch (const Error&) {  // a file that cannot be asked is left alone
        }
    }
    return removed;
}

std::vector<std::string> SharedSegment::list(const std::string& directory) {
    std::vector<std::string> names = names_in(directory);
    const auto hidden = [&](const std::string& name) {
        struct stat facts;
        return is_temporary(name) || lstat(path_of(directory, name).c_str(), &facts) == -1 ||
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

std::string nameless_path(const std::string& name) {
    std::string path;
    find_by_name(name, [&](const NamelessPlace& place) {
        if (!is_published(place, id_in(name))) return false;
        path = place.path;
        return true;
    });
    return path;
}

std::string segment_path(const std::string& name, const std::string& directory) {
    return path_of(directory, name);
}

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

}  // namespace mpbuffer
