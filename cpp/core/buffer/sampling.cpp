// The calls of a ReplayBuffer that draw, update and have the learner's role; all under
// learner_mutex_, but for the copies of rows.
#include <utility>

#include "base/error.hpp"
#include "buffer/replay_buffer.hpp"
#include "select/uniform.hpp"

namespace mpbuffer {

Generator& ReplayBuffer::generator() {
    ready();
    return local_->generator;
}

template <class Call>
void ReplayBuffer::sampling(Call&& call) {
    try {
        call();
    } catch (const EmptyBuffer& why) {
        throw EmptyBuffer("cannot sample from '" + name_ + "': " + why.what());
    }
}

void ReplayBuffer::gather(std::size_t count, Weighting weighting, const SampleTarget& given_target,
                          std::optional<std::uint64_t> releases) {
    const CoreCall call;
    const SampleTarget target = with_sources(given_target);
    let_others_copy(count * given_bytes());
    sampling([&] {
        std::unique_ptr<Draws> draws;
        {
            const Guard guard(learner_mutex_);
            Learner& drawing = learner_unless_released(releases);
            draws = take_draws();
            drawing.draw(count, generator(), *draws);
        }
        copy_drawn_rows(*draws, target);
        const Guard guard(learner_mutex_);
        learner_unless_released(releases).finish(weighting, generator(), *draws, target);
        redraws_ += draws->redraws;
        local_->spare_draws.push_back(std::move(draws));
    });
}

void ReplayBuffer::gather_uniform(std::size_t count, const SampleTarget& given_target) {
    const CoreCall call;
    const SampleTarget target = with_sources(given_target);
    let_others_copy(count * given_bytes());
    sampling([&] {
        std::unique_ptr<Draws> draws;
        {
            const Guard guard(learner_mutex_);
            ready();
            draws = take_draws();
            retire();
            draw_uniform(ring_, count, generator(), *draws);
            prefetch_rows(ring_, shape().row_bytes, *draws);
        }
        copy_drawn_rows(*draws, target);
        const Guard guard(learner_mutex_);
        finish_uniform(ring_, generator(), *draws, target);
        redraws_ += draws->redraws;
        local_->spare_draws.push_back(std::move(draws));
    });
}

std::unique_ptr<Draws> ReplayBuffer::take_draws() {
    auto& spare = local_->spare_draws;
    if (spare.empty()) return std::make_unique<Draws>();
    std::unique_ptr<Draws> draws = std::move(spare.back());
    spare.pop_back();
    draws->any_row = false;
    draws->redraws = 0;
    return draws;
}

void ReplayBuffer::copy_drawn_rows(Draws& draws, const SampleTarget& target) {
    const GuardOfMany stays_open(copying_);
    ready();
    copy_rows(ring_, shape().row_bytes, draws, target);
}

RoleLine ReplayBuffer::learner_status() const {
    const Guard guard(learner_mutex_);
    ready();
    return role_.status();
}

Learner& ReplayBuffer::learner() {
    ready();
    if (local_->learner) [[likely]]
        return *local_->learner;
    if (!prioritized()) {
        throw InvalidArgument("cannot take the learner's role of '" + name_ +
                              "': the buffer is not prioritized");
    }
    role_.take();
    try {
        const RingEntry& ring = shape();
        if (!local_->learner_memory) {
            local_->learner_memory = std::make_unique<LearnerMemory>();
        }
        // Before the ring is read: rows that the take-over does not find are told of.
        local_->own_rows.store(&local_->learner_memory->own_rows, std::memory_order_release);
        local_->learner =
            std::make_unique<Learner>(ring_, at<float>(ring.leaf_offset), role_, priority_rule(),
                                      ring.row_bytes, *local_->learner_memory, sources());
    } catch (...) {
        local_->own_rows.store(nullptr, std::memory_order_relaxed);
        role_.release();
        throw;
    }
    role_.name_holder(identity_.number, local_->learner->figures());
    return *local_->learner;
}

Learner& ReplayBuffer::learner_unless_released(std::optional<std::uint64_t> releases) {
    if (releases && *releases != this->releases()) {
        throw RoleReleased("cannot go on sampling '" + name_ +
                           "': this handle has released the learner's role");
    }
    return learner();
}

std::uint64_t ReplayBuffer::update(std::span<const std::int64_t> slots,
                                   std::span<const std::uint64_t> generations,
                                   std::span<const double> priorities,
                                   std::span<const float> leaves) {
    const Guard guard(learner_mutex_);
    let_others_scan(slots.size());
    return learner().update(slots, generations, priorities, leaves);
}

void ReplayBuffer::take_learner_role() {
    const Guard guard(learner_mutex_);
    learner();
}

bool ReplayBuffer::is_learner() const {
    const Guard guard(learner_mutex_);
    return has_role();
}

void ReplayBuffer::fold() {
    const Guard guard(learner_mutex_);
    learner().fold();
}

double ReplayBuffer::total() {
    const Guard guard(learner_mutex_);
    return learner().total();
}

void ReplayBuffer::find_generations(std::span<const std::int64_t> slots,
                                    std::span<std::uint64_t> generations) {
    const Guard guard(learner_mutex_);
    let_others_scan(slots.size());
    Learner& known = learner();
    for (std::size_t i = 0; i < slots.size(); ++i) {
        const auto slot = static_cast<std::uint64_t>(slots[i]);
        if (generations[i] == 0 || generations[i] % capacity() != slot) {
            generations[i] = known.generation(slot);
        }
    }
}

void ReplayBuffer::release_learner() {
    const Guard guard(learner_mutex_);
    releases_.fetch_add(1, std::memory_order_relaxed);
    release_role();
}

void ReplayBuffer::release_role() {
    if (!local_ || !local_->learner) return;
    let_others_scan(capacity());
    const LearnerFigures figures = local_->learner->figures();
    local_->own_rows.store(nullptr, std::memory_order_relaxed);
    local_->learner.reset();
    role_.release(figures);
}

}  // namespace mpbuffer
