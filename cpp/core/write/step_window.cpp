#include "write/step_window.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace mpbuffer {

namespace {

constexpr std::uint64_t fewest_places = 8;

double load_number(const std::byte* from, bool is_double) {
    if (is_double) {
        double value;
        std::memcpy(&value, from, sizeof value);
        return value;
    }
    float value;
    std::memcpy(&value, from, sizeof value);
    return double{value};
}

void store_number(std::byte* to, bool is_double, double value) {
    if (is_double) {
        std::memcpy(to, &value, sizeof value);
    } else {
        const auto rounded = static_cast<float>(value);
        std::memcpy(to, &rounded, sizeof rounded);
    }
}

std::size_t bytes_of(const FloatField& field) {
    return field.is_double ? sizeof(double) : sizeof(float);
}

void store_step(std::span<const FieldSource> fields, std::size_t i, std::byte* record) {
    for (const FieldSource& field : fields) {
        store_to_record(record + field.offset, field.values + i * field.step, field.bytes);
    }
}

}  // namespace

void RowBatch::reserve(std::size_t more) {
    const std::size_t needed = rows() + more;
    if (needed > priorities_.capacity()) {
        priorities_.reserve(std::max(needed, 2 * priorities_.capacity()));
    }
    if (needed * stride_ > records_.size()) {
        records_.resize(std::max(needed * stride_, 2 * records_.size()));
    }
}

std::byte* RowBatch::append(double priority) {
    if (rows() == priorities_.capacity() || (rows() + 1) * stride_ > records_.size()) reserve(1);
    std::byte* const place = record(rows());
    priorities_.push_back(priority);
    return place;
}

void RowBatch::prepend_unwritten(const RowBatch& earlier) {
    const std::size_t more = earlier.rows() - earlier.written;
    if (more == 0) return;
    largest = std::max(largest, earlier.largest);
    reserve(more);
    std::memmove(record(more), record(0), rows() * stride_);
    std::memcpy(record(0), earlier.record(earlier.written), more * stride_);
    priorities_.insert(priorities_.begin(),
                       earlier.priorities_.begin() + static_cast<std::ptrdiff_t>(earlier.written),
                       earlier.priorities_.end());
}

void RowBatch::clear() {
    priorities_.clear();
    written = 0;
    largest = 0;
}

void NstepRule::take_fields(std::vector<StepField> fields) {
    std::sort(fields.begin(), fields.end(), [](const StepField& one, const StepField& other) {
        return one.offset < other.offset;
    });
    from_first.clear();
    from_last.clear();
    const StepField* before = nullptr;
    for (const StepField& field : fields) {
        std::vector<ByteRange>& ranges = field.from_last ? from_last : from_first;
        if (before != nullptr && before->from_last == field.from_last) {
            ranges.back().bytes = field.offset + field.bytes - ranges.back().offset;
        } else {
            ranges.push_back({field.offset, field.bytes});
        }
        before = &field;
    }
}

std::byte* EpisodeWindow::record(std::size_t i) {
    return records_.data() + ((first_ + i) & (numbers_.size() - 1)) * rule_->stride;
}

void EpisodeWindow::reserve(std::size_t more) {
    const std::uint64_t needed = std::min<std::uint64_t>(rule_->steps, count_ + more);
    if (rule_->passes_through() || needed <= numbers_.size()) return;
    const auto places = static_cast<std::size_t>(
        std::bit_ceil(std::min(rule_->steps, std::max(needed, fewest_places))));
    std::vector<std::byte> records(places * rule_->stride);
    std::vector<StepNumbers> all(places);
    for (std::size_t i = 0; i < count_; ++i) {
        std::memcpy(records.data() + i * rule_->stride, record(i), rule_->stride);
        all[i] = numbers(i);
    }
    records_.swap(records);
    numbers_.swap(all);
    first_ = 0;
}

bool EpisodeWindow::push(std::span<const FieldSource> fields, std::size_t i,
                         const StepNumbers& given, RowBatch& finished) {
    reserve(1);
    std::byte* step = nullptr;
    if (rule_->passes_through()) {
        step = finished.append(given.priority);
    } else {
        // What was waiting for the value of the state that this step was taken in.
        if (count_ == rule_->steps) finish_first(count_, false, given.v, finished);
        step = record(count_);
        numbers(count_) = given;
        ++count_;
    }
    store_step(fields, i, step);
    const bool truncates = raised(rule_->truncated, step);
    const bool terminates =
        raised(rule_->terminated, step) || (!truncates && raised(rule_->done, step));
    const bool ends = truncates || terminates || raised(rule_->done, step);
    if (rule_->passes_through()) {
        if (rule_->discount) {
            store_number(step + rule_->discount->offset, rule_->discount->is_double,
                         terminates ? 0.0 : rule_->gamma);
        }
    } else if (ends) {
        finish_all(terminates, finished);
    } else if (count_ == rule_->steps && !rule_->priority_from_values) {
        finish_first(count_, false, not_given, finished);
    }
    return ends;
}

void EpisodeWindow::cut_off(RowBatch& finished) { finish_all(false, finished); }

void EpisodeWindow::finish_all(bool terminates, RowBatch& finished) {
    if (count_ == 0) return;
    const StepNumbers& last = numbers(count_ - 1);
    const double value = std::isnan(last.next_v) ? last.v : last.next_v;
    while (count_ > 0) finish_first(count_, terminates, value, finished);
}

void EpisodeWindow::finish_first(std::size_t steps, bool terminates, double value,
                                 RowBatch& finished) {
    const std::byte* const first = record(0);
    const std::byte* const last = record(steps - 1);
    const StepNumbers given = numbers(0);
    std::byte* const row = finished.append(given.priority);
    for (const ByteRange& range : rule_->from_first) {
        std::memcpy(row + range.offset, first + range.offset, range.bytes);
    }
    for (const ByteRange& range : rule_->from_last) {
        std::memcpy(row + range.offset, last + range.offset, range.bytes);
    }
    const double reward = fold_rewards(steps, row);
    double discount = 1;
    for (std::size_t k = 0; k < steps; ++k) discount *= rule_->gamma;
    if (rule_->discount) {
        store_number(row + rule_->discount->offset, rule_->discount->is_double,
                     terminates ? 0.0 : discount);
    }
    if (rule_->priority_from_values) {
        const double target = terminates ? reward : reward + discount * value;
        finished.set_priority(finished.rows() - 1, std::abs(target - given.q));
    }
    first_ = (first_ + 1) & (numbers_.size() - 1);
    --count_;
}

// Returns the last sum, as it was before it was rounded.
double EpisodeWindow::fold_rewards(std::size_t steps, std::byte* row) {
    double sum = 0;
    for (const FloatField& field : rule_->rewards) {
        for (std::size_t i = 0; i < field.count; ++i) {
            const std::size_t offset = field.offset + i * bytes_of(field);
            sum = load_number(record(0) + offset, field.is_double);
            if (steps == 1) continue;
            double power = 1;
            for (std::size_t k = 1; k < steps; ++k) {
                power *= rule_->gamma;
                sum += power * load_number(record(k) + offset, field.is_double);
            }
            store_number(row + offset, field.is_double, sum);
        }
    }
    return sum;
}

}  // namespace mpbuffer
