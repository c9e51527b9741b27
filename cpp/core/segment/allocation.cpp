#include "segment/allocation.hpp"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>

#include "base/error.hpp"
#include "base/guard.hpp"

namespace mpbuffer {

namespace {

constexpr std::size_t largest_piece = std::size_t{64} << 20;
constexpr std::size_t smallest_piece = std::size_t{256} << 10;
// So many may make segments from the same room, and none asks too late whether any is left.
constexpr std::size_t creators_at_once = 16;

// Which directory's room there has to be, as memory_room.hpp has it.
std::string bounded_by(const SegmentOptions& options) {
    return options.nameless ? "" : options.directory;
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

// The same for memory without a file.
void touch(std::byte* memory, std::size_t bytes, const RoomLeft& room_left,
           const SegmentOptions& options) {
    for (std::size_t done = 0; done < bytes;) {
        if (options.progress) call_back([&] { options.progress(done); });
        if (room_left(bytes - done) == 0) return;
        const std::size_t piece = std::min(largest_piece, bytes - done);
        std::memset(memory + done, 0, piece);
        done += piece;
    }
}

}  // namespace

void require_room_for(std::size_t bytes, const std::string& verb, const SegmentOptions& options) {
    const std::string what = verb.substr(verb.find(' ') + 1);  // "create 'apex'"
    require_room(bytes, what, bounded_by(options), options.memory_roots);
}

void throw_no_room(std::size_t bytes, std::size_t done, const std::string& verb,
                   const SegmentOptions& options, int code) {
    require_room_for(bytes - done, verb, options);
    throw NotEnoughMemory(verb + ": needs " + readable_bytes(bytes) + ", only " +
                          readable_bytes(done) + " could be allocated" +
                          (options.nameless ? "" : " in " + options.directory) + ": " +
                          errno_sentence(code));
}

void allocate_pages(int fd, std::byte* mapped, std::size_t bytes, const std::string& verb,
                    const SegmentOptions& options) {
    prefer_huge_pages(mapped, bytes);
    if (options.interleave_nodes) interleave_nodes(mapped, bytes, verb);
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
    const Supply outcome = supply_pages(mapped, bytes, options.progress, room_left, supplied);
    if (outcome == Supply::unsupported && fd >= 0) allocate(fd, bytes, verb, room_left, options);
    if (outcome == Supply::unsupported && fd < 0) touch(mapped, bytes, room_left, options);
    if (lacking != 0) {
        require_room_for(lacking, verb, options);
        throw NotEnoughMemory(
            verb + ": needs " + readable_bytes(bytes) +
            ", and there was no room in memory, or in this cgroup, for the last " +
            readable_bytes(lacking) +
            " of them for a moment: others are allocating, too; try it again");
    }
    if (outcome == Supply::no_room) throw_no_room(bytes, supplied, verb, options, ENOSPC);
}

}  // namespace mpbuffer
