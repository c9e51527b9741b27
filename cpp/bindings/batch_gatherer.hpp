// Samples in the background: one thread that draws and copies batches without the GIL, in the order
// in which they were asked for.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>

namespace mpbuffer::bindings {

// All calls need the GIL; none holds it while waiting. In a forked child there is no thread to wait
// for: every call raises RuntimeError there.
class BatchGatherer {
  public:
    // Keeps the buffer object alive. `return_indexes` is for uniform buffers; others always do.
    BatchGatherer(pybind11::object buffer, bool return_indexes);
    ~BatchGatherer();

    // Asks for `rows` rows in the arrays of the dict, which nobody must touch until take() returns
    // it. Raises what sample(out=...) does about the arrays.
    void submit(const pybind11::dict& arrays, std::size_t rows, double beta);

    // The dict submitted longest ago, once it is filled, or the error that its sample ended with.
    // Waits for the gathering, and for Ctrl-C. ValueError if nothing was submitted.
    pybind11::dict take();

    // Forgets what was submitted, and waits for the batch being gathered. Twice is once.
    void discard();

    // What is kept alive, but for dicts of arrays: what the collector has to know of.
    pybind11::handle buffer() const { return buffer_; }

    // Discards, and lets go of the buffer: but for discard(), calls raise BufferClosed from now on.
    void clear();

  private:
    struct Workshop;
    Workshop& workshop();
    bool in_child() const;

    pybind11::object buffer_;
    bool return_indexes_;
    std::uint64_t made_in_;  // the fork generation
    std::unique_ptr<Workshop> workshop_;
};

void add_batch_gatherer_type(pybind11::module_& module);

}  // namespace mpbuffer::bindings
