#include "os/durable_files.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "base/crc32.hpp"
#include "base/error.hpp"
#include "os/threads.hpp"

namespace mpbuffer {

namespace {

// Threads that copy and compute, and threads that only wait: the file system makes one commit of
// what comes together.
constexpr std::size_t most_writers = 4;
constexpr std::size_t most_waiters = 16;

bool write_all(int descriptor, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const ssize_t count = write(descriptor, bytes.data(), bytes.size());
        if (count == -1 && errno != EINTR) return false;
        if (count > 0) bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
    return true;
}

int write_file(NewFile& file) {
    file.descriptor = open(file.path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file.descriptor == -1) return errno;
    if (!write_all(file.descriptor, file.head) || !write_all(file.descriptor, file.values)) {
        return errno;
    }
    // Only to be early: not every file system can do that.
    sync_file_range(file.descriptor, 0, 0, SYNC_FILE_RANGE_WRITE);
    return 0;
}

void compute_crc(NewFile& file) { file.crc32 = crc32(file.values, crc32(file.head)); }

int sync_file(int descriptor) {
    while (fdatasync(descriptor) == -1) {
        if (errno != EINTR) return errno;
    }
    posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
    return 0;
}

// The first error of several threads, and which of the things it was.
class FirstFailure {
  public:
    void note(std::size_t which, int code) {
        int none = 0;
        if (code != 0 && code_.compare_exchange_strong(none, code)) which_ = which;
    }
    int code() const { return code_; }
    std::size_t which() const { return which_; }

  private:
    std::atomic<int> code_{0};
    std::atomic<std::size_t> which_{0};
};

}  // namespace

// Each file is two pieces of work, which take about the same time.
void write_files(std::span<NewFile> files) {
    FirstFailure failure;
    const std::size_t pieces = 2 * files.size();
    const std::size_t threads =
        std::max<std::size_t>(std::min({pieces, most_writers, usable_processors()}), 1);
    share_work(pieces, 1, threads - 1, [&](std::size_t first, std::size_t last) {
        for (std::size_t i = first; i < last; ++i) {
            if (i % 2 == 0) {
                failure.note(i / 2, write_file(files[i / 2]));
            } else {
                compute_crc(files[i / 2]);
            }
        }
    });
    if (failure.code() == 0) return;
    for (NewFile& file : files) {
        if (file.descriptor != -1) close(file.descriptor);
        file.descriptor = -1;
    }
    throw_system_failure("cannot write " + files[failure.which()].path, failure.code());
}

void sync_files(std::span<const int> descriptors) {
    FirstFailure failure;
    const std::size_t threads = std::clamp<std::size_t>(descriptors.size(), 1, most_waiters);
    share_work(descriptors.size(), 1, threads - 1, [&](std::size_t first, std::size_t last) {
        for (std::size_t i = first; i < last; ++i) failure.note(i, sync_file(descriptors[i]));
    });
    if (failure.code() != 0) throw_system_failure("cannot write to the disk", failure.code());
}

}  // namespace mpbuffer
