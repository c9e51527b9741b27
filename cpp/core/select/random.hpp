// Random numbers: one generator, uniform integers, stratified masses.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace mpbuffer {

// xoshiro256++ (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2021), its
// state filled by splitmix64 from what makes a handle's stream its own.
class Generator {
  public:
    using State = std::array<std::uint64_t, 4>;

    Generator() : Generator(0, 0, 0) {}
    Generator(std::uint64_t seed, std::uint64_t process, std::uint64_t epoch);
    // Goes on where another one was. Not all words are 0.
    explicit Generator(const State& state) : state_(state) {}
    const State& state() const { return state_; }

    std::uint64_t next();
    double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }  // [0, 1)
    std::uint64_t below(std::uint64_t bound);  // [0, bound), bound > 0

  private:
    State state_{};
};

// The mass of stratum `index` of `count` equal parts of [0, total): ascending in `index`.
inline double stratified_mass(Generator& generator, std::size_t index, std::size_t count,
                              double total) {
    const double mass =
        (static_cast<double>(index) + generator.uniform()) * (total / static_cast<double>(count));
    return mass < total ? mass : total;
}

}  // namespace mpbuffer
