#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cstdlib>
#include <new>

#include "failing_allocation.hpp"

// Not inline: GCC takes malloc and delete, seen side by side, for a mistake.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
    if (failing_allocation::in != 0 && --failing_allocation::in == 0) throw std::bad_alloc();
    void* const memory = std::malloc(bytes == 0 ? 1 : bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
