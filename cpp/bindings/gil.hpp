// Python's lock as the core's program lock, and threads that can never take it again.
//
// Up to Python 3.13 a thread that asks for the GIL while the interpreter finalizes is ended by
// pthread_exit(). That unwinds its stack: through destructors that must not throw, and, without the
// GIL, through those that drop references. Here such a thread stands still until the process ends,
// as it does from Python 3.14 on.
#pragma once

#include <cxxabi.h>

#include <utility>

namespace mpbuffer::bindings {

// Once, when the module is imported.
void install_program_lock();

[[noreturn]] void stand_still();

// Runs a call that may run the program's Python code (a method, a finalizer, a warning's hook).
// The thread may lose the GIL in it.
template <class Call>
decltype(auto) running_python(Call&& call) {
    try {
        return std::forward<Call>(call)();
    } catch (abi::__forced_unwind&) {
        stand_still();
    }
}

}  // namespace mpbuffer::bindings
