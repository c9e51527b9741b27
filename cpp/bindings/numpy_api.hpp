// NumPy's C API, imported once for all files of the extension (by module.cpp), and its objects as
// pybind11 has them.
#pragma once

#include <pybind11/pybind11.h>

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL mpbuffer_numpy_api
#ifndef MPBUFFER_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>
#include <numpy/arrayscalars.h>

#include <cstddef>

#include "gil.hpp"

namespace mpbuffer::bindings {

// A new reference; throws the Python error that is set if there is none.
inline pybind11::object owned(PyObject* reference) {
    if (reference == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(reference);
}
inline pybind11::object owned(PyArray_Descr* reference) {
    return owned(reinterpret_cast<PyObject*>(reference));
}

inline PyArrayObject* array_of(pybind11::handle array) {
    return reinterpret_cast<PyArrayObject*>(array.ptr());
}
inline PyArray_Descr* descr_of(pybind11::handle dtype) {
    return reinterpret_cast<PyArray_Descr*>(dtype.ptr());
}
inline pybind11::handle dtype_of(PyArrayObject* array) {
    return reinterpret_cast<PyObject*>(PyArray_DESCR(array));
}

template <class Value>
Value* values_of(pybind11::handle array) {
    return static_cast<Value*>(PyArray_DATA(array_of(array)));
}

// C-contiguous, aligned and in native byte order; `flags` may add NPY_ARRAY_FORCECAST. The array
// itself where it is that already. A new reference, or nullptr with the Python error set. May run
// Python code. Steals `descr`.
inline PyObject* native_array(PyArrayObject* from, PyArray_Descr* descr,
                              int flags = NPY_ARRAY_FORCECAST) {
    constexpr int native = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED | NPY_ARRAY_NOTSWAPPED;
    return running_python([=] { return PyArray_FromArray(from, descr, native | flags); });
}
// The same; throws the error.
inline pybind11::object native_array(PyArrayObject* from, int type_number,
                                     int flags = NPY_ARRAY_FORCECAST) {
    return owned(native_array(from, PyArray_DescrFromType(type_number), flags));
}

// A new array of shape (count,), whose values are not set.
inline pybind11::object new_array(std::size_t count, int type_number) {
    npy_intp dims[1] = {static_cast<npy_intp>(count)};
    return owned(PyArray_SimpleNew(1, dims, type_number));
}

}  // namespace mpbuffer::bindings
