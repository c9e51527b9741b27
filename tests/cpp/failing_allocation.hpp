// Lets an allocation of this thread fail: operator new of the tests, in main.cpp, asks for it.
#pragma once

#include <cstdint>
#include <new>

namespace failing_allocation {

inline thread_local std::uint64_t in = 0;  // the how-many-th from now on fails; 0: none

}  // namespace failing_allocation

// Whether the call throws bad_alloc if its n-th allocation fails; it has fewer if not.
template <class Call>
bool fails_at(std::uint64_t n, Call&& call) {
    struct Reset {
        ~Reset() { failing_allocation::in = 0; }
    } reset;
    failing_allocation::in = n;
    try {
        call();
    } catch (const std::bad_alloc&) {
        return true;
    }
    return false;
}
