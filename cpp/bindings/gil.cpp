#include "gil.hpp"

#include <pybind11/pybind11.h>
#include <unistd.h>

#include "base/guard.hpp"

namespace mpbuffer::bindings {

namespace {

// A Python thread holds the GIL when it calls the core; threads of the core never hold it.
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
