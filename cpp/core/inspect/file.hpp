// What every inspection is made of: the file, mapped read-only, and looks at it that are repeated
// before anything is called damage.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/shared_copy.hpp"
#include "inspect/inspection.hpp"
#include "os/descriptor.hpp"
#include "os/fork_watch.hpp"

namespace mpbuffer {

// Of this process alone: a child that is forked meanwhile does not keep the file.
class ReadOnlyFile final : private ForkWatched {
  public:
    // `follow`: whether the path may be a symbolic link. `verb`: "cannot inspect 'apex'". Throws
    // SegmentNotFound, SegmentMismatch, SystemFailure.
    ReadOnlyFile(const std::string& path, bool follow, const std::string& verb);
    ~ReadOnlyFile() override;

    int descriptor() const { return file_.number(); }
    std::byte* data() const { return static_cast<std::byte*>(data_); }
    template <class T>
    T* at(std::uint64_t offset) const {
        return reinterpret_cast<T*>(data() + offset);
    }
    std::size_t size() const { return size_; }
    mode_t mode() const { return mode_; }

  private:
    void after_fork_in_child() noexcept override;

    PassingDescriptor file_;
    void* data_ = nullptr;
    std::size_t size_ = 0;
    mode_t mode_ = 0;
};

// What seems wrong: `about` stays the same from look to look.
struct Suspicion {
    std::string about;
    std::string details;
};

// Only what is wrong at each of so many looks, with a pause before each, is damage.
constexpr int looks = 5;

// Those that each look finds, with the details of the last one.
std::vector<Suspicion> lasting_suspicions(const std::function<std::vector<Suspicion>()>& look,
                                          std::chrono::microseconds pause);

void tell_damage(Inspection& report, const std::string& sentence);

// Who has the role, and a note if that process ended without giving it up. `title`: "learner".
void look_at_role(const ReadOnlyFile& file, const std::string& title, Inspection& report);

inline std::uint64_t relaxed(const std::atomic<std::uint64_t>& number) {
    return number.load(std::memory_order_relaxed);
}

}  // namespace mpbuffer
