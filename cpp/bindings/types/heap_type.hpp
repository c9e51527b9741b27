// Types made by hand, for the speed of their hot calls, and methods that pybind11 binds to them.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "numpy_api.hpp"

namespace mpbuffer::bindings {

inline PyMethodDef hot_call(const char* name, _PyCFunctionFastWithKeywords call, const char* doc) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)),
            METH_FASTCALL | METH_KEYWORDS, doc};
}

// A new object of a type whose instances are an `Object`: a head, and a state that is null so far.
template <class Object>
PyObject* new_without_state(PyTypeObject* type, PyObject*, PyObject*) {
    PyObject* self = type->tp_alloc(type, 0);
    if (self != nullptr) reinterpret_cast<Object*>(self)->state = nullptr;
    return self;
}

class HeapType {
  public:
    explicit HeapType(pybind11::handle type) : type_(type) {}

    // `call` takes `self` first. Without a docstring, unless it is among `extra`.
    template <class Call, class... Extra>
    HeapType& bind(const char* method, Call call, const Extra&... extra) {
        pybind11::options options;
        options.disable_function_signatures();
        pybind11::setattr(type_, method,
                          pybind11::cpp_function(call, pybind11::name(method),
                                                 pybind11::is_method(type_), extra...));
        return *this;
    }

    // With a docstring; inspect gets the signature "(self, /)".
    template <class Call>
    HeapType& def(const char* method, const char* doc, Call call) {
        return bind(method, call, (std::string(method) + "(self, /)\n--\n\n" + doc).c_str());
    }

    template <class Get>
    HeapType& property(const char* name, const char* doc, Get get) {
        const pybind11::handle builtin(reinterpret_cast<PyObject*>(&PyProperty_Type));
        const pybind11::cpp_function getter(get);
        pybind11::setattr(type_, name, builtin(getter, pybind11::none(), pybind11::none(), doc));
        return *this;
    }

  private:
    pybind11::handle type_;
};

}  // namespace mpbuffer::bindings
