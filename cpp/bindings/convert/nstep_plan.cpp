#include "convert/nstep_plan.hpp"

#include <algorithm>
#include <optional>
#include <utility>

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

bool is_among(const std::vector<std::string>& all, const std::string& name) {
    return std::find(all.begin(), all.end(), name) != all.end();
}

}  // namespace

NstepPlan plan_nstep(const std::vector<FieldRule>& rules, std::size_t stride,
                     const NstepNames* names) {
    NstepPlan plan{{}, no_field};
    NstepRule& rule = plan.rule;
    rule.stride = stride;
    rule.done = find_flag(rules, "done");
    rule.terminated = find_flag(rules, "terminated");
    rule.truncated = find_flag(rules, "truncated");
    std::vector<std::string> from_last = {"done", "terminated", "truncated"};
    if (names != nullptr) {
        const auto& [steps, gamma, rewards, next, discount] = *names;
        rule.steps = steps;
        rule.gamma = gamma;
        for (const std::string& name : rewards) {
            rule.rewards.push_back(float_field(rule_named(rules, name)));
        }
        for (const std::string& name : next) {
            from_last.push_back(rule_named(rules, name).name.cast<std::string>());
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
            {field.offset, field.row_bytes, is_among(from_last, field.name.cast<std::string>())});
    }
    rule.take_fields(std::move(fields));
    return plan;
}

}  // namespace mpbuffer::bindings
