// A segment of shared memory: create, publish, attach, unlink. Knows bytes, not meaning.
//
// A named one is the file DIRECTORY/mpbuffer-<uid>-<name>, mode 0600, owned by the caller. It is in
// use exactly as long as any description holds a shared lock on its presence byte. That lock is
// taken through the mapped descriptor, so a forked child keeps the segment in use with its parent,
// as long as it has the mapping. Whoever takes the presence lock exclusively has shown that nobody
// is left, and only then removes the name, if it still resolves to that inode:
//   - close(): the last one out;
//   - each creation, for all of this user's segments whose users were killed (sweep.hpp);
//   - make_visible(): for the name that it wants.
// So a name can outlive its users only until this user's next creation.
//
// A nameless one is nameless_memory.hpp's: the kernel frees it with its last user, however that
// ends. Its generated name finds it all the same, as long as somebody has it open whose descriptors
// the caller may look at; it has the label mpbuffer-<uid>-<name>, and the name's number for its id.
//
// One without a file is this process's own memory: nobody finds it, nothing is locked, and a child
// that is forked later has a copy, which is its own.
//
// The creator of a named one works on a file without a name (O_TMPFILE), or where that is refused
// on a temporary name `.tmp-...`, and shows it under its name when it is complete, every page of it
// allocated (allocation.hpp).
//
// A SharedSegment is for one thread at a time. A child that is forked before keep_in_children() has
// no copy: its descriptor is closed and its mapping gone before the child runs, for the thread that
// makes the segment is its parent's. (A close in the moment between that fork and the child's
// handlers leaves the name to the next creation.) Forked later, the child's copy is usable as it
// is.
#pragma once

#include <cstddef>
#include <string>

#include "os/descriptor.hpp"
#include "os/fork_watch.hpp"
#include "segment/allocation.hpp"

namespace mpbuffer {

class SharedSegment : private ForkWatched {
  public:
    SharedSegment() = default;
    SharedSegment(SharedSegment&& other) noexcept;
    SharedSegment& operator=(SharedSegment&& other) noexcept;
    SharedSegment(const SharedSegment&) = delete;
    SharedSegment& operator=(const SharedSegment&) = delete;
    ~SharedSegment() override;

    // Zero-filled, mapped, wholly allocated, not visible yet. Sweeps first.
    // Throws SegmentExists, NotEnoughMemory, InvalidArgument, SystemFailure, and whatever
    // progress throws; then nothing is left behind. BufferClosed in a child that progress forks.
    static SharedSegment create(const std::string& name, std::size_t bytes,
                                const SegmentOptions& options = {});

    // Lets a created segment be found by its name, once. Throws SegmentExists if a second creator
    // was faster; a dead segment under the name is removed first, and with `overwrite` any.
    void make_visible();

    // A file of that name, else what is nameless. Throws SegmentNotFound (also for one that is just
    // being removed), SegmentMismatch (not a regular file, another owner, open to others, empty),
    // SystemFailure.
    static SharedSegment attach(const std::string& name, const SegmentOptions& options = {});

    // The same through an open descriptor of the file, which stays the caller's: a fresh
    // description is opened. Works for a file whose name is gone.
    static SharedSegment attach_descriptor(int fd, const std::string& name,
                                           const SegmentOptions& options = {});

    // From here on a forked child has the segment open as its parent has.
    void keep_in_children() { unwatch(); }
    // From here on it has not, as before keep_in_children().
    void leave_children() {
        if (is_open()) watch();
    }

    std::byte* data() const { return data_; }
    std::size_t size() const { return size_; }
    const std::string& name() const { return name_; }
    const std::string& directory() const { return directory_; }
    // Mapped, holds presence, otherwise unlocked. SystemFailure if the program closed it,
    // InvalidArgument if there is no file.
    int data_descriptor() const;
    bool has_file() const { return data_fd_.present(); }
    bool is_open() const { return data_ != nullptr || has_file(); }
    bool is_visible() const { return published_; }

    // A description for this process's own locks. SystemFailure if none can be opened. Under a
    // ForkPause, until the caller has it watched.
    OwnedDescriptor open_lock_descriptor() const;

    // Unmaps, closes, and removes the name if nobody else is left. lock_fd: a description of this
    // file to ask through (any locks it holds stay), or -1 to have one opened. Never throws; a
    // name that could not be removed is left to the next sweep. A descriptor that the program
    // closed is not closed again, whatever has its number now. Twice is once.
    void close(int lock_fd = -1) noexcept;

  private:
    void after_fork_in_child() noexcept override;
    void take(PassingDescriptor& file);
    void let_go() noexcept;
    int fresh_description() const;
    void make_pages(std::size_t bytes, const std::string& verb, const SegmentOptions& options);
    void map(std::size_t bytes, const std::string& verb);
    void open_file(const std::string& verb, const SegmentOptions& options);
    void open_nameless_memory(const std::string& verb);
    bool attach_nameless(const std::string& verb);

    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
    OwnedDescriptor data_fd_;
    bool published_ = false;
    bool nameless_ = false;  // made so by this object
    bool overwrites_ = false;
    std::string name_;
    std::string directory_;  // absolute
    std::string path_;       // where the file is visible now; empty: nowhere
};

}  // namespace mpbuffer
