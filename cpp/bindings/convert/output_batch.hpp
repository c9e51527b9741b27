// Arrays that rows are read into: fresh ones, or those of an earlier batch.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "convert/field_rules.hpp"
#include "convert/recycled_memory.hpp"
#include "ring/gather.hpp"

namespace mpbuffer::bindings {

struct BufferState;

// Fresh arrays for `rows` rows of each field, and where the core writes them.
struct OutputArrays {
    std::vector<pybind11::object> arrays;
    std::vector<FieldTarget> targets;
    // From `memory`, if any is given. `time_major`: of sequences, the time is on the first axis.
    OutputArrays(const BufferState& state, std::size_t rows, RecycledMemory* memory = nullptr,
                 bool time_major = false);
    pybind11::dict to_dict(const BufferState& state) const;
};

// What a batch has beside its fields.
struct BatchParts {
    bool weights;
    bool indexes;
    bool probabilities = false;
    bool time_major = false;  // of sequences
};

// The bytes of a batch's fields, weights and probabilities.
std::size_t batch_bytes(const BufferState& state, std::size_t rows);

// The arrays of one sample, kept alive until it is done. Needs the GIL, except for target().
class OutputBatch {
  public:
    // `out`: a dict whose arrays are written to, or nullptr or None for fresh ones, from the
    // buffer's memory for samples. Raises KeyError, TypeError or ValueError if an array is missing,
    // does not suit or shares memory with another. An array "indexes" is always written to.
    OutputBatch(const BufferState& state, std::size_t rows, BatchParts parts, PyObject* out);
    // Fresh arrays from that memory.
    OutputBatch(const BufferState& state, std::size_t rows, BatchParts parts,
                RecycledMemory& memory);

    SampleTarget target() const {
        return {targets_, indexes_, generations_, weights_, probabilities_};
    }
    // The dict, as a new reference, once the rows are in the arrays. Removes "weights" and
    // "probabilities" of other rows.
    PyObject* take_dict();

  private:
    void make_fresh(const BufferState& state, std::size_t rows, BatchParts parts,
                    RecycledMemory* memory);
    void take_over(const BufferState& state, std::size_t rows, BatchParts parts);
    void add_scratch(std::size_t rows);

    pybind11::dict dict_;
    std::vector<PyObject*> outdated_;  // what the dict may have of other rows
    // Of whole episodes: what has to be cut to the longest, and on which axis.
    const std::vector<FieldRule>* ragged_ = nullptr;
    std::size_t time_ = 1;
    std::vector<pybind11::object> kept_alive_;  // of `out`, whose dict may be changed meanwhile
    std::vector<FieldTarget> targets_;
    std::int64_t* indexes_ = nullptr;
    std::uint64_t* generations_ = nullptr;
    float* weights_ = nullptr;
    float* probabilities_ = nullptr;
    std::vector<std::uint64_t> slots_and_generations_;  // where the batch has no place for them
};

}  // namespace mpbuffer::bindings
