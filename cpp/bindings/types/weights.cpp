#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "convert/role_line.hpp"
#include "errors.hpp"
#include "numpy_api.hpp"
#include "types/registrations.hpp"
#include "weights/shared_weights.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

// Ctrl-C interrupts the creation.
SegmentOptions interruptible_options() {
    SegmentOptions options;
    options.progress = [](std::size_t) { run_signal_handlers(); };
    return options;
}

struct Parts {
    std::vector<std::byte*> pointers;
    std::vector<std::uint64_t> bytes;
};

// The memory of C-contiguous arrays, which stay alive as long as the list that they came in.
Parts parts_of(const py::list& arrays, bool to_write) {
    Parts parts;
    for (const py::handle each : arrays) {
        if (!PyArray_Check(each.ptr())) throw_python(PyExc_TypeError, "expected NumPy arrays");
        PyArrayObject* const array = array_of(each);
        const int needed = NPY_ARRAY_C_CONTIGUOUS | (to_write ? NPY_ARRAY_WRITEABLE : 0);
        if (!PyArray_CHKFLAGS(array, needed)) {
            throw_python(PyExc_ValueError, to_write ? "expected writable C-contiguous arrays"
                                                    : "expected C-contiguous arrays");
        }
        parts.pointers.push_back(static_cast<std::byte*>(PyArray_DATA(array)));
        parts.bytes.push_back(static_cast<std::uint64_t>(PyArray_NBYTES(array)));
    }
    return parts;
}

Parts parts_for(const SharedWeights& core, const py::list& arrays, bool to_write) {
    Parts parts = parts_of(arrays, to_write);
    if (parts.bytes != core.part_bytes()) {
        throw_python(PyExc_ValueError, "expected arrays of the lengths of the first version");
    }
    return parts;
}

std::unique_ptr<SharedWeights> create(const std::string& name, unsigned slots,
                                      const py::list& arrays, const std::string& description,
                                      bool nameless, bool overwrite, unsigned max_handles) {
    const Parts parts = parts_of(arrays, false);
    const std::vector<const std::byte*> first(parts.pointers.begin(), parts.pointers.end());
    SegmentOptions options = interruptible_options();
    options.nameless = nameless;
    options.overwrite = overwrite;
    return SharedWeights::create({name, parts.bytes, slots, description, options, max_handles},
                                 first);
}

std::unique_ptr<SharedWeights> attach(const std::string& name, int descriptor) {
    return descriptor < 0
               ? SharedWeights::attach(name, interruptible_options())
               : SharedWeights::attach_descriptor(descriptor, name, interruptible_options());
}

std::uint64_t publish(SharedWeights& core, const py::list& arrays) {
    const Parts parts = parts_for(core, arrays, false);
    const std::vector<const std::byte*> sources(parts.pointers.begin(), parts.pointers.end());
    return core.publish(sources);
}

double age_of(const Publication& publication) {
    const std::uint64_t now = monotonic_ns();
    return now < publication.published_at ? 0.0 : in_seconds(now - publication.published_at);
}

py::object read(SharedWeights& core, const py::list& arrays, std::uint64_t newer_than) {
    const Parts parts = parts_for(core, arrays, true);
    const Publication got = core.read(parts.pointers, newer_than);
    if (got.version == 0) return py::none();
    return py::make_tuple(got.version, age_of(got));
}

}  // namespace

void add_weights_type(py::module_& module) {
    // An ordinary metaclass, as stubs can say it.
    py::class_<SharedWeights, std::unique_ptr<SharedWeights>>(
        module, "WeightsHandle", "One handle of shared weights.",
        py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type)))
        .def_static("create", create, py::arg("name"), py::arg("slots"), py::arg("arrays"),
                    py::arg("description"), py::arg("nameless"), py::arg("overwrite"),
                    py::arg("max_handles"))
        .def_static("attach", attach, py::arg("name"), py::arg("descriptor") = -1)
        .def("set_parts", &SharedWeights::set_parts, py::arg("part_bytes"))
        .def("publish", publish, py::arg("arrays"))
        .def("read", read, py::arg("arrays"), py::arg("newer_than"))
        .def("latest",
             [](const SharedWeights& core) {
                 const Publication latest = core.latest();
                 return py::make_tuple(latest.version, age_of(latest));
             })
        .def("newest", &SharedWeights::newest)
        .def("publisher",
             [](const SharedWeights& core) {
                 const RoleHolder status = core.publisher();
                 return py::make_tuple(status.process, status.pid, in_seconds(status.since));
             })
        .def("release_publisher", &SharedWeights::release_publisher)
        .def("close", &SharedWeights::close)
        .def("is_open", &SharedWeights::is_open)
        .def("max_handles", &SharedWeights::max_handles)
        .def("name", &SharedWeights::name)
        .def("description", [](const SharedWeights& core) { return py::bytes(core.description()); })
        .def("repeated_reads", &SharedWeights::repeated_reads)
        .def("data_descriptor", &SharedWeights::data_descriptor);
}

}  // namespace mpbuffer::bindings
