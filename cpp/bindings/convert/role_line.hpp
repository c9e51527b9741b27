// What a role's holder last said of itself, as Python sees it: times in seconds.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "format/role_line.hpp"

namespace mpbuffer::bindings {

inline double in_seconds(std::uint64_t nanoseconds) {
    return static_cast<double>(nanoseconds) * 1e-9;
}

// process, pid, since.
inline pybind11::dict dict_of_holder(const RoleHolder& holder) {
    pybind11::dict all;
    all["process"] = holder.process;
    all["pid"] = holder.pid;
    all["since"] = in_seconds(holder.since);
    return all;
}

// The same, and the figures of a learner.
inline pybind11::dict dict_of_learner(const RoleLine& line) {
    pybind11::dict all = dict_of_holder(line.holder);
    all["folded"] = line.figures.folded;
    all["sampleable"] = line.figures.sampleable;
    all["total"] = line.figures.total;
    all["least_leaf"] = line.figures.least_leaf;
    all["updates"] = line.figures.updates;
    all["stale"] = line.figures.stale;
    all["draws"] = line.figures.draws;
    all["nodes_visited"] = line.figures.nodes_visited;
    all["rows_folded"] = line.figures.rows_folded;
    return all;
}

}  // namespace mpbuffer::bindings
