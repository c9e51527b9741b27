#include "inspect/inspection.hpp"

#include <pybind11/stl.h>

#include "base/guard.hpp"
#include "base/words.hpp"
#include "convert/role_line.hpp"
#include "numpy_api.hpp"
#include "segment/names.hpp"
#include "segment/segment_file.hpp"
#include "segment/sweep.hpp"
#include "types/registrations.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

py::dict dict_of_weights(const Inspection& report) {
    py::dict all;
    all["slots"] = report.header.weights.slots;
    all["bytes"] = report.header.weights.bytes;
    all["version"] = report.weights.version;
    all["newest"] = report.weights.newest;
    all["age"] = in_seconds(report.weights.age);
    all["reads"] = report.weights.reads;
    all["repeats"] = report.weights.repeats;
    all["in_reads"] = report.weights.in_reads;
    return all;
}

py::list list_of_processes(const Inspection& report) {
    py::list all;
    for (const InspectedProcess& each : report.processes) {
        py::dict one;
        one["number"] = each.number;
        one["pid"] = each.pid;
        one["state"] = std::string(1, each.state);
        one["state_in_words"] = state_in_words(each.state);
        one["rows"] = each.rows;
        one["skips"] = each.skips;
        one["steals"] = each.steals;
        one["registered_at"] = in_seconds(each.registered_at);
        one["busy"] = each.busy;
        all.append(one);
    }
    return all;
}

py::list list_of_sources(const Inspection& report, bool every_slot) {
    py::list all;
    for (const InspectedSources& each : report.sources) {
        py::dict one;
        one["sources"] = each.capacity;
        one["bytes"] = each.bytes;
        one["claimed"] = each.claimed;
        one["written"] = each.written;
        if (every_slot) {
            one["stored"] = each.stored;
            one["claims"] = each.claims;
            one["abandoned_claims"] = each.abandoned_claims;
        }
        all.append(one);
    }
    return all;
}

py::dict inspect(const std::string& name, bool every_slot) {
    const Inspection report = [&] {
        const CoreCall call;
        let_others_run();
        return inspect_segment(name, every_slot ? Scrutiny::every_slot : Scrutiny::figures);
    }();
    py::dict all;
    all["name"] = report.name;
    all["path"] = report.path;
    all["nameless"] = report.nameless;
    all["bytes"] = report.bytes;
    all["live"] = report.live;
    all["damages"] = report.damages;
    all["damage"] = report.damage;
    all["notes"] = report.notes;
    all["readable"] = report.refusal.empty();
    if (!report.refusal.empty()) return all;
    all["format"] = format_in_words(report.header.format);
    all["created_at"] = in_seconds(report.header.created_at);
    all["max_handles"] = report.header.max_handles;
    all["description"] = py::bytes(report.description);  // a damaged one need not be text
    all["processes"] = list_of_processes(report);
    if (report.header.kind == SegmentKind::weights) {
        all["weights"] = dict_of_weights(report);
        all["publisher"] = dict_of_holder(report.role.line.holder);
        all["publisher"]["role_held"] = report.role.held;
        return all;
    }
    const RingEntry& ring = report.header.ring[0];
    all["prioritized"] = ring.prioritized != 0;
    all["size"] = ring.capacity;
    all["row_bytes"] = ring.row_bytes;
    all["stride"] = ring.stride;
    all["alpha"] = ring.alpha;
    all["eps"] = ring.eps;
    all["position"] = report.position;
    all["clear_before"] = report.clear_before;
    all["rows"] = report.rows;
    all["max_priority"] = report.max_priority;
    all["rows_added"] = report.rows_added;
    all["early"] = report.early;
    all["sources"] = list_of_sources(report, every_slot);
    all["learner"] = dict_of_learner(report.role.line);
    all["learner"]["role_held"] = report.role.held;
    all["learner"]["published_at"] = in_seconds(report.role.line.figures.published_at);
    if (every_slot) {
        all["claims"] = report.claims;
        all["abandoned_claims"] = report.abandoned_claims;
    }
    return all;
}

// As os.listdir gives them: what has our prefix need not be a name of ours, nor text.
py::list list_of_names(const std::vector<std::string>& names) {
    py::list all;
    for (const std::string& name : names) {
        all.append(owned(
            PyUnicode_DecodeFSDefaultAndSize(name.data(), static_cast<Py_ssize_t>(name.size()))));
    }
    return all;
}

py::list segments() { return list_of_names(list_segments()); }

py::list sweep(bool look_only) {
    return list_of_names(sweep_segments(SegmentOptions{}.directory, look_only));
}

}  // namespace

void add_segment_calls(py::module_& module) {
    module.def("inspect", inspect, py::arg("name"), py::arg("every_slot"),
               "What a segment of this user looks like, without becoming part of it.");
    module.def("segments", segments, "Names of this user's segments, dead ones included.");
    module.def("sweep", sweep, py::arg("look_only") = false,
               "Removes this user's dead segments and returns their names.");
    module.def("generate_name", generate_name, "A name for a segment without one.");
}

}  // namespace mpbuffer::bindings
