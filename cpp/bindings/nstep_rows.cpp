#include "nstep_rows.hpp"

#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "base/round_up.hpp"
#include "convert/field_arguments.hpp"
#include "convert/output_batch.hpp"
#include "errors.hpp"
#include "state.hpp"

namespace py = pybind11;

namespace mpbuffer::bindings {

namespace {

const FieldRule* find_rule(const std::vector<FieldRule>& rules, const std::string& name) {
    for (const FieldRule& rule : rules) {
        if (rule.name.cast<std::string>() == name) return &rule;
    }
    return nullptr;
}

const FieldRule& rule_named(const std::vector<FieldRule>& rules, const std::string& name) {
    const FieldRule* rule = find_rule(rules, name);
    if (rule == nullptr) throw py::value_error("n-step rows need field '" + name + "'");
    return *rule;
}

FloatField float_field(const FieldRule& rule) {
    if (rule.type_number != NPY_FLOAT && rule.type_number != NPY_DOUBLE) {
        throw py::value_error("field " + rule.text() + " is neither float32 nor float64");
    }
    return {rule.offset, rule.row_bytes / rule.item_bytes, rule.type_number == NPY_DOUBLE};
}

std::optional<EpisodeFlag> find_flag(const std::vector<FieldRule>& rules, const char* name) {
    const FieldRule* rule = find_rule(rules, name);
    if (rule == nullptr || !rule->one_element || rule->item_bytes > 8) return std::nullopt;
    // No integer of another package has only the bit set that is a float's sign.
    const bool floating =
        PyTypeNum_ISFLOAT(rule->type_number) || PyTypeNum_ISUSERDEF(rule->type_number);
    if (!floating && !PyTypeNum_ISINTEGER(rule->type_number) &&
        !PyTypeNum_ISBOOL(rule->type_number)) {
        return std::nullopt;
    }
    return EpisodeFlag{rule->offset, rule->item_bytes, floating};
}

// Calls the function for the priorities of finished rows.
void compute_priorities(BufferState& state, RowBatch& batch, PyObject* priorities_of) {
    const std::size_t n = batch.rows();
    const OutputArrays output(state, n);
    for (std::size_t i = 0; i < n; ++i) {
        for (const FieldTarget& field : output.targets) {
            std::memcpy(field.values + i * field.bytes, batch.record(i) + field.offset,
                        field.bytes);
        }
    }
    const py::dict rows = output.to_dict(state);
    const py::object said =
        owned(running_python([&] { return PyObject_CallOneArg(priorities_of, rows.ptr()); }));
    ConvertedPriorities priorities;
    convert_priorities(state, "cannot take what priorities() returned", said.ptr(), n, priorities);
    const std::span<const double> all = priorities.all(n);
    for (std::size_t i = 0; i < n; ++i) batch.set_priority(i, all[i]);
}

}  // namespace

EpisodeFlags episode_flags(const std::vector<FieldRule>& rules) {
    return {find_flag(rules, "done"), find_flag(rules, "terminated"),
            find_flag(rules, "truncated")};
}

NstepPlan plan_nstep(const std::vector<FieldRule>& rules, std::size_t row_bytes,
                     const NstepNames* names) {
    NstepPlan plan{{}, no_field};
    NstepRule& rule = plan.rule;
    rule.stride = round_up(row_bytes, 16);  // private memory: aligned for any field
    static_cast<EpisodeFlags&>(rule) = episode_flags(rules);
    std::set<std::string> from_last = {"done", "terminated", "truncated"};
    if (names != nullptr) {
        const auto& [steps, gamma, rewards, next, discount] = *names;
        rule.steps = steps;
        rule.gamma = gamma;
        for (const std::string& name : rewards) {
            rule.rewards.push_back(float_field(rule_named(rules, name)));
        }
        for (const std::string& name : next) {
            (void)rule_named(rules, name);
            from_last.insert(name);
        }
        if (!discount.empty()) {
            const FieldRule& field = rule_named(rules, discount);
            rule.discount = float_field(field);
            plan.computed = static_cast<std::size_t>(&field - rules.data());
        }
    }
    std::vector<StepField> fields;
    for (const FieldRule& field : rules) {
        fields.push_back(
            {field.offset, field.row_bytes, from_last.contains(field.name.cast<std::string>())});
    }
    rule.take_fields(std::move(fields));
    return plan;
}

WrittenRows write_finished(BufferState& buffer, Staging& staged, PyObject* priorities_of) {
    Staging::SetPriorities set_priorities;
    if (priorities_of != nullptr) {
        set_priorities = [&](RowBatch& batch) { compute_priorities(buffer, batch, priorities_of); };
    }
    return staged.write(*buffer.core, run_signal_handlers, set_priorities);
}

}  // namespace mpbuffer::bindings
