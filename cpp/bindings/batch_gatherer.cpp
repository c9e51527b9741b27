#include "batch_gatherer.hpp"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "error.hpp"
#include "errors.hpp"
#include "guard.hpp"
#include "hot_calls.hpp"
#include "output_batch.hpp"
#include "shared_work.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

// How often a waiting thread looks whether a signal has come.
constexpr auto signal_check = std::chrono::milliseconds(50);

struct Job {
    Job(const BufferState& state, const py::dict& dict, std::size_t rows, double beta,
        bool return_indexes)
        : prioritized(state.core->prioritized()),
          rows(rows),
          beta(beta),
          arrays(dict),
          batch(state, rows, {prioritized, prioritized || return_indexes}, dict.ptr()) {}

    bool prioritized;
    std::size_t rows;
    double beta;
    py::dict arrays;
    OutputBatch batch;
    std::exception_ptr error;
};

}  // namespace

struct BatchGatherer::Workshop {
    explicit Workshop(ReplayBuffer& core) : core(core) {
        const SignalsBlocked in_new_thread;
        thread = std::thread([this] { work(); });
    }

    void work() {
        std::unique_lock lock(mutex);
        for (;;) {
            wanted.wait(lock, [this] { return stopping || done < jobs.size(); });
            if (stopping) return;
            Job& job = *jobs[done];
            lock.unlock();
            try {
                if (job.prioritized) {
                    core.gather(job.rows, job.beta, job.batch.target());
                } else {
                    core.gather_uniform(job.rows, job.batch.target());
                }
            } catch (...) {
                job.error = std::current_exception();
            }
            lock.lock();
            ++done;
            finished.notify_all();
        }
    }

    ReplayBuffer& core;
    std::mutex mutex;
    std::condition_variable wanted;
    std::condition_variable finished;
    std::deque<std::unique_ptr<Job>> jobs;  // the first `done` of them are finished
    std::size_t done = 0;
    bool stopping = false;
    std::thread thread;
};

BatchGatherer::BatchGatherer(py::object buffer, bool return_indexes)
    : buffer_(std::move(buffer)), return_indexes_(return_indexes), made_in_(fork_generation()) {
    (void)state_of(buffer_);
}

BatchGatherer::~BatchGatherer() { clear(); }

void BatchGatherer::clear() {
    if (in_child()) {
        (void)workshop_.release();
    } else {
        discard();
    }
    buffer_ = py::object();
}

bool BatchGatherer::in_child() const { return made_in_ != fork_generation(); }

BatchGatherer::Workshop& BatchGatherer::workshop() {
    if (in_child()) {
        throw_python(PyExc_RuntimeError,
                     "cannot take batches in a forked child: they are gathered by a thread of its "
                     "parent; call batches() there");
    }
    if (!buffer_) throw BufferClosed("cannot take a batch: the collector has ended these batches");
    if (!workshop_) workshop_ = std::make_unique<Workshop>(*state_of(buffer_).core);
    return *workshop_;
}

void BatchGatherer::submit(const py::dict& arrays, std::size_t rows, double beta) {
    Workshop& shop = workshop();
    auto job = std::make_unique<Job>(state_of(buffer_), arrays, rows, beta, return_indexes_);
    const std::scoped_lock lock(shop.mutex);
    shop.jobs.push_back(std::move(job));
    shop.wanted.notify_one();
}

py::dict BatchGatherer::take() {
    Workshop& shop = workshop();
    std::unique_ptr<Job> job;
    while (!job) {
        {
            const CoreCall call;
            let_others_run();
            std::unique_lock lock(shop.mutex);
            if (shop.jobs.empty()) throw InvalidArgument("cannot take a batch: none was submitted");
            if (shop.finished.wait_for(lock, signal_check, [&shop] { return shop.done > 0; })) {
                job = std::move(shop.jobs.front());
                shop.jobs.pop_front();
                --shop.done;
            }
        }
        if (!job) run_signal_handlers();
    }
    if (job->error) std::rethrow_exception(job->error);
    return job->arrays;
}

void BatchGatherer::discard() {
    if (in_child() || !workshop_) return;
    {
        const CoreCall call;
        let_others_run();
        {
            const std::scoped_lock lock(workshop_->mutex);
            workshop_->stopping = true;
        }
        workshop_->wanted.notify_all();
        workshop_->thread.join();
    }
    workshop_.reset();
}

namespace {

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
    if (BatchGatherer* gatherer = gatherer_in(self)) gatherer->clear();
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
        .def(py::init<py::object, bool>(), py::arg("buffer"), py::arg("return_indexes"))
        .def("submit", &BatchGatherer::submit, py::arg("arrays"), py::arg("rows"), py::arg("beta"))
        .def("take", &BatchGatherer::take)
        .def("discard", &BatchGatherer::discard);
}

}  // namespace mpbuffer::bindings
