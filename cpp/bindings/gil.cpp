#include "gil.hpp"

#include <pybind11/pybind11.h>
#include <unistd.h>

#include "base/guard.hpp"

namespace mpbuffer::bindings {

namespace {

// A thread of Python's holds the GIL whenever it calls the core; threads of the core never do.
void* release() {
    return PyGILState_GetThisThreadState() == nullptr ? nullptr : PyEval_SaveThread();
}

void acquire(void* token) {
    running_python([token] { PyEval_RestoreThread(static_cast<PyThreadState*>(token)); });
}

}  // namespace

void install_program_lock() { set_program_lock({release, acquire}); }

void stand_still() {
    for (;;) pause();
}

}  // namespace mpbuffer::bindings
