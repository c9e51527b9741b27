// What module.cpp adds to the module: one function, and one file, for each type.
#pragma once

#include <pybind11/pybind11.h>

namespace mpbuffer::bindings {

// ReplayBuffer and PrioritizedReplayBuffer: types made by hand whose hot calls are add, sample,
// sample_uniform and update_priorities. The public Python classes override none of these.
void add_buffer_types(pybind11::module_& module);

// All their methods but the hot calls, and largest_size().
void add_buffer_methods(pybind11::module_& module, pybind11::handle uniform,
                        pybind11::handle prioritized);

// StepWriter, behind mpbuffer.StepWriter: a type made by hand, whose add is a hot call.
void add_step_writer_type(pybind11::module_& module);

// BatchGatherer, behind mpbuffer.Batches: batches one after another, gathered ahead by a thread
// that needs no GIL.
void add_batch_gatherer_type(pybind11::module_& module);

// WeightsHandle, behind mpbuffer.SharedWeights. It takes arrays as lists, in the order of their
// description, and checks their lengths. Python checks names, dtypes and shapes.
void add_weights_type(pybind11::module_& module);

// SignalsDeferred, a context manager: a section in which no Python handler of a signal runs, and
// therefore no handler raises.
//
// A section replaces all handlers by one that records signals. Its end restores them, then calls
// each that is due, once. An exception of a handler that was due before or in the section is raised
// by the section's end, after all handlers are restored: a section always runs to its end.
//
// Signals are neither blocked nor sent again: a wake-up descriptor, such as asyncio's, gets each
// one once, and system calls restart as before. Only the main thread runs handlers; in other
// threads a section does nothing. A child that is forked meanwhile has the original handlers.
void add_deferred_signals_type(pybind11::module_& module);

// write_files, sync_files and crc32, for snapshots.
void add_file_calls(pybind11::module_& module);

// inspect, segments, sweep and generate_name, which need no handle.
void add_segment_calls(pybind11::module_& module);

}  // namespace mpbuffer::bindings
