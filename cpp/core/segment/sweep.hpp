// Which segments there are, and which of them are dead: whose users are all gone.
//
// A file is in use exactly as long as any description holds a shared lock on its presence byte. Who
// takes that lock exclusively has shown that nobody is left, and only then removes the name, if it
// still resolves to that file. What is no segment of this user is never touched.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "os/file_locks.hpp"
#include "os/nameless_memory.hpp"

namespace mpbuffer {

// With whoever is just removing a file.
constexpr int patience_in_milliseconds = 100;
void sleep_a_millisecond();

// A lock for a moment. Released by hand, because a child forked meanwhile shares the description,
// and with it the lock, until it gets to close its copy.
class PassingLock {
  public:
    PassingLock(int fd, std::uint64_t byte, LockKind kind)
        : fd_(fd), byte_(byte), held_(try_lock(fd, byte, kind)) {}
    PassingLock(const PassingLock&) = delete;
    PassingLock& operator=(const PassingLock&) = delete;
    ~PassingLock();
    bool held() const { return held_; }
    void keep() { held_ = false; }

  private:
    int fd_;
    std::uint64_t byte_;
    bool held_;
};

// Takes the shared presence lock, for good; patient with a sweep or a last one out that is just
// looking.
bool take_presence(int fd);

// Whether the path is that file's name now.
bool resolves_to(const std::string& path, int fd);

// Whether the file is empty, or begins with the magic; under a temporary name also still zero.
bool looks_like_segment(int fd, bool temporary);

enum class Remove { nothing, what_is_dead, whatever_is_ours };

// Makes the way free for a segment of that name, or throws SegmentExists.
void require_free_name(const std::string& path, const std::string& name, Remove what);

// The same ahead of the creation, removing only what is dead; with `overwrite` nothing, and a name
// in use will do.
void require_possible_name(const std::string& path, const std::string& name, bool overwrite);

// Removes this user's provably dead segments; returns their names (temporary ones as .tmp-...).
// look_only: removes nothing, returns the names all the same.
std::vector<std::string> sweep_segments(const std::string& directory = "/dev/shm",
                                        bool look_only = false);

// The names of this user's segments that are published, dead ones included.
std::vector<std::string> list_segments(const std::string& directory = "/dev/shm");

// Looks for the nameless segment of that name, in the process first whose pid the name has, until
// `is_it` says so. Returns whether it was found.
bool find_by_name(const std::string& name, const std::function<bool(const NamelessPlace&)>& is_it);

// Where a process of this user has the nameless segment of that name open; empty: nowhere.
std::string nameless_path(const std::string& name);

}  // namespace mpbuffer
