// While next() waits or makes arrays, other Python code may run: signal handlers, the garbage
// collector, other threads. It may call anything, next() and close() of the same gatherer included.
// So next() owns what it works with, and checks again after each such moment.

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.hpp"
#include "base/guard.hpp"
#include "convert/output_batch.hpp"
#include "convert/sample_arguments.hpp"
#include "errors.hpp"
#include "os/threads.hpp"
#include "state.hpp"
#include "types/registrations.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

// How often a waiting thread checks for signals.
constexpr auto signal_check = std::chrono::milliseconds(50);

struct Job {
    Job(const BufferState& state, std::size_t rows, Weighting weighting, BatchParts parts,
        RecycledMemory& memory)
        : rows(rows),
          weighting(weighting),
          releases(state.core->releases()),
          batch(state, rows, parts, memory) {}

    void gather(ReplayBuffer& core, std::optional<std::uint64_t> only_until_released = {}) {
        if (core.prioritized()) {
            core.gather(rows, weighting, batch.target(), only_until_released);
        } else {
            core.gather_uniform(rows, batch.target());
        }
    }

    std::size_t rows;
    Weighting weighting;
    std::uint64_t releases;  // of the learner's role, until the job was made
    OutputBatch batch;
    std::exception_ptr error;
};

// A thread and its jobs, which are added and taken under the GIL. The core must live until the
// thread is stopped.
class Workshop {
  public:
    explicit Workshop(ReplayBuffer& core) : core_(core) {
        const SignalsBlocked in_new_thread;
        try {
            thread_ = std::thread([this] { work(); });
        } catch (const std::system_error& error) {
            throw_python(PyExc_RuntimeError, "cannot gather batches of '" + core.name() +
                                                 "' ahead: no thread can be started: " +
                                                 errno_sentence(error.code().value()) +
                                                 "; prefetch=0 needs none");
        }
    }
    ~Workshop() { stop(); }
    Workshop(const Workshop&) = delete;
    Workshop& operator=(const Workshop&) = delete;

    // A forked child has no such thread, and the thread's work never goes on there: a child drops a
    // workshop without destroying it.
    static std::shared_ptr<Workshop> start(ReplayBuffer& core) {
        return {new Workshop(core), [here = fork_generation()](Workshop* shop) {
                    if (here == fork_generation()) delete shop;
                }};
    }

    void submit(std::unique_ptr<Job> job) {
        const std::scoped_lock lock(mutex_);
        jobs_.push_back(std::move(job));
        wanted_.notify_one();
    }

    std::size_t under_way() {
        const std::scoped_lock lock(mutex_);
        return jobs_.size();
    }

    bool stopped() {
        const std::scoped_lock lock(mutex_);
        return stopping_;
    }

    // The oldest job if it is finished, else null.
    std::unique_ptr<Job> take() {
        const std::scoped_lock lock(mutex_);
        if (stopping_ || done_ == 0) return nullptr;
        std::unique_ptr<Job> job = std::move(jobs_.front());
        jobs_.pop_front();
        --done_;
        return job;
    }

    // Waits until take() has one, the workshop is stopped, or the time is over; without the GIL.
    void wait(std::chrono::milliseconds time) {
        std::unique_lock lock(mutex_);
        finished_.wait_for(lock, time, [this] { return stopping_ || done_ > 0; });
    }

    // Waits for the job that is being worked on; without the GIL.
    void stop() {
        {
            const std::scoped_lock lock(mutex_);
            stopping_ = true;
        }
        wanted_.notify_all();
        finished_.notify_all();
        std::call_once(joined_, [this] { thread_.join(); });
    }

  private:
    void work() {
        std::unique_lock lock(mutex_);
        for (;;) {
            wanted_.wait(lock, [this] { return stopping_ || done_ < jobs_.size(); });
            if (stopping_) return;
            Job& job = *jobs_[done_];
            lock.unlock();
            try {
                job.gather(core_, job.releases);
            } catch (...) {
                job.error = std::current_exception();
            }
            lock.lock();
            ++done_;
            finished_.notify_all();
        }
    }

    ReplayBuffer& core_;
    std::mutex mutex_;
    std::condition_variable wanted_;
    std::condition_variable finished_;
    std::deque<std::unique_ptr<Job>> jobs_;  // the first `done_` of them are finished
    std::size_t done_ = 0;
    bool stopping_ = false;
    std::once_flag joined_;
    std::thread thread_;
};

// All calls need the GIL; none holds it while it waits.
class BatchGatherer {
  public:
    // Keeps the buffer object alive. `prefetch`: how many batches are gathered ahead; with 0,
    // next() gathers each batch, and there is no thread. `return_indexes` is for uniform buffers;
    // others always return them. `torch`: the module, for page-locked memory; or None.
    BatchGatherer(py::object buffer, std::size_t rows, std::size_t prefetch, bool return_indexes,
                  const py::object& beta, const py::object& torch, const py::object& weight_norm,
                  bool return_probabilities, bool time_major)
        : buffer_(std::move(buffer)),
          rows_(rows),
          prefetch_(prefetch),
          weighting_(convert_beta(beta.ptr()), convert_weight_norm(weight_norm.ptr())),
          parts_(
              parts_of(*state_of(buffer_).core, return_indexes, return_probabilities, time_major)),
          memory_(torch.is_none() ? std::make_shared<RecycledMemory>()
                                  : std::make_shared<RecycledMemory>(torch)) {
        // As much as is in use or being gathered at once.
        memory_->keep_at_most((prefetch + 1) * batch_bytes(state_of(buffer_), rows));
    }
    ~BatchGatherer() { close(); }

    // The batch drawn longest ago, in arrays of its own, or the error that its sample ended with;
    // after an error all others are discarded. Blocks until the batch is gathered, and runs signal
    // handlers meanwhile. Batches drawn before a release_learner() are discarded, and next() asks
    // for the role again. BufferClosed after close(); RuntimeError in a forked child, which has no
    // such thread.
    py::dict next();

    // The exponent of the importance weights of later draws.
    double beta() const { return weighting_.beta; }
    void set_beta(const py::object& beta) { weighting_.beta = convert_beta(beta.ptr()); }

    // Discards the batches gathered ahead, waits for the one being gathered, and drops the buffer.
    // Batches already returned stay valid. Twice is once.
    void close();

    // Kept alive; the garbage collector must know of it.
    py::handle buffer() const { return buffer_; }

  private:
    static BatchParts parts_of(const ReplayBuffer& core, bool indexes, bool probabilities,
                               bool time_major) {
        return {core.prioritized(), core.prioritized() || indexes, probabilities, time_major};
    }
    std::unique_ptr<Job> make_job(py::handle buffer,
                                  const std::shared_ptr<RecycledMemory>& memory) const {
        return std::make_unique<Job>(state_of(buffer), rows_, weighting_, parts_, *memory);
    }
    std::shared_ptr<Workshop> workshop();
    void discard();
    bool in_child() const { return made_in_ != fork_generation(); }

    py::object buffer_;  // none once closed
    std::size_t rows_;
    std::size_t prefetch_;
    Weighting weighting_;
    BatchParts parts_;
    std::uint64_t made_in_ = fork_generation();
    std::shared_ptr<RecycledMemory> memory_;
    std::shared_ptr<Workshop> workshop_;
};

std::shared_ptr<Workshop> BatchGatherer::workshop() {
    if (in_child()) {
        throw_python(PyExc_RuntimeError,
                     "cannot take a batch in a forked child: a thread of its parent gathers them; "
                     "call batches() in the child");
    }
    if (workshop_ && workshop_->stopped()) discard();
    if (!buffer_) throw BufferClosed("cannot take a batch: these batches were closed");
    if (!workshop_) workshop_ = Workshop::start(*state_of(buffer_).core);
    return workshop_;
}

py::dict BatchGatherer::next() {
    if (!buffer_) throw BufferClosed("cannot take a batch: these batches were closed");
    const py::object buffer = buffer_;
    const std::shared_ptr<RecycledMemory> memory = memory_;
    if (prefetch_ == 0) {
        const std::unique_ptr<Job> job = make_job(buffer, memory);
        ReplayBuffer& core = *state_of(buffer).core;
        job->gather(core);
        return py::reinterpret_steal<py::dict>(job->batch.take_dict());
    }
    for (;;) {
        const std::shared_ptr<Workshop> shop = workshop();
        const auto top_up = [&] {
            while (shop->under_way() < prefetch_) shop->submit(make_job(buffer, memory));
        };
        top_up();
        std::unique_ptr<Job> job = shop->take();
        if (!job) {
            const CoreCall call;
            let_others_run();
            shop->wait(signal_check);
        }
        if (!job) job = shop->take();
        const bool outdated = job && job->releases != state_of(buffer).core->releases();
        if (job && !outdated) {
            if (job->error) {
                discard();
                std::rethrow_exception(job->error);
            }
            top_up();
            return py::reinterpret_steal<py::dict>(job->batch.take_dict());
        }
        if (outdated) discard();
        run_signal_handlers();
    }
}

void BatchGatherer::discard() {
    const std::shared_ptr<Workshop> shop = workshop_;
    if (!shop || in_child()) return;
    {
        const CoreCall call;
        let_others_run();
        shop->stop();
    }
    if (workshop_ == shop) workshop_.reset();
}

void BatchGatherer::close() {
    const py::object buffer = std::exchange(buffer_, py::object());  // until the thread has ended
    memory_.reset();
    discard();
}

// Null until __init__ has run.
BatchGatherer* gatherer_in(PyObject* self) {
    const auto* instance = reinterpret_cast<py::detail::instance*>(self);
    if (!instance->simple_layout || !instance->simple_holder_constructed) return nullptr;
    return static_cast<BatchGatherer*>(instance->simple_value_holder[0]);
}

int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (const BatchGatherer* gatherer = gatherer_in(self)) Py_VISIT(gatherer->buffer().ptr());
    return 0;
}

int clear(PyObject* self) {
    if (BatchGatherer* gatherer = gatherer_in(self)) gatherer->close();
    return 0;
}

}  // namespace

void add_batch_gatherer_type(py::module_& module) {
    const py::custom_type_setup collected([](PyHeapTypeObject* heap_type) {
        PyTypeObject& type = heap_type->ht_type;
        type.tp_flags |= Py_TPFLAGS_HAVE_GC;
        type.tp_traverse = traverse;
        type.tp_clear = clear;
    });
    py::class_<BatchGatherer>(module, "BatchGatherer", collected,
                              py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type)))
        .def(py::init<py::object, std::size_t, std::size_t, bool, py::object, py::object,
                      py::object, bool, bool>(),
             py::arg("buffer"), py::arg("rows"), py::arg("prefetch"), py::arg("return_indexes"),
             py::arg("beta"), py::arg("torch"), py::arg("weight_norm") = "buffer",
             py::arg("return_probabilities") = false, py::arg("time_major") = false)
        .def_property("beta", &BatchGatherer::beta, &BatchGatherer::set_beta)
        .def("next", &BatchGatherer::next)
        .def("close", &BatchGatherer::close);
}

}  // namespace mpbuffer::bindings
