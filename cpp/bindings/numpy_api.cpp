#include "numpy_api.hpp"

#include "gil.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

PyObject* native_array(PyArrayObject* from, PyArray_Descr* descr, int flags) {
    constexpr int native = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED | NPY_ARRAY_NOTSWAPPED;
    return running_python([=] { return PyArray_FromArray(from, descr, native | flags); });
}

py::object native_array(PyArrayObject* from, int type_number, int flags) {
    return owned(native_array(from, PyArray_DescrFromType(type_number), flags));
}

py::object new_array(std::size_t count, int type_number) {
    npy_intp dims[1] = {static_cast<npy_intp>(count)};
    return owned(PyArray_SimpleNew(1, dims, type_number));
}

}  // namespace mpbuffer::bindings
