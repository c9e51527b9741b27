// Sections in which no Python handler of a signal runs, and therefore no handler raises.
//
// A section replaces all handlers by one that records signals. Its end restores them, then calls
// each that is due, once. An exception of a handler that was due before or in the section is raised
// by the section's end, after all handlers are restored: a section always runs to its end.
//
// Signals are neither blocked nor sent again: a wake-up descriptor, such as asyncio's, gets each
// one once, and system calls restart as before. Only the main thread runs handlers; in other
// threads a section does nothing. A child that is forked meanwhile has the original handlers.
#pragma once

#include <pybind11/pybind11.h>

namespace mpbuffer::bindings {

// Adds SignalsDeferred, a context manager, to the module.
void add_deferred_signals_type(pybind11::module_& module);

}  // namespace mpbuffer::bindings
