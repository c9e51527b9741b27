// Sections in which no Python handler of a signal runs, and therefore no handler raises.
//
// A section replaces the handlers by one that takes note. Its end puts them back and then calls
// those that were due, once each. An exception of a handler that was due before the section, or in
// it, comes out of the end, when all handlers are back: a section always runs as a whole.
//
// Signals are neither blocked nor sent again: a wake-up descriptor, as asyncio has one, hears of
// each once, and system calls are restarted as before. Only the main thread runs handlers; in
// others a section does nothing. In a child that is forked meanwhile the handlers are back.
#pragma once

#include <pybind11/pybind11.h>

namespace mpbuffer::bindings {

// Adds SignalsDeferred, a context manager, to the module.
void add_deferred_signals_type(pybind11::module_& module);

}  // namespace mpbuffer::bindings
