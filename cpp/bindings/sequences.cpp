#include "sequences.hpp"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "errors.hpp"
#include "nstep_rows.hpp"
#include "numpy_api.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

// The rule of an array that has the field's value for each of so many steps.
FieldRule rule_of_steps(const FieldRule& field, std::size_t steps) {
    FieldRule rule{};
    rule.name = field.name;
    rule.dtype = field.dtype;
    rule.type_number = field.type_number;
    rule.plain = field.plain;
    rule.shape = field.shape;
    rule.out_shape = field.out_shape;
    rule.item_bytes = field.item_bytes;
    rule.row_bytes = field.row_bytes;
    if (steps == 0) return rule;
    rule.steps = steps;
    rule.row_bytes *= steps;
    rule.out_shape.insert(rule.out_shape.begin() + 1, static_cast<npy_intp>(steps));
    return rule;
}

}  // namespace

SequencePlan plan_sequences(const std::vector<FieldRule>& rules, std::size_t step_bytes,
                            const SequenceNames& names) {
    const auto& [length, period, pad, state, burn_in, episodes] = names;
    SequencePlan plan{names, {episode_flags(rules)}, {length, period, {}}, {}};
    plan.rule.length = length;
    plan.rule.period = period;
    plan.rule.pad = pad;
    plan.rule.burn_in = burn_in;
    plan.rule.stride = step_bytes;
    const std::set<std::string> from_first(state.begin(), state.end());
    for (const FieldRule& rule : rules) {
        const bool first = from_first.contains(rule.name.cast<std::string>());
        plan.shape.from_first.push_back(first);
        plan.sampled.push_back(rule_of_steps(rule, first ? 0 : length));
    }
    const py::object truth = owned(PyArray_DescrFromType(NPY_BOOL));
    for (const FieldRule& rule : make_rules({{"mask", truth, {}}, {"is_first", truth, {}}})) {
        plan.sampled.push_back(rule_of_steps(rule, length));
    }
    return plan;
}

void cut_to_longest(const py::dict& batch, const std::vector<FieldRule>& sampled,
                    std::size_t time) {
    const auto of = [&batch](const FieldRule& rule) { return py::object(batch[rule.name]); };
    const py::object mask = of(sampled[sampled.size() - 2]);
    PyArrayObject* const values = array_of(mask);
    const auto* const first = values_of<const std::byte>(mask);
    const auto across = static_cast<std::size_t>(PyArray_DIM(values, 1));
    const auto total = static_cast<std::size_t>(PyArray_SIZE(values));
    std::size_t longest = 0;
    for (std::size_t at = 0; at < total; ++at) {
        if (first[at] != std::byte{0}) {
            longest = std::max(longest, (time == 0 ? at / across : at % across) + 1);
        }
    }
    const py::slice present(py::int_(0), py::int_(longest), py::none());
    const py::slice all{py::none(), py::none(), py::none()};
    for (const FieldRule& rule : sampled) {
        if (rule.steps == 0) continue;
        const py::object whole = of(rule);
        batch[rule.name] =
            time == 0 ? whole[present] : py::object(whole[py::make_tuple(all, present)]);
    }
}

}  // namespace mpbuffer::bindings
