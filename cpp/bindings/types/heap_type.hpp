// Types made by hand, for the speed of their hot calls, and methods that pybind11 binds to them.
#pragma once

#include <pybind11/pybind11.h>

namespace mpbuffer::bindings {

inline PyMethodDef hot_call(const char* name, _PyCFunctionFastWithKeywords call, const char* doc) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)),
            METH_FASTCALL | METH_KEYWORDS, doc};
}

class HeapType {
  public:
    explicit HeapType(pybind11::handle type) : type_(type) {
        signatures_.disable_function_signatures();  // the docstrings have them
    }

    // `call` takes `self` first.
    template <class Call, class... Extra>
    HeapType& def(const char* method, Call call, const Extra&... extra) {
        namespace py = pybind11;
        py::setattr(type_, method,
                    py::cpp_function(call, py::name(method), py::is_method(type_), extra...));
        return *this;
    }

    template <class Get>
    HeapType& property(const char* name, Get get, const char* doc) {
        namespace py = pybind11;
        const py::handle builtin(reinterpret_cast<PyObject*>(&PyProperty_Type));
        py::setattr(type_, name,
                    builtin(py::cpp_function(get), py::none(), py::none(), py::str(doc)));
        return *this;
    }

  private:
    pybind11::handle type_;
    pybind11::options signatures_;
};

}  // namespace mpbuffer::bindings
