#include "write/episode_sequences.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

namespace mpbuffer {

double SequenceRule::priority(const StoredSteps& steps) const {
    double most = 0;
    double sum = 0;
    for (std::size_t i = burn_in; i < steps.size(); ++i) {
        const double td = std::abs(steps[i]->td);
        if (std::isnan(td)) return td;
        most = std::max(most, td);
        sum += td;
    }
    if (steps.size() <= burn_in) return std::numeric_limits<double>::quiet_NaN();
    return eta * most + (1 - eta) * sum / static_cast<double>(steps.size() - burn_in);
}

void SequenceBatch::reserve(std::size_t more) {
    const std::size_t needed = rows() + more;
    if (needed > priorities_.capacity()) {
        priorities_.reserve(std::max(needed, 2 * priorities_.capacity()));
    }
    if (needed > sequences_.capacity()) {
        sequences_.reserve(std::max(needed, 2 * sequences_.capacity()));
    }
}

void SequenceBatch::append(Sequence sequence, double priority) noexcept {
    sequences_.push_back(std::move(sequence));
    priorities_.push_back(priority);
}

void SequenceBatch::prepend_unwritten(SequenceBatch& earlier) {
    if (earlier.written == earlier.rows()) return;
    largest = std::max(largest, earlier.largest);
    const auto first = static_cast<std::ptrdiff_t>(earlier.written);
    sequences_.insert(sequences_.begin(),
                      std::make_move_iterator(earlier.sequences_.begin() + first),
                      std::make_move_iterator(earlier.sequences_.end()));
    priorities_.insert(priorities_.begin(), earlier.priorities_.begin() + first,
                       earlier.priorities_.end());
}

void SequenceBatch::clear() {
    sequences_.clear();
    priorities_.clear();
    written = 0;
    largest = 0;
}

std::size_t EpisodeSequences::last_of(const Progress& progress) const {
    const bool worth_it = rule_->pad && progress.fresh > 0 && progress.steps > rule_->burn_in;
    return worth_it ? progress.steps : 0;
}

EpisodeSequences::Finished EpisodeSequences::advance(Progress& progress, bool ends) const {
    Finished finished{0, 0};
    ++progress.steps;
    ++progress.fresh;
    if (progress.steps == rule_->length) {
        finished.full = rule_->length;
        progress = {rule_->length - rule_->period, 0};
    }
    if (ends) {
        finished.last = last_of(progress);
        progress = {};
    }
    return finished;
}

void EpisodeSequences::plan() {
    planned_ = progress_;
    steps_.reserve(rule_->length);
}

void EpisodeSequences::plan_next(bool ends, std::vector<StoredSteps>& rooms) {
    const auto [full, last] = advance(planned_, ends);
    for (const std::size_t steps : {full, last}) {
        if (steps != 0) rooms.emplace_back().reserve(steps);
    }
}

void EpisodeSequences::push(std::shared_ptr<StoredStep> step, bool ends, StoredSteps*& room,
                            SequenceBatch& finished) noexcept {
    steps_.push_back(std::move(step));
    const auto [full, last] = advance(progress_, ends);
    if (full != 0) {
        finish(full, std::move(*room++), finished);
        steps_.erase(steps_.begin(), steps_.begin() + static_cast<std::ptrdiff_t>(rule_->period));
        begins_episode_ = false;
    }
    if (last != 0) finish(last, std::move(*room++), finished);
    if (ends) drop();
}

void EpisodeSequences::cut_off(SequenceBatch& finished) {
    if (const std::size_t last = last_of(progress_)) {
        StoredSteps room;
        room.reserve(last);
        finish(last, std::move(room), finished);
    }
    drop();
}

void EpisodeSequences::finish(std::size_t steps, StoredSteps room,
                              SequenceBatch& finished) noexcept {
    room.assign(steps_.begin(), steps_.begin() + static_cast<std::ptrdiff_t>(steps));
    const double priority = rule_->priority(room);
    finished.append({std::move(room), begins_episode_}, priority);
}

void EpisodeSequences::drop() noexcept {
    steps_.clear();
    begins_episode_ = true;
    progress_ = {};
}

}  // namespace mpbuffer
