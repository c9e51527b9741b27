// Python's lock as the core's program lock, and what becomes of a thread for which there is no
// more.
//
// Up to Python 3.13 a thread that asks for the GIL while the interpreter finalizes is ended by
// pthread_exit(), which unwinds it: through destructors that must not throw, and without the GIL
// through those that drop references. Here such a thread stands still instead, as from 3.14 on,
// until the process ends.
#pragma once

#include <cxxabi.h>

#include <utility>

namespace mpbuffer::bindings {

// Once, when the module is imported.
void install_program_lock();

[[noreturn]] void stand_still();

// Runs what may run Python code of the program's (a method, a finalizer, a warning's hook), in
// which this thread may lose the GIL.
template <class Call>
decltype(auto) running_python(Call&& call) {
    try {
        return std::forward<Call>(call)();
    } catch (abi::__forced_unwind&) {
        stand_still();
    }
}

}  // namespace mpbuffer::bindings
