#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "base/error.hpp"
#include "base/guard.hpp"
#include "convert/field_arguments.hpp"
#include "convert/output_batch.hpp"
#include "convert/role_line.hpp"
#include "convert/sample_arguments.hpp"
#include "errors.hpp"
#include "format/ring_records.hpp"
#include "format/row_layout.hpp"
#include "format/row_schema.hpp"
#include "nstep_rows.hpp"
#include "snapshot.hpp"
#include "state.hpp"
#include "stored_rows.hpp"
#include "types/heap_type.hpp"
#include "types/registrations.hpp"
#include "write/staged_sequences.hpp"

namespace py = pybind11;

namespace pybind11::detail {

// A method's argument `self`: the state of an open buffer, or its core; BufferClosed if not open.
template <>
struct type_caster<mpbuffer::bindings::BufferState> {
    static constexpr auto name = const_name("ReplayBuffer");
    template <class>
    using cast_op_type = mpbuffer::bindings::BufferState&;
    bool load(handle object, bool) {
        state_ = &mpbuffer::bindings::state_of(object);
        return true;
    }
    operator mpbuffer::bindings::BufferState&() { return *state_; }

  private:
    mpbuffer::bindings::BufferState* state_ = nullptr;
};

template <>
struct type_caster<mpbuffer::ReplayBuffer> : type_caster<mpbuffer::bindings::BufferState> {
    template <class T>
    using cast_op_type = pybind11::detail::cast_op_type<T>;  // a pointer or a reference
    operator mpbuffer::ReplayBuffer&() {
        return *static_cast<mpbuffer::bindings::BufferState&>(*this).core;
    }
    operator mpbuffer::ReplayBuffer*() { return &static_cast<mpbuffer::ReplayBuffer&>(*this); }
};

}  // namespace pybind11::detail

namespace mpbuffer::bindings {

namespace {

using Fields = std::vector<FieldDescription>;

// As mpbuffer/buffer/frames.py has planned it: for each field the number of its source ring, how
// many planes it has, and whether along the last axis. Empty: no field is shared.
using Cuts = std::vector<std::tuple<unsigned, std::size_t, bool>>;

// Lays out the rows of these fields, and says how steps become rows if these are n-step rows or
// sequences.
RowLayout lay_out(BufferState& state, const Fields& fields, const Cuts& given_cuts, bool strict,
                  const std::optional<NstepNames>& nstep,
                  const std::optional<SequenceNames>& sequence) {
    state.rules = make_rules(fields);
    state.strict = strict;
    std::vector<Field> parts;
    for (const FieldRule& rule : state.rules) {
        parts.push_back({rule.name.cast<std::string>(), rule.row_bytes,
                         static_cast<std::size_t>(PyDataType_ALIGNMENT(rule.descr()))});
    }
    Schema schema(std::move(parts));
    for (std::size_t i = 0; i < fields.size(); ++i) {
        state.rules[i].offset = schema.fields()[i].offset;
    }
    if (nstep) {
        NstepPlan plan = plan_nstep(state.rules, schema.row_bytes(), &*nstep);
        state.steps = std::make_unique<StagedRows>(std::move(plan.rule), 1);
        state.computed = plan.computed;
        state.nstep = nstep;
    }
    if (sequence) {
        if (nstep || !given_cuts.empty()) {
            throw py::value_error("sequences have neither n-step rows nor frames");
        }
        state.sequences = plan_sequences(state.rules, schema.row_bytes(), *sequence);
        state.steps = std::make_unique<StagedSequences>(state.sequences->rule, 1);
        return RowLayout(schema, state.sequences->shape);
    }
    if (!given_cuts.empty() && given_cuts.size() != fields.size()) {
        throw py::value_error("cuts are for other fields");
    }
    std::vector<PlaneCut> cuts;
    for (std::size_t i = 0; i < given_cuts.size(); ++i) {
        const auto& [ring, planes, last_axis] = given_cuts[i];
        cuts.push_back({ring, planes, last_axis, state.rules[i].item_bytes});
    }
    return RowLayout(schema, cuts);
}

// What lies in the segment: so many sources in each source ring; 0: as many as are needed.
RingShape shape_of(const RowLayout& layout, std::uint64_t size, bool prioritized, double alpha,
                   double eps, std::uint64_t sources) {
    RingShape shape{size, layout.stored_bytes(), prioritized, alpha, eps};
    if (sources == 0) {
        sources = layout.steps() == 0
                      ? frames_for(size, layout.references())
                      : steps_for(size * layout.sources_per_row(), layout.references());
    }
    for (const std::uint64_t bytes : layout.source_bytes()) {
        shape.sources.push_back({sources, bytes});
    }
    return shape;
}

void require_unopened(py::handle self) {
    if (buffer_object(self).state != nullptr) {
        throw py::value_error("this buffer object is open already");
    }
}

// Looked at again: others ran while the state was made.
void open_on(py::handle self, std::unique_ptr<BufferState> state) {
    require_unopened(self);
    buffer_object(self).state = state.release();
}

// The state of an object that may be closed, but was opened once; else BufferClosed.
BufferState& state_ever_opened(py::handle self) {
    BufferState* const state = buffer_object(self).state;
    return state == nullptr ? state_of(self) : *state;
}

void create(py::handle self, const std::string& name, std::uint64_t size, const Fields& fields,
            const Cuts& cuts, std::uint64_t sources, bool prioritized, double alpha, double eps,
            std::uint64_t seed, bool strict, const std::optional<NstepNames>& nstep,
            const std::optional<SequenceNames>& sequence, const std::string& description,
            bool interleave_nodes, bool nameless, bool overwrite, std::uint64_t max_handles,
            bool shared, const py::object& progress, bool hidden) {
    require_unopened(self);
    auto state = std::make_unique<BufferState>();
    RowLayout layout = lay_out(*state, fields, cuts, strict, nstep, sequence);
    RingShape shape = shape_of(layout, size, prioritized, alpha, eps, sources);
    shape.max_handles = max_handles;
    SegmentOptions options;
    options.interleave_nodes = interleave_nodes;
    options.nameless = nameless;
    options.without_file = !shared;
    options.overwrite = overwrite;
    options.progress = [&progress](std::size_t done) {
        run_signal_handlers();
        running_python([&] { progress(done); });
    };
    state->core = ReplayBuffer::create({name, shape, seed, description, options, hidden});
    state->core->describe_rows(std::move(layout));
    open_on(self, std::move(state));
}

// How many rows make a segment of at most that share of what may be allocated now.
std::uint64_t largest_size(const Fields& fields, const Cuts& cuts,
                           const std::optional<SequenceNames>& sequence, bool prioritized,
                           const std::string& description, double share, bool nameless) {
    BufferState state;
    const RowLayout layout = lay_out(state, fields, cuts, false, std::nullopt, sequence);
    constexpr double largest_segment = 0x1p45;
    const auto free = static_cast<double>(largest_room(nameless ? "" : SegmentOptions().directory));
    const double room = std::min(share * free, largest_segment);
    const auto fits = [&](std::uint64_t size) {
        const RingShape shape = shape_of(layout, size, prioritized, 0.0, 0.0, 0);
        if (!shape.sources.empty() && shape.sources[0].capacity > most_sources) return false;
        return static_cast<double>(plan_segment(shape, description, 0).total_bytes) <= room;
    };
    std::uint64_t least = 0;
    std::uint64_t beyond =
        static_cast<std::uint64_t>(room) / record_layout(layout.stored_bytes()).stride + 1;
    while (beyond - least > 1) {
        const std::uint64_t middle = least + (beyond - least) / 2;
        (fits(middle) ? least : beyond) = middle;
    }
    return least;
}

py::bytes attach(py::handle self, const std::string& name, int descriptor) {
    require_unopened(self);
    auto state = std::make_unique<BufferState>();
    state->core = descriptor < 0 ? ReplayBuffer::attach(name)
                                 : ReplayBuffer::attach_descriptor(descriptor, name);
    const py::bytes description(state->core->description());
    open_on(self, std::move(state));
    return description;
}

void set_fields(BufferState& state, const Fields& fields, const Cuts& cuts, bool strict,
                const std::optional<NstepNames>& nstep,
                const std::optional<SequenceNames>& sequence) {
    state.core->describe_rows(lay_out(state, fields, cuts, strict, nstep, sequence));
}

// What a segment was created with, beside its description: rows, alpha, eps, seed, the frames of
// each source ring; and when, in ns since the epoch.
py::tuple ring_facts(const BufferState& state) {
    const SegmentHeader& header = state.core->header();
    std::vector<std::uint64_t> sources;
    for (unsigned i = 1; i < max_ring_entries && header.ring[i].used != 0; ++i) {
        sources.push_back(header.ring[i].capacity);
    }
    const RingEntry& rows = header.ring[0];
    return py::make_tuple(rows.capacity, rows.alpha, rows.eps, header.seed, sources,
                          header.created_at, py::bytes(state.core->description()));
}

// Opens `self`, an object of another class, on what `other` has open.
void take_over(py::handle self, py::handle other) {
    require_unopened(self);
    std::swap(buffer_object(self).state, buffer_object(other).state);
}

py::list fields(const BufferState& state) {
    py::list all;
    for (const FieldRule& rule : state.rules) {
        all.append(py::make_tuple(rule.name, rule.dtype, py::cast(rule.shape)));
    }
    return all;
}

bool is_closed(py::handle self) {
    const BufferState* state = buffer_object(self).state;
    return state == nullptr || !state->core->is_open();
}

void close(py::handle self) {
    if (is_closed(self)) return;
    BufferState& state = *buffer_object(self).state;
    state.core->close();
    state.sample_memory.reset();
}

std::string name(py::handle self) { return state_ever_opened(self).core->name(); }

std::optional<NstepNames> nstep(py::handle self) { return state_ever_opened(self).nstep; }

std::optional<SequenceNames> sequence(py::handle self) {
    const BufferState& state = state_ever_opened(self);
    if (!state.sequences) return std::nullopt;
    return state.sequences->names;
}

void clear(BufferState& state) {
    if (state.steps) state.steps->drop();
    state.core->clear();
    state.episode_length = 0;
}

void end_episode(BufferState& state) {
    state.episode_length = 0;
    if (!state.steps) return;
    state.steps->cut_off_all();
    write_finished(state, *state.steps, nullptr);
}

py::list processes(const ReplayBuffer& core) {
    py::list all;
    for (const ProcessStatus& each : core.processes()) {
        all.append(py::make_tuple(each.number, each.pid, std::string(1, each.state), each.rows,
                                  each.skips, each.steals));
    }
    return all;
}

// As mpbuffer/buffer/replay_buffer.py describes it, but for what only a learner has.
py::dict statistics(ReplayBuffer& core) {
    const BufferStatistics figures = core.statistics();
    py::dict all;
    all["size"] = core.capacity();
    all["fill"] = figures.fill;
    all["rows_added"] = figures.rows_added;
    all["early"] = figures.early;
    all["sources"] = figures.sources;
    all["sources_written"] = figures.sources_written;
    all["redraws"] = figures.redraws;
    all["skips"] = figures.skips;
    all["steals"] = figures.steals;
    all["handles"] = figures.handles;
    return all;
}

}  // namespace

void add_buffer_methods(py::module_& module, py::handle uniform, py::handle prioritized) {
    module.def("frames_for", frames_for, py::arg("rows"), py::arg("references"));
    module.def("largest_size", largest_size, "How many rows fit into a share of free memory.",
               py::arg("fields"), py::arg("cuts"), py::arg("sequence"), py::arg("prioritized"),
               py::arg("description"), py::arg("share"), py::arg("nameless"));
    HeapType(uniform)
        .bind("_create", create)
        .bind("_attach", attach)
        .bind("_set_fields", set_fields)
        .bind("_take_over", take_over)
        .bind("_fields", fields)
        .bind("_nstep", nstep)
        .bind("_sequence", sequence)
        .bind("_data_descriptor", [](const ReplayBuffer& core) { return core.data_descriptor(); })
        .bind("_processes", processes)
        .bind("_statistics", statistics)
        .bind("_encode_sample", rows_or_zeros_at)
        .bind("_rows_at", rows_at)
        .bind("_marked_rows", marked_rows)
        .bind("_add_rows", add_rows)
        .bind("_add_with_leaves", add_with_leaves)
        .bind("_counters", counters)
        .bind("_generator_state", generator_state)
        .bind("_read_stored", read_stored)
        .bind("_read_frames", read_frames)
        .bind("_restore_counters", restore_counters)
        .bind("_restore_stored", restore_stored)
        .bind("_restore_frames", restore_frames)
        .bind("_publish", publish)
        .bind("_ring_facts", ring_facts)
        .bind("get_all_transitions", all_rows)
        .bind("__len__", &ReplayBuffer::stored_size)
        .def("close",
             R"(Close this handle; remove the segment if it was the last one. Twice is once.

Waits for calls of other threads through this handle, not for other processes.)",
             close)
        .def("clear", R"(Remove all rows; the next one goes to slot 0. Any process may call it.

Rows that others are adding at that moment may come before or after. The
largest priority is 1.0 again.)",
             clear)
        .def("get_stored_size", R"(Return how many complete rows are there.

Exact when nobody is adding. Takes no time that depends on the size, except
once after a clear() or after a process died inside a call: then it counts.)",
             &ReplayBuffer::stored_size)
        .def("get_buffer_size", "Return how many rows fit.", &ReplayBuffer::capacity)
        .def("get_next_index", "Return the slot that the next row will go to.",
             &ReplayBuffer::next_slot)
        .def("rows_added",
             "Return how many rows all processes have added since creation, ended ones included.",
             &ReplayBuffer::rows_added)
        .def("on_episode_end", R"(End the episode: get_current_episode_len() starts again.

With ``Nstep=`` or ``sequence=``, writes the rows of add()'s last steps, each with as many steps
as there are. After a step whose flag ended the episode, none are left. Raises
what add() does; then the rows are kept, and the next call writes them.)",
             end_episode)
        .def("get_current_episode_len",
             "Return the steps added through this handle since on_episode_end() or clear().",
             [](const BufferState& state) { return state.episode_length; })
        .def("is_Nstep", "Return whether the buffer was made with ``Nstep=``.",
             [](py::handle self) { return nstep(self).has_value(); })
        .property("name", "The name that ``mpbuffer.attach`` takes: the argument, or a fresh one.",
                  name)
        .property("closed", "Whether this handle was closed.", is_closed)
        .property("_row_bytes", "Bytes of one row as it is given.", &ReplayBuffer::given_bytes)
        .property("nbytes", "Bytes of shared memory that the buffer takes, as any array's.",
                  [](const ReplayBuffer& core) { return core.segment_bytes(); })
        .property("max_handles", "How many handles may have the buffer open at once.",
                  [](const ReplayBuffer& core) { return core.max_handles(); })
        .property("shared", "Whether other processes can have the buffer, too.",
                  [](const ReplayBuffer& core) { return core.is_shared(); })
        .property("_prioritized", "Whether the segment has priorities.",
                  &ReplayBuffer::prioritized);
    HeapType(prioritized)
        .bind("_learner_status",
              [](const ReplayBuffer& core) { return dict_of_learner(core.learner_status()); })
        .def("_leaves", "Return the leaves: float32 (size,), 0 where there is nothing to draw.",
             leaves)
        .def("_tree_total", "Return the sum at the root of the learner's tree.",
             &ReplayBuffer::total)
        .def("get_max_priority",
             "Return the largest priority supplied since creation or clear(), at least 1.0.",
             &ReplayBuffer::max_priority)
        .bind("get_generations", generations)
        .bind("get_priorities", priorities)
        .bind("acquire_learner", &ReplayBuffer::take_learner_role)
        .def("release_learner",
             R"(Give up the learner's role, if this handle has it; another process can take it.

Batches gathered ahead are discarded. Only a call takes the role again.)",
             &ReplayBuffer::release_learner)
        .property("alpha", "Exponent of the priorities.",
                  [](const ReplayBuffer& core) { return core.shape().alpha; })
        .property("eps", "The number that is added to every priority.",
                  [](const ReplayBuffer& core) { return core.shape().eps; });
}

}  // namespace mpbuffer::bindings
