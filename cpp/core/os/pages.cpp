#include "os/pages.hpp"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <new>
#include <vector>

#include "base/error.hpp"
#include "base/guard.hpp"
#include "base/round_up.hpp"
#include "os/threads.hpp"

namespace mpbuffer {

namespace {

constexpr int populate_write = 23;    // MADV_POPULATE_WRITE, which older headers do not have
constexpr int interleave_policy = 3;  // MPOL_INTERLEAVE of mbind(2)

constexpr std::size_t piece_bytes = std::size_t{8} << 20;
constexpr std::size_t huge_page = std::size_t{2} << 20;
// More threads than this find the memory busy.
constexpr std::size_t most_threads = 16;
constexpr std::size_t pieces_worth_a_thread = 4;

int populate(std::byte* memory, std::size_t bytes) {
    for (;;) {
        if (madvise(memory, bytes, populate_write) == 0) return 0;
        if (errno != EINTR && errno != EAGAIN) return errno;
    }
}

// Of a list such as "0-3,8": a bit for each.
std::vector<unsigned long> node_mask(const std::string& list) {
    constexpr std::size_t bits = 8 * sizeof(unsigned long);
    std::vector<unsigned long> mask;
    const char* at = list.c_str();
    while (*at >= '0' && *at <= '9') {
        char* end = nullptr;
        const std::size_t first = std::strtoul(at, &end, 10);
        std::size_t last = first;
        if (*end == '-') last = std::strtoul(end + 1, &end, 10);
        for (std::size_t node = first; node <= last && node < 4096; ++node) {
            mask.resize(std::max(mask.size(), node / bits + 1));
            mask[node / bits] |= 1ul << (node % bits);
        }
        at = *end == ',' ? end + 1 : end;
    }
    return mask;
}

}  // namespace

Supply supply_pages(std::byte* memory, std::size_t bytes, const Progress& progress,
                    const RoomLeft& room_left, std::size_t& supplied) {
    std::atomic<std::size_t> done{0};
    std::atomic<std::size_t> ask_at{piece_bytes};  // for the first piece the caller has asked
    std::atomic<int> failure{0};
    const SharedWork::Work supply = [&](std::size_t first, std::size_t last) {
        if (failure != 0) return;
        if (first >= ask_at) {
            const std::size_t in_work = first - std::min(first, done.load());
            const std::size_t allowed = room_left(bytes - first + in_work);
            if (allowed == 0) {
                failure = ENOMEM;
                return;
            }
            ask_at = first + std::min(allowed, bytes);
        }
        if (const int code = populate(memory + first, last - first); code != 0) {
            failure = code;
        } else {
            done += last - first;
        }
    };
    const auto report = [&] {
        if (progress) call_back([&] { progress(done); });
    };
    supplied = 0;
    report();
    SharedWork work(bytes, piece_bytes, supply);
    if (work.do_next() && failure == EINVAL) return Supply::unsupported;
    const std::size_t worth = bytes / piece_bytes / pieces_worth_a_thread;
    const std::size_t threads = std::min({worth, usable_processors(), most_threads});
    if (threads > 1) work.start(threads - 1);
    report();
    while (failure == 0 && work.do_next()) report();
    work.finish();
    supplied = done;
    report();
    return supplied == bytes ? Supply::done : Supply::no_room;
}

void prefer_huge_pages(std::byte* memory, std::size_t bytes) noexcept {
    if (bytes >= huge_page) (void)madvise(memory, bytes, MADV_HUGEPAGE);
}

void interleave_nodes(std::byte* memory, std::size_t bytes, const std::string& verb) {
    std::string online;
    std::getline(std::ifstream("/sys/devices/system/node/online"), online);
    const std::vector<unsigned long> mask = node_mask(online);
    std::size_t nodes = 0;
    for (const unsigned long word : mask) {
        nodes += static_cast<std::size_t>(__builtin_popcountl(word));
    }
    if (nodes < 2) return;
    const unsigned long bits = mask.size() * 8 * sizeof(unsigned long) + 1;
    if (syscall(SYS_mbind, memory, bytes, interleave_policy, mask.data(), bits, 0) != 0) {
        throw_system_failure(verb + ": its pages cannot be spread over NUMA nodes " + online,
                             errno);
    }
}

PrivateMemory::PrivateMemory(std::size_t bytes) {
    if (bytes > std::numeric_limits<std::size_t>::max() / 2) throw std::bad_alloc();
    const std::size_t whole =
        bytes >= huge_page ? (bytes + huge_page - 1) / huge_page * huge_page : round_up(bytes, 64);
    const std::size_t alignment = bytes >= huge_page ? huge_page : 64;
    auto* const memory =
        static_cast<std::byte*>(std::aligned_alloc(alignment, std::max(whole, alignment)));
    if (memory == nullptr) throw std::bad_alloc();
    memory_.reset(memory);
    prefer_huge_pages(memory, whole);
    std::memset(memory, 0, bytes);
}

void PrivateMemory::Free::operator()(std::byte* memory) const { std::free(memory); }

}  // namespace mpbuffer
