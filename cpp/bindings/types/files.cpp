#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "base/crc32.hpp"
#include "base/error.hpp"
#include "base/guard.hpp"
#include "errors.hpp"
#include "numpy_api.hpp"
#include "os/durable_files.hpp"
#include "types/registrations.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

// Path, head, and the array whose bytes come behind it.
using Given = std::tuple<std::string, py::bytes, py::object>;

// For each file its descriptor and its CRC-32.
std::vector<std::tuple<int, std::uint32_t>> write_arrays(const std::vector<Given>& given) {
    std::vector<NewFile> files;
    for (const auto& [path, head, values] : given) {
        if (PyArray_Check(values.ptr()) == 0 || !PyArray_IS_C_CONTIGUOUS(array_of(values))) {
            throw_python(PyExc_ValueError,
                         "cannot write " + path + ": expected a C-contiguous numpy.ndarray");
        }
        const std::string_view text = head;
        files.push_back({path,
                         std::as_bytes(std::span(text)),
                         {values_of<const std::byte>(values),
                          static_cast<std::size_t>(PyArray_NBYTES(array_of(values)))}});
    }
    {
        const CoreCall call;
        let_others_run();
        write_files(files);
    }
    std::vector<std::tuple<int, std::uint32_t>> written;
    for (const NewFile& file : files) written.emplace_back(file.descriptor, file.crc32);
    return written;
}

void sync_open_files(const std::vector<int>& descriptors) {
    const CoreCall call;
    let_others_run();
    sync_files(descriptors);
}

std::uint32_t crc32_of(const py::buffer& data, std::uint32_t before) {
    const py::buffer_info memory = data.request();
    const CoreCall call;
    let_others_copy(static_cast<std::size_t>(memory.size * memory.itemsize));
    return crc32({static_cast<const std::byte*>(memory.ptr),
                  static_cast<std::size_t>(memory.size * memory.itemsize)},
                 before);
}

}  // namespace

void add_file_calls(py::module_& module) {
    module.def("write_files", write_arrays, py::arg("files"));
    module.def("crc32", crc32_of, py::arg("data"), py::arg("before") = 0);
    module.def("sync_files", sync_open_files, py::arg("descriptors"));
}

}  // namespace mpbuffer::bindings
