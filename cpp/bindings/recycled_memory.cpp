#include "recycled_memory.hpp"

#include <algorithm>
#include <utility>

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

constexpr const char* capsule_name = "mpbuffer.recycled_memory";

}  // namespace

py::object fresh_array(PyArray_Descr* descr, int ndim, const npy_intp* dims, void* data) {
    Py_INCREF(descr);
    PyObject* result = PyArray_NewFromDescr(&PyArray_Type, descr, ndim, dims, nullptr, data,
                                            data == nullptr ? 0 : NPY_ARRAY_CARRAY, nullptr);
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

// What an array's base holds: the block, and where it goes if that is still there.
struct RecycledMemory::Loan {
    std::unique_ptr<Block> block;
    std::weak_ptr<RecycledMemory> owner;
};

void RecycledMemory::keep_at_most(std::size_t bytes) {
    most_bytes_ = bytes;
    while (spare_bytes_ > most_bytes_) {
        spare_bytes_ -= spare_.front()->bytes;
        spare_.erase(spare_.begin());
    }
}

std::unique_ptr<RecycledMemory::Block> RecycledMemory::block_of(std::size_t bytes) {
    const auto found = std::find_if(spare_.rbegin(), spare_.rend(),
                                    [bytes](const auto& each) { return each->bytes == bytes; });
    if (found == spare_.rend()) {
        return std::make_unique<Block>(Block{PrivateMemory(bytes), bytes});
    }
    std::unique_ptr<Block> block = std::move(*found);
    spare_.erase(std::next(found).base());
    spare_bytes_ -= bytes;
    return block;
}

void RecycledMemory::take_back(PyObject* capsule) {
    const std::unique_ptr<Loan> loan(
        static_cast<Loan*>(PyCapsule_GetPointer(capsule, capsule_name)));
    const std::shared_ptr<RecycledMemory> owner = loan->owner.lock();
    if (!owner || owner->spare_bytes_ + loan->block->bytes > owner->most_bytes_) return;
    owner->spare_bytes_ += loan->block->bytes;
    owner->spare_.push_back(std::move(loan->block));
}

py::object RecycledMemory::array(PyArray_Descr* descr, int ndim, const npy_intp* dims) {
    auto bytes = static_cast<std::size_t>(PyDataType_ELSIZE(descr));
    for (int i = 0; i < ndim; ++i) {
        if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(dims[i]), &bytes)) {
            return fresh_array(descr, ndim, dims);  // NumPy says what is wrong with it
        }
    }
    if (bytes < least_bytes) return fresh_array(descr, ndim, dims);

    auto loan = std::make_unique<Loan>(Loan{block_of(bytes), weak_from_this()});
    py::object result = fresh_array(descr, ndim, dims, loan->block->memory.data());
    PyObject* const capsule = PyCapsule_New(loan.get(), capsule_name, take_back);
    if (capsule == nullptr) throw py::error_already_set();
    (void)loan.release();
    if (PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(result.ptr()), capsule) < 0) {
        throw py::error_already_set();
    }
    return result;
}

}  // namespace mpbuffer::bindings
