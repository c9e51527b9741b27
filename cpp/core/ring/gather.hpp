// From rows drawn to a batch: where the rows of one sample are, and how they are copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/shared_copy.hpp"
#include "ring/slot_ring.hpp"
#include "ring/sources.hpp"

namespace mpbuffer {

// How often a row is read that is overwritten in each reading.
constexpr int most_readings = 64;

struct SampleTarget {
    std::span<const FieldTarget> fields;
    std::int64_t* indexes;             // slots; not null
    std::uint64_t* generations;        // the rows' seqs; not null
    float* weights;                    // not null in a prioritized sample
    float* probabilities = nullptr;    // of the draws, if wanted; in a prioritized sample
    const Sources* sources = nullptr;  // that rows refer to; set by the buffer, if there are any
};

// The draws of one sample on their way to the rows. Belongs to one thread at a time; keeps its
// memory for the next sample.
struct Draws {
    std::vector<std::uint64_t> slots;
    std::vector<std::uint64_t> seqs;  // of the rows wanted, unless any row in its slot will do
    bool any_row = false;
    std::uint64_t cleared = 0;        // no older row will do
    std::vector<std::size_t> missed;  // places whose row was gone when it was to be copied
    std::uint64_t redraws = 0;        // draws for such places, by whoever finishes the sample

    // By priority.
    std::vector<double> masses;
    std::vector<float> leaves;
    float least = 0;             // the smallest leaf that the draws were made from
    double total = 0;            // the sum of those leaves
    std::uint64_t drawable = 0;  // and how many are above 0

    // Uniform: the draws are made from this many slots, and on from the last slot at the first.
    std::uint64_t first_slot = 0;
    std::uint64_t slots_claimed = 0;
};

// Copies the row drawn for `place` into the target; false if it is gone. Here and below no mutex is
// needed: slot words and records are read, nothing else.
bool copy_row(const SlotRing& ring, std::size_t place, const Draws& draws,
              const SampleTarget& target);

// Reads the row in `slot` into place `i` of the fields and returns its seq; 0 if it holds none, or
// one whose sources are gone. Tries again while one row gives way to the next.
std::uint64_t read_row(const SlotRing& ring, const Sources* sources, std::uint64_t slot,
                       std::size_t i, std::span<const FieldTarget> fields);

// Prefetches the first rows of copy_rows, when their slots are known.
void prefetch_rows(const SlotRing& ring, std::size_t row_bytes, const Draws& draws);

// All of them, large batches by up to four threads; lists those that are gone.
void copy_rows(const SlotRing& ring, std::size_t row_bytes, Draws& draws,
               const SampleTarget& target);

}  // namespace mpbuffer
