#include "segment/segment_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>

#include "base/error.hpp"
#include "base/stop_points.hpp"
#include "format/header.hpp"
#include "os/descriptor.hpp"
#include "os/file_locks.hpp"
#include "os/nameless_memory.hpp"
#include "segment/allocation.hpp"
#include "segment/names.hpp"
#include "segment/sweep.hpp"

namespace mpbuffer {

namespace {

std::string absolute(const std::string& directory) {
    std::error_code ignored;
    const std::string path = std::filesystem::absolute(directory, ignored).string();
    return path.empty() ? directory : path;
}

// Some kernels and sandboxes make a file without a name but refuse to give it one later; found
// out with an empty file, as giving a name works only once. Under a ForkPause.
int open_tmpfile(const std::string& directory) {
    const int flags = O_TMPFILE | O_RDWR;
    const PassingDescriptor trial([&] { return open_to_keep(directory.c_str(), flags, 0600); });
    if (trial.number() < 0) return -1;
    const std::string path = segment_path(temporary_prefix + generate_name(), directory);
    const std::string link = "/proc/self/fd/" + std::to_string(trial.number());
    if (linkat(AT_FDCWD, link.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) == -1) return -1;
    unlink(path.c_str());
    return open_to_keep(directory.c_str(), flags, 0600);
}

[[noreturn]] void throw_creation_failure(const std::string& verb, const std::string& directory,
                                         int code) {
    const std::string cause = verb + ": no file could be made in " + directory;
    if (code == ENOSPC || code == EDQUOT || code == ENOMEM) {
        throw NotEnoughMemory(cause + ": " + errno_sentence(code));
    }
    throw_system_failure(cause, code);
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
    if (!options.without_file) sweep_segments(segment.directory_);
    if (!options.nameless) {
        require_possible_name(segment_path(name, segment.directory_), name, options.overwrite);
    }
    require_room_for(bytes, verb, options);
    if (!options.nameless) segment.open_file(verb, options);
    if (options.nameless && !options.without_file) segment.open_nameless_memory(verb);
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
    if (options.nameless && segment.has_file()) seal_size(segment.data_fd_.number());
    stop_point(StopPoint::segment_allocated);
    return segment;
}

void SharedSegment::open_nameless_memory(const std::string& verb) {
    PassingDescriptor file([this] { return make_nameless(label_of_segment(name_)); });
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
        const std::string path = segment_path(temporary_prefix + generate_name(), directory_);
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

void SharedSegment::make_visible() {
    const std::string verb = "cannot create '" + name_ + "'";
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
    const std::string path = segment_path(name_, directory_);
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
    segment.path_ = segment_path(name, segment.directory_);
    const std::string& path = segment.path_;
    const std::string verb = "cannot attach '" + name + "'";
    for (int attempt = 0; attempt < patience_in_milliseconds; ++attempt) {
        PassingDescriptor file(
            [&] { return open_to_keep(path.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK); });
        if (file.number() < 0) {
            const int code = errno;
            if (code == ENOENT || code == ENOTDIR) {
                if (segment.attach_nameless(verb)) return segment;
            }
            throw_not_opened(verb, path, code, why_not_found(name));
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
    segment.path_ = segment_path(name, segment.directory_);
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
    if (has_file() && ftruncate(fd, static_cast<off_t>(bytes)) == -1) {
        if (errno == EFBIG || errno == ENOSPC) throw_no_room(bytes, 0, verb, options, errno);
        throw_creation_failure(verb, options.directory, errno);
    }
    map(bytes, verb);
    allocate_pages(fd, data_, bytes, verb, options);
}

void SharedSegment::map(std::size_t bytes, const std::string& verb) {
    const int flags = has_file() ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    const ForkPause pause;
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, data_fd_.number(), 0);
    if (memory == MAP_FAILED) {
        const int code = errno;
        const std::string cause = verb + ": " + readable_bytes(bytes) + " cannot be mapped";
        if (code == ENOMEM) throw NotEnoughMemory(cause + ": " + errno_sentence(code));
        throw_system_failure(cause, code);
    }
    data_ = static_cast<std::byte*>(memory);
    size_ = bytes;
    if (!is_watched()) watch();
}

int SharedSegment::data_descriptor() const {
    const std::string verb = "cannot hand '" + name_ + "' on";
    if (is_open() && !has_file()) {
        throw InvalidArgument(verb +
                              ": it is private to this process, expected a shared one; "
                              "leave shared=False away where it is created");
    }
    return data_fd_.require(verb);
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
    if (lock_fd < 0 && has_file()) {
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

}  // namespace mpbuffer
