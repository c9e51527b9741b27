// Batches one after another, gathered ahead by a thread that needs no GIL.
//
// While next() waits or makes arrays, other Python code may run: signal handlers, the garbage
// collector, other threads. It may call anything, next() and close() of the same gatherer included.
// So next() owns what it works with, and checks again after each such moment.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "convert/recycled_memory.hpp"

namespace mpbuffer::bindings {

struct BufferState;
struct Job;
class Workshop;

// All calls need the GIL; none holds it while it waits.
class BatchGatherer {
  public:
    // Keeps the buffer object alive. `prefetch`: how many batches are gathered ahead; with 0,
    // next() gathers each batch, and there is no thread. `return_indexes` is for uniform buffers;
    // others always return them. `torch`: the module, for page-locked memory; or None.
    BatchGatherer(pybind11::object buffer, std::size_t rows, std::size_t prefetch,
                  bool return_indexes, const pybind11::object& beta, const pybind11::object& torch);
    ~BatchGatherer();

    // The batch drawn longest ago, in arrays of its own, or the error that its sample ended with;
    // after an error all others are discarded. Blocks until the batch is gathered, and runs signal
    // handlers meanwhile. Batches drawn before a release_learner() are discarded, and next() asks
    // for the role again. BufferClosed after close(); RuntimeError in a forked child, which has no
    // such thread.
    pybind11::dict next();

    // The exponent of the importance weights of later draws.
    double beta() const { return beta_; }
    void set_beta(const pybind11::object& beta);

    // Discards the batches gathered ahead, waits for the one being gathered, and drops the buffer.
    // Batches already returned stay valid. Twice is once.
    void close();

    // Kept alive; the garbage collector must know of it.
    pybind11::handle buffer() const { return buffer_; }

  private:
    std::unique_ptr<Job> make_job(pybind11::handle buffer,
                                  const std::shared_ptr<RecycledMemory>& memory) const;
    std::shared_ptr<Workshop> workshop();
    void discard();
    bool in_child() const;

    pybind11::object buffer_;  // none once closed
    std::size_t rows_;
    std::size_t prefetch_;
    double beta_ = 0;
    bool return_indexes_;
    std::uint64_t made_in_;  // the fork generation
    std::shared_ptr<RecycledMemory> memory_;
    std::shared_ptr<Workshop> workshop_;
};

void add_batch_gatherer_type(pybind11::module_& module);

}  // namespace mpbuffer::bindings
