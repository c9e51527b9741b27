// mpbuffer._core: the types, and the calls for which there is no object.
#define MPBUFFER_IMPORTS_NUMPY
#include <chrono>
#include <cmath>

#include "base/error.hpp"
#include "convert/field_rules.hpp"
#include "errors.hpp"
#include "gil.hpp"
#include "numpy_api.hpp"
#include "os/end_with_learner.hpp"
#include "segment/names.hpp"
#include "source_digest.hpp"
#include "types/registrations.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

void end_process_with_learner(pid_t pid, std::uint64_t start_time, double grace, int status) {
    end_with_learner(pid, start_time, std::chrono::milliseconds(std::lround(grace * 1e3)), status);
}

// Handles, locks and the learner's role are one process's, whatever its interpreters.
int refuse_subinterpreters(PyObject*) {
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) return 0;
    PyErr_SetString(PyExc_ImportError,
                    "cannot import mpbuffer in a subinterpreter: it works in the main interpreter "
                    "only; use a process instead");
    return -1;
}

}  // namespace

PYBIND11_MODULE_EXEC(_core, module) {
    if (_import_array() < 0) throw py::error_already_set();
    install_program_lock();
    translate_core_errors();
    module.doc() = "The core of mpbuffer: buffers in shared memory. Use mpbuffer instead.";
    module.attr("source_digest") = mpbuffer_source_digest;
    add_buffer_types(module);
    add_batch_gatherer_type(module);
    add_deferred_signals_type(module);
    add_segment_calls(module);
    add_step_writer_type(module);
    add_weights_type(module);
    module.def("converted", converted_to, py::arg("what"), py::arg("value"), py::arg("dtype"));
    add_file_calls(module);
    module.def("end_by_signal", end_by_signal, py::arg("signal"));
    module.def("end_with_learner", end_process_with_learner, py::arg("pid"), py::arg("start_time"),
               py::arg("grace"), py::arg("status"));
}

// In place of pybind11's own, which hangs in a subinterpreter before Python 3.12. Subinterpreters
// are declared as supported, or Python would refuse some without a reason. Free-threaded builds are
// not: they turn the GIL on.
PYBIND11_PLUGIN_IMPL(_core) {
    static PyModuleDef_Slot slots[] = {
        {Py_mod_exec, reinterpret_cast<void*>(refuse_subinterpreters)},
        {Py_mod_exec, reinterpret_cast<void*>(pybind11_exec__core)},
#ifdef Py_mod_multiple_interpreters
        {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
        {0, nullptr}};
    static PyModuleDef definition{
        PyModuleDef_HEAD_INIT, "_core", nullptr, 0, nullptr, slots, nullptr, nullptr, nullptr};
    return PyModuleDef_Init(&definition);
}

}  // namespace mpbuffer::bindings
