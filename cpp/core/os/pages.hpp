// Memory by the gigabyte: page tables filled ahead and in parallel, huge pages, NUMA nodes.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

namespace mpbuffer {

// Told how many bytes have been done, many times a second; may throw to give up.
using Progress = std::function<void(std::size_t)>;

// Asked, by several threads at once, whether there is room for so many bytes that are still
// missing: how many of them may be made before it is asked again, 0 if there is too little. Throws
// nothing.
using RoomLeft = std::function<std::size_t(std::size_t)>;

enum class Supply {
    done,         // every page is there, and in this process's page table
    no_room,      // the file system, or what was asked, has no room for more pages
    unsupported,  // by a kernel before 5.14; nothing was done
};

// Makes every page of a shared mapping, by as many threads as pay. `supplied`: how many bytes there
// are at the end. Throws what `progress` throws; pages made until then stay.
Supply supply_pages(std::byte* memory, std::size_t bytes, const Progress& progress,
                    const RoomLeft& room_left, std::size_t& supplied);

// Asks for huge pages; the kernel's settings decide (transparent_hugepage/shmem_enabled for shared
// memory, transparent_hugepage/enabled for private). No effect otherwise.
void prefer_huge_pages(std::byte* memory, std::size_t bytes) noexcept;

// Spreads the pages of a mapping, of which none is made yet, over all NUMA nodes in turn; nothing
// to do where there is one. Throws SystemFailure; `verb` begins its message.
void interleave_nodes(std::byte* memory, std::size_t bytes, const std::string& verb);

// Zeroed private memory, aligned to 64, of huge pages where it is large and the kernel agrees.
class PrivateMemory {
  public:
    PrivateMemory() = default;
    explicit PrivateMemory(std::size_t bytes);  // throws std::bad_alloc

    std::byte* data() const { return memory_.get(); }

  private:
    struct Free {
        void operator()(std::byte* memory) const;
    };
    std::unique_ptr<std::byte, Free> memory_;
};

}  // namespace mpbuffer
