// Names of segments, the files that have them, and what may lie under such a path.
//
// The segment NAME of user UID is the file DIRECTORY/mpbuffer-UID-NAME, or memory with the label
// mpbuffer-UID-NAME. A file that is still being made may be there as mpbuffer-UID-.tmp-NAME.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mpbuffer {

constexpr char temporary_prefix[] = ".tmp-";

// Unique: "<pid>-<12 hex digits>", which are the id of a nameless segment.
std::string generate_name();

// The number at the end of a generated name; 0 if it is no such name.
std::uint64_t id_in(const std::string& name);

// 1 to 128 of [A-Za-z0-9._-], not beginning with ".tmp-". Throws InvalidArgument.
void require_valid_name(const std::string& name);

bool is_temporary(const std::string& name);

// "mpbuffer-UID-", and with the name behind it.
std::string file_prefix();
std::string label_of_segment(const std::string& name);

// Where this user's segment of that name is visible.
std::string segment_path(const std::string& name, const std::string& directory = "/dev/shm");

// Every name in the directory that begins with this user's prefix, without the prefix; sorted.
std::vector<std::string> names_in(const std::string& directory);

// Why open(2) of such a path has failed. Throws SegmentNotFound (there is nothing; `hint` follows),
// SegmentMismatch (what is there is no regular file), or SystemFailure.
[[noreturn]] void throw_not_opened(const std::string& verb, const std::string& path, int code,
                                   const std::string& hint = "");

// Why there may be no file of that name, and what to do: goes on behind "there is no ...".
std::string why_not_found(const std::string& name);

// The facts of an open file. SegmentMismatch if it is no regular file of this user.
struct stat require_own_file(int fd, const std::string& path, const std::string& verb);

// The size of an open file that may be attached. As above, and SegmentMismatch if others may open
// it, or it is too short.
std::size_t require_segment_file(int fd, const std::string& path, const std::string& verb);

// "0644"
std::string mode_in_words(mode_t mode);

}  // namespace mpbuffer
