#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <memory>
#include <optional>
#include <utility>

#include "types/registrations.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

// Exceptions of handlers: the last one, with the earlier ones as its context.
class Raised {
  public:
    void take() {
        const py::error_already_set error;
        if (last_ && !error.value().is(last_->value())) {
            PyException_SetContext(error.value().ptr(), last_->value().inc_ref().ptr());
        }
        last_.emplace(error);
    }
    void raise() {
        if (last_) throw py::error_already_set(*last_);
    }

  private:
    std::optional<py::error_already_set> last_;
};

struct Section {
    Section* outer;
    std::array<py::object, NSIG> handlers;  // that were replaced
    std::array<bool, NSIG> due{};
    Raised raised;
};

// The main thread uses them with the GIL. Never destroyed: the interpreter may still be ending.
Section* innermost = nullptr;
const py::object* getsignal = nullptr;
const py::object* set_signal = nullptr;
const py::object* take_note = nullptr;

bool in_main_thread() { return syscall(SYS_gettid) == getpid(); }

bool is_callable(const py::object& handler) { return PyCallable_Check(handler.ptr()) != 0; }

py::object handler_of(std::size_t number) {
    auto handler = py::reinterpret_steal<py::object>(
        PyObject_CallFunction(getsignal->ptr(), "i", static_cast<int>(number)));
    if (!handler) PyErr_Clear();
    return handler;
}

// Returns the handler that was replaced; none outside the thread that Python takes for the main
// one. Handlers that are due run first, may set others, and may raise; then the call is repeated.
py::object set_handler(std::size_t signal, const py::object& handler, Raised& raised) {
    constexpr int attempts = 100;
    const int number = static_cast<int>(signal);
    for (int i = 0; i < attempts; ++i) {
        struct sigaction before{};
        sigaction(number, nullptr, &before);
        auto replaced = py::reinterpret_steal<py::object>(
            PyObject_CallFunction(set_signal->ptr(), "iO", number, handler.ptr()));
        if (replaced) {
            if (is_callable(replaced) && is_callable(handler)) {
                sigaction(number, &before, nullptr);  // with its SA_RESTART
            }
            return replaced;
        }
        raised.take();
    }
    return {};
}

void note(std::size_t number) {
    for (Section* each = innermost; each != nullptr; each = each->outer) {
        if (each->handlers[number]) {
            each->due[number] = true;
            return;
        }
    }
}

// A restored handler may run, and have sections of its own, before the next one is restored.
void restore(Section& section) {
    for (std::size_t number = 1; number < NSIG; ++number) {
        const py::object& handler = section.handlers[number];
        if (!handler || !handler_of(number).is(*take_note)) continue;
        const py::object replaced = set_handler(number, handler, section.raised);
        if (replaced && !replaced.is(*take_note)) set_handler(number, replaced, section.raised);
    }
}

void enter() {
    if (!in_main_thread()) return;
    innermost = new Section{innermost, {}, {}, {}};
    Section& section = *innermost;
    for (std::size_t number = 1; number < NSIG; ++number) {
        const py::object handler = handler_of(number);
        if (!handler || !is_callable(handler) || handler.is(*take_note)) continue;
        py::object replaced = set_handler(number, *take_note, section.raised);
        if (replaced && is_callable(replaced)) {
            section.handlers[number] = std::move(replaced);
        } else if (replaced) {
            set_handler(number, replaced, section.raised);
        }
    }
}

std::unique_ptr<Section> pop() {
    return std::unique_ptr<Section>(std::exchange(innermost, innermost->outer));
}

void leave() {
    if (!in_main_thread() || innermost == nullptr) return;
    restore(*innermost);
    const std::unique_ptr<Section> section = pop();
    for (std::size_t number = 1; number < NSIG; ++number) {
        if (!section->due[number]) continue;
        const auto frame = py::reinterpret_steal<py::object>(
            reinterpret_cast<PyObject*>(PyThreadState_GetFrame(PyThreadState_Get())));
        const auto result = py::reinterpret_steal<py::object>(
            PyObject_CallFunction(section->handlers[number].ptr(), "iO", static_cast<int>(number),
                                  frame ? frame.ptr() : Py_None));
        if (!result) section->raised.take();
    }
    section->raised.raise();
}

// Signals that are due in a section are the parent's.
void forget_in_child() {
    while (innermost != nullptr) {
        restore(*innermost);
        pop();
    }
}

struct SignalsDeferred {};

}  // namespace

void add_deferred_signals_type(py::module_& module) {
    const py::module_ signals = py::module_::import("_signal");  // without Python code around it
    getsignal = new py::object(signals.attr("getsignal"));
    set_signal = new py::object(signals.attr("signal"));
    take_note = new py::object(
        py::cpp_function([](std::size_t number, const py::object&) { note(number); }));
    py::class_<SignalsDeferred>(
        module, "SignalsDeferred",
        py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type)))  // as the stub says it
        .def(py::init<>())
        .def("__enter__", [](const SignalsDeferred&) { enter(); })
        .def("__exit__", [](const SignalsDeferred&, const py::args&) { leave(); });
    py::module_::import("os").attr("register_at_fork")(py::arg("after_in_child") =
                                                           py::cpp_function(forget_in_child));
}

}  // namespace mpbuffer::bindings
