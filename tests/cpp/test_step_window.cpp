#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "write/step_window.hpp"

using namespace mpbuffer;

namespace {

struct Step {
    std::int32_t id = 0;
    float reward = 0;
    double costs[2] = {0, 0};
    std::int32_t next = 0;
    std::uint8_t done = 0;
    std::int16_t terminated = 0;
    float truncated = 0;
    float discount = 0;
    std::int32_t more = 0;
};

constexpr std::size_t stride = 64;
static_assert(sizeof(Step) <= stride);

#define FIELD(name, from_last) \
    StepField { offsetof(Step, name), sizeof(Step::name), from_last }

NstepRule rule_of(std::uint64_t steps, double gamma) {
    NstepRule rule;
    rule.steps = steps;
    rule.gamma = gamma;
    rule.stride = stride;
    rule.take_fields({FIELD(more, false), FIELD(id, false), FIELD(reward, false),
                      FIELD(costs, false), FIELD(next, true), FIELD(done, true),
                      FIELD(terminated, true), FIELD(truncated, true), FIELD(discount, false)});
    rule.rewards = {{offsetof(Step, reward), 1, false}, {offsetof(Step, costs), 2, true}};
    rule.discount = FloatField{offsetof(Step, discount), 1, false};
    rule.done = EpisodeFlag{offsetof(Step, done), 1, false};
    rule.terminated = EpisodeFlag{offsetof(Step, terminated), 2, false};
    rule.truncated = EpisodeFlag{offsetof(Step, truncated), 4, true};
    return rule;
}

std::vector<FieldSource> sources_of(const Step& step) {
    std::vector<FieldSource> sources;
    const auto add = [&](const auto& field) {
        const auto* const at = reinterpret_cast<const std::byte*>(&field);
        sources.push_back({at, sizeof(Step),
                           static_cast<std::size_t>(at - reinterpret_cast<const std::byte*>(&step)),
                           sizeof field});
    };
    add(step.id);
    add(step.reward);
    add(step.costs);
    add(step.next);
    add(step.done);
    add(step.terminated);
    add(step.truncated);
    add(step.more);
    return sources;
}

Step row(const RowBatch& batch, std::size_t i) {
    Step step;
    std::memcpy(&step, batch.record(i), sizeof step);
    return step;
}

bool push(EpisodeWindow& window, const Step& step, RowBatch& finished,
          const StepNumbers& numbers = {}) {
    return window.push(sources_of(step), 0, numbers, finished);
}

bool ends(const Step& step) {
    return step.done != 0 || step.terminated != 0 || step.truncated != 0.0F;
}

bool terminates(const Step& step) {
    return step.terminated != 0 || (step.done != 0 && step.truncated == 0.0F);
}

// The row that begins with steps[first], by looking for the end of its episode.
Step folded(const std::vector<Step>& steps, std::size_t first, const NstepRule& rule) {
    std::size_t last = first;
    while (last - first + 1 < rule.steps && last + 1 < steps.size() && !ends(steps[last])) ++last;
    Step result = steps[first];
    double reward = 0;
    double costs[2] = {0, 0};
    double power = 1;
    for (std::size_t i = first; i <= last; ++i) {
        reward += power * double{steps[i].reward};
        costs[0] += power * steps[i].costs[0];
        costs[1] += power * steps[i].costs[1];
        power *= rule.gamma;
    }
    result.reward = static_cast<float>(reward);
    result.costs[0] = costs[0];
    result.costs[1] = costs[1];
    result.next = steps[last].next;
    result.done = steps[last].done;
    result.terminated = steps[last].terminated;
    result.truncated = steps[last].truncated;
    result.discount = terminates(steps[last]) ? 0.0F : static_cast<float>(power);
    return result;
}

void check_equal(const Step& got, const Step& expected) {
    CHECK(got.id == expected.id);
    CHECK(got.reward == expected.reward);
    CHECK(got.costs[0] == expected.costs[0]);
    CHECK(got.costs[1] == expected.costs[1]);
    CHECK(got.next == expected.next);
    CHECK(got.done == expected.done);
    CHECK(got.terminated == expected.terminated);
    CHECK(got.truncated == expected.truncated);
    CHECK(got.discount == expected.discount);
    CHECK(got.more == expected.more);
}

}  // namespace

TEST_CASE("fields that lie side by side are copied together") {
    NstepRule rule;
    rule.take_fields({{8, 4, true}, {0, 4, false}, {4, 4, false}, {16, 8, true}, {24, 1, false}});
    REQUIRE(rule.from_first.size() == 2);
    CHECK(rule.from_first[0].offset == 0);
    CHECK(rule.from_first[0].bytes == 8);
    CHECK(rule.from_first[1].offset == 24);
    CHECK(rule.from_first[1].bytes == 1);
    REQUIRE(rule.from_last.size() == 1);
    CHECK(rule.from_last[0].offset == 8);
    CHECK(rule.from_last[0].bytes == 16);
    rule.take_fields({{0, 4, true}});
    CHECK(rule.from_first.empty());
    CHECK(rule.from_last.size() == 1);
}

TEST_CASE("rows of random streams are those of a slow fold") {
    std::mt19937_64 random(5);
    std::uniform_real_distribution<double> number(-1, 1);
    for (int round = 0; round < 200; ++round) {
        const std::uint64_t n = round < 20 ? 40 : 1 + random() % 6;
        const NstepRule rule = rule_of(n, round % 3 == 0 ? 1.0 : number(random) * 0.5 + 0.5);
        EpisodeWindow window(rule);
        RowBatch finished(stride);
        std::vector<Step> steps(random() % 90);
        for (std::size_t i = 0; i < steps.size(); ++i) {
            Step& step = steps[i];
            step.id = static_cast<std::int32_t>(i);
            step.reward = static_cast<float>(number(random));
            step.costs[0] = number(random);
            step.costs[1] = number(random);
            step.next = -step.id;
            step.more = 7 * step.id;
            const std::uint64_t dice = random() % 30;
            step.done = dice == 0 || dice == 3 || dice == 5 ? 4 : 0;
            step.terminated = dice == 1 || dice == 4 || dice == 5 ? -256 : 0;
            step.truncated = dice == 2 || dice == 3 || dice == 4 ? 0.5F : -0.0F;
            const std::size_t before = finished.rows() + window.waiting();
            CHECK(push(window, step, finished) == ends(step));
            CHECK(finished.rows() + window.waiting() == before + 1);
            CHECK(window.waiting() < n);
            if (ends(step)) CHECK(window.waiting() == 0);
        }
        window.cut_off(finished);
        CHECK(window.waiting() == 0);
        REQUIRE(finished.rows() == steps.size());
        for (std::size_t i = 0; i < steps.size(); ++i) {
            check_equal(row(finished, i), folded(steps, i, rule));
        }
    }
}

TEST_CASE("a window that was dropped is empty") {
    const NstepRule rule = rule_of(3, 0.5);
    EpisodeWindow window(rule);
    RowBatch finished(stride);
    for (std::int32_t id = 0; id < 2; ++id) push(window, Step{id}, finished);
    CHECK(window.waiting() == 2);
    window.drop();
    window.cut_off(finished);
    CHECK(finished.rows() == 0);
    for (std::int32_t id = 5; id < 8; ++id) push(window, Step{id, 1.0F}, finished);
    REQUIRE(finished.rows() == 1);
    CHECK(row(finished, 0).id == 5);
    CHECK(row(finished, 0).reward == 1.75F);
}

TEST_CASE("a reserved step allocates nothing") {
    const NstepRule rule = rule_of(100, 0.5);
    EpisodeWindow window(rule);
    RowBatch finished(stride);
    window.reserve(60);
    finished.reserve(60);
    const std::byte* const place = finished.record(0);
    for (std::int32_t id = 0; id < 60; ++id) push(window, Step{id}, finished);
    window.cut_off(finished);
    CHECK(finished.record(0) == place);
    CHECK(row(finished, 59).id == 59);
}

TEST_CASE("priorities are those of the first step") {
    const NstepRule rule = rule_of(2, 0.5);
    EpisodeWindow window(rule);
    RowBatch finished(stride);
    push(window, Step{0}, finished, {1.5});
    push(window, Step{1}, finished);
    push(window, Step{2}, finished, {0.5});
    window.cut_off(finished);
    CHECK(finished.priorities()[0] == 1.5);
    CHECK(std::isnan(finished.priorities()[1]));
    CHECK(finished.priorities()[2] == 0.5);
}

TEST_CASE("priorities from values wait for the value of the state behind the last step") {
    NstepRule rule = rule_of(2, 0.5);
    rule.rewards.resize(1);
    rule.priority_from_values = true;
    const auto step = [](std::int32_t id, float reward, std::int16_t terminated = 0,
                         float truncated = 0) {
        Step one{id, reward};
        one.terminated = terminated;
        one.truncated = truncated;
        return one;
    };
    EpisodeWindow window(rule);
    RowBatch finished(stride);
    const auto values = [](double q, double v, double next_v = not_given) {
        return StepNumbers{not_given, q, v, next_v};
    };
    push(window, step(0, 1), finished, values(10, 100));
    push(window, step(1, 2), finished, values(20, 200, 7777));
    CHECK(finished.rows() == 0);
    CHECK(window.waiting() == 2);
    push(window, step(2, 4), finished, values(30, 300));
    REQUIRE(finished.rows() == 1);
    CHECK(finished.priorities()[0] == std::abs(1 + 0.5 * 2 + 0.25 * 300 - 10));
    push(window, step(3, 8, 1), finished, values(40, 400));
    REQUIRE(finished.rows() == 4);
    CHECK(finished.priorities()[1] == std::abs(2 + 0.5 * 4 + 0.25 * 400 - 20));
    CHECK(finished.priorities()[2] == std::abs(4 + 0.5 * 8 - 30));
    CHECK(finished.priorities()[3] == std::abs(8.0 - 40));

    finished.clear();
    push(window, step(4, 1, 0, 1), finished, values(50, 500));
    REQUIRE(finished.rows() == 1);
    CHECK(finished.priorities()[0] == std::abs(1 + 0.5 * 500 - 50));
    push(window, step(5, 1, 0, 1), finished, values(50, 500, 60));
    CHECK(finished.priorities()[1] == std::abs(1 + 0.5 * 60 - 50));
    push(window, step(6, 1), finished, values(50, 500, 70));
    window.cut_off(finished);
    CHECK(finished.priorities()[2] == std::abs(1 + 0.5 * 70 - 50));
}

TEST_CASE("rows that are not written go before those of a later batch") {
    RowBatch earlier(stride);
    RowBatch batch(stride);
    const auto append = [](RowBatch& to, std::int32_t id) {
        const Step step{id};
        std::memcpy(to.append(id), &step, sizeof step);
    };
    for (std::int32_t id = 0; id < 5; ++id) append(earlier, id);
    for (std::int32_t id = 5; id < 12; ++id) append(batch, id);
    earlier.written = 3;
    earlier.largest = 50;
    batch.prepend_unwritten(earlier);
    CHECK(batch.largest == 50);
    CHECK(batch.written == 0);
    REQUIRE(batch.rows() == 9);
    for (std::size_t i = 0; i < 9; ++i) {
        CHECK(row(batch, i).id == static_cast<std::int32_t>(i + 3));
        CHECK(batch.priorities()[i] == static_cast<double>(i + 3));
    }
    earlier.written = 5;
    batch.prepend_unwritten(earlier);
    CHECK(batch.rows() == 9);
    RowBatch none(stride);
    none.prepend_unwritten(batch);
    CHECK(none.rows() == 9);
    CHECK(row(none, 8).id == 11);
}
