#include "convert/recycled_memory.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "gil.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

constexpr const char* capsule_name = "mpbuffer.recycled_memory";

}  // namespace

py::object fresh_array(PyArray_Descr* descr, int ndim, const npy_intp* dims, void* data) {
    Py_INCREF(descr);
    return owned(PyArray_NewFromDescr(&PyArray_Type, descr, ndim, dims, nullptr, data,
                                      data == nullptr ? 0 : NPY_ARRAY_CARRAY, nullptr));
}

// Held by an array's base: one block, and the memory that it returns to, if that still exists.
struct RecycledMemory::Loan {
    Blocks block;
    std::weak_ptr<RecycledMemory> owner;
};

std::size_t RecycledMemory::bytes_kept() const {
    const auto add = [](std::size_t sum, const Block& block) { return sum + block.bytes; };
    return std::accumulate(returned_.begin(), returned_.end(),
                           std::accumulate(spare_.begin(), spare_.end(), std::size_t{0}, add), add);
}

void RecycledMemory::keep_at_most(std::size_t bytes) {
    most_bytes_ = bytes;
    Blocks dropped;  // last of all: freeing a tensor may run anything
    for (Blocks* blocks : {&spare_, &returned_}) {
        while (!blocks->empty() && bytes_kept() > most_bytes_) {
            dropped.splice(dropped.end(), *blocks, blocks->begin());
        }
    }
}

void RecycledMemory::take_back(PyObject* capsule) noexcept {
    const std::unique_ptr<Loan> loan(
        static_cast<Loan*>(PyCapsule_GetPointer(capsule, capsule_name)));
    const std::shared_ptr<RecycledMemory> owner = loan->owner.lock();
    if (!owner || owner->bytes_kept() + loan->block.front().bytes > owner->most_bytes_) return;
    owner->returned_.splice(owner->returned_.end(), loan->block);
}

// One event for all blocks that have come back since the last one. They are moved before it is
// recorded: a block that comes back while Python code runs here needs a later one.
void RecycledMemory::mark_returned() {
    if (returned_.empty()) return;
    Blocks returned = std::exchange(returned_, {});
    if (torch_) {
        const py::object event = running_python([this] {
            py::object made = torch_.attr("cuda").attr("Event")();
            made.attr("record")();
            return made;
        });
        for (Block& block : returned) block.copied = event;
    }
    spare_.splice(spare_.end(), returned);
}

bool RecycledMemory::may_be_reused(const Block& block) const {
    return !torch_ ||
           running_python([&block] { return block.copied.attr("query")().cast<bool>(); });
}

// One block, or none. Only the oldest block's event is queried: later ones hardly end before it.
RecycledMemory::Blocks RecycledMemory::spare_block(std::size_t bytes) {
    mark_returned();
    Blocks found;
    const auto oldest = std::find_if(spare_.begin(), spare_.end(),
                                     [bytes](const Block& each) { return each.bytes == bytes; });
    if (oldest == spare_.end()) return found;
    found.splice(found.end(), spare_, oldest);  // before Python code runs, which may take it too
    if (!may_be_reused(found.front())) spare_.splice(spare_.begin(), found);
    return found;
}

RecycledMemory::Blocks RecycledMemory::new_block(std::size_t bytes) const {
    Blocks made(1);
    Block& block = made.front();
    block.bytes = bytes;
    if (torch_) {
        block.pinned = running_python([this, bytes] {
            return torch_.attr("empty")(bytes, py::arg("dtype") = torch_.attr("uint8"),
                                        py::arg("pin_memory") = true);
        });
        const auto address = block.pinned.attr("data_ptr")().cast<std::uintptr_t>();
        block.data = reinterpret_cast<std::byte*>(address);
    } else {
        block.own = PrivateMemory(bytes);
        block.data = block.own.data();
    }
    return made;
}

py::object RecycledMemory::array(PyArray_Descr* descr, int ndim, const npy_intp* dims) {
    auto bytes = static_cast<std::size_t>(PyDataType_ELSIZE(descr));
    for (int i = 0; i < ndim; ++i) {
        if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(dims[i]), &bytes)) {
            return fresh_array(descr, ndim, dims);  // NumPy says what is wrong with it
        }
    }
    if (bytes < (torch_ ? 1 : least_bytes)) return fresh_array(descr, ndim, dims);

    Blocks block = spare_block(bytes);
    if (block.empty()) block = new_block(bytes);
    auto loan = std::make_unique<Loan>(Loan{std::move(block), weak_from_this()});
    py::object result = fresh_array(descr, ndim, dims, loan->block.front().data);
    PyObject* const capsule = PyCapsule_New(loan.get(), capsule_name, take_back);
    if (capsule == nullptr) throw py::error_already_set();
    (void)loan.release();
    if (PyArray_SetBaseObject(array_of(result), capsule) < 0) {
        throw py::error_already_set();
    }
    return result;
}

}  // namespace mpbuffer::bindings
