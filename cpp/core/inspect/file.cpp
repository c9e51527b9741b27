#include "inspect/file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "base/error.hpp"
#include "format/header.hpp"
#include "os/file_locks.hpp"
#include "segment/names.hpp"

namespace mpbuffer {

ReadOnlyFile::ReadOnlyFile(const std::string& path, bool follow, const std::string& verb)
    : file_([&path, follow] {
          return open_retrying(path.c_str(), O_RDONLY | O_NONBLOCK | (follow ? 0 : O_NOFOLLOW));
      }) {
    if (file_.number() == -1) throw_not_opened(verb, path, errno);
    const struct stat facts = require_own_file(file_.number(), path, verb);
    mode_ = facts.st_mode & 07777;
    size_ = static_cast<std::size_t>(facts.st_size);
    if (size_ < header_bytes) return;  // read_header() tells
    const ForkPause pause;
    void* const memory = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file_.number(), 0);
    if (memory == MAP_FAILED) throw_system_failure(verb + ": " + path + " (mmap)", errno);
    data_ = memory;
    watch();
}

ReadOnlyFile::~ReadOnlyFile() {
    const ForkPause pause;
    unwatch();
    if (data_ != nullptr) munmap(data_, size_);
}

void ReadOnlyFile::after_fork_in_child() noexcept {
    munmap(std::exchange(data_, nullptr), size_);
    unwatch_in_child();
}

std::vector<Suspicion> lasting_suspicions(const std::function<std::vector<Suspicion>()>& look,
                                          std::chrono::microseconds pause) {
    std::vector<Suspicion> suspicions = look();
    for (int looked = 1; looked < looks && !suspicions.empty(); ++looked) {
        std::this_thread::sleep_for(pause);
        std::vector<Suspicion> later = look();
        std::erase_if(later, [&suspicions](const Suspicion& each) {
            return std::none_of(
                suspicions.begin(), suspicions.end(),
                [&each](const Suspicion& other) { return other.about == each.about; });
        });
        suspicions = std::move(later);
    }
    return suspicions;
}

void tell_damage(Inspection& report, const std::string& sentence) {
    if (report.damages++ < Inspection::max_told) report.damage.push_back(sentence);
}

void look_at_role(const ReadOnlyFile& file, const std::string& title, Inspection& report) {
    const auto& line = *file.at<SharedRoleLine>(report.header.role_line_offset);
    const auto whole = line.load();
    report.role = {held_elsewhere(file.descriptor(), lock_byte::role), whole.has_value(),
                   whole ? *whole : line.load_torn()};
    const RoleHolder& holder = report.role.line.holder;
    if (holder.process == 0 || report.role.held) return;
    report.notes.push_back("the " + title + " (process " + std::to_string(holder.process) +
                           ", pid " + std::to_string(holder.pid) +
                           ") ended without giving up its role; it is free");
}

}  // namespace mpbuffer
