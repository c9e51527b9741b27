#include "state.hpp"

#include <atomic>

#include "base/error.hpp"
#include "errors.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

PyTypeObject* buffer_type = nullptr;

BufferState::BufferState() {
    static std::atomic<std::uint64_t> handles{0};
    handle = ++handles;
}

BufferObject& buffer_object(py::handle object) {
    if (PyObject_TypeCheck(object.ptr(), buffer_type) == 0) {
        throw_python(PyExc_TypeError, "expected a buffer, got a " + type_in_words(object.ptr()));
    }
    return *reinterpret_cast<BufferObject*>(object.ptr());
}

BufferState& state_of(py::handle object) { return state_of(buffer_object(object)); }

BufferState& state_of(BufferObject& object) {
    BufferState* state = object.state;
    if (state == nullptr) {
        throw BufferClosed("cannot use this " +
                           type_in_words(reinterpret_cast<PyObject*>(&object)) +
                           ": it is not open; a subclass calls super().__init__(...) in its "
                           "__init__ first");
    }
    if (!state->core->is_open()) {
        throw BufferClosed("cannot use '" + state->core->name() + "': this handle was closed");
    }
    return *state;
}

}  // namespace mpbuffer::bindings
