// Arguments of sample(), update_priorities() and their like.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "select/weights_of_draws.hpp"
#include "state.hpp"

namespace mpbuffer::bindings {

// At least 1; null is a missing argument of `method`. Raises TypeError, ValueError, OverflowError.
std::size_t convert_batch_size(const char* method, PyObject* value);

// The exponent of importance weights: finite and at least 0. Raises TypeError, ValueError.
double convert_beta(PyObject* value);

// Slots in [0, size) from any array of integers, and the generations of the rows meant, where the
// array shares a live sample's memory. `from_end`: negative ones count from the end. Raises
// TypeError, IndexError.
struct ConvertedIndexes {
    std::vector<std::int64_t> slots;
    std::vector<std::uint64_t> generations;  // 0 where not known
};
ConvertedIndexes convert_indexes(const BufferState& state, const char* verb, PyObject* value,
                                 bool from_end = false);

// "buffer", "batch" or None; null is "buffer". Raises ValueError.
WeightNorm convert_weight_norm(PyObject* value);

// Replaces the generations found beside the indexes by those that the caller names. Raises
// TypeError, ValueError.
void convert_generations(PyObject* value, ConvertedIndexes& indexes);

}  // namespace mpbuffer::bindings
