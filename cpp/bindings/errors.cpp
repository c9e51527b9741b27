#include "errors.hpp"

#include <exception>
#include <new>

#include "base/error.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

void set_named(const char* name, const char* message) {
    const py::object type = py::module_::import("mpbuffer.errors").attr(name);
    PyErr_SetString(type.ptr(), message);
}

void set_os_error(const SystemFailure& error) {
    const auto value = py::reinterpret_steal<py::object>(
        PyObject_CallFunction(PyExc_OSError, "is", error.code, error.what()));
    if (value) PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(value.ptr())), value.ptr());
}

void translate() {
    try {
        throw;
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const SegmentNotFound& error) {
        set_named("SegmentNotFound", error.what());
    } catch (const SegmentExists& error) {
        set_named("SegmentExists", error.what());
    } catch (const SegmentMismatch& error) {
        set_named("SegmentMismatch", error.what());
    } catch (const NotEnoughMemory& error) {
        set_named("NotEnoughMemory", error.what());
    } catch (const ProcessTableFull& error) {
        set_named("ProcessTableFull", error.what());
    } catch (const LearnerBusy& error) {
        set_named("LearnerBusy", error.what());
    } catch (const PublisherBusy& error) {
        set_named("PublisherBusy", error.what());
    } catch (const SlotsHeld& error) {
        set_named("SlotsHeld", error.what());
    } catch (const EmptyBuffer& error) {
        set_named("EmptyBuffer", error.what());
    } catch (const BufferClosed& error) {
        set_named("BufferClosed", error.what());
    } catch (const SystemFailure& error) {
        set_os_error(error);
    } catch (const InvalidArgument& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const IndexOutOfRange& error) {
        PyErr_SetString(PyExc_IndexError, error.what());
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
}

}  // namespace

void run_signal_handlers() {
    if (running_python(PyErr_CheckSignals) != 0) throw py::error_already_set();
}

void translate_core_errors() {
    py::register_local_exception_translator([](std::exception_ptr error) {
        if (!error) return;
        try {
            std::rethrow_exception(error);
        } catch (const Error&) {
            set_python_error();
        }
    });
}

void set_python_error() {
    try {
        translate();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (...) {
        PyErr_SetString(PyExc_SystemError, "mpbuffer: an exception that is no std::exception");
    }
}

void throw_python(PyObject* type, const std::string& message) {
    PyErr_SetString(type, message.c_str());
    throw py::error_already_set();
}

void throw_python_from(PyObject* type, const std::string& message) {
    py::raise_from(type, message.c_str());
    throw py::error_already_set();
}

}  // namespace mpbuffer::bindings
