// Powers in float32, of many numbers at once: leaves of priorities, and weights of draws.
//
// base^exponent = 2^(exponent * log2(base)), both by polynomials in double whose errors are below
// 2^-40: what comes out is within 1 ulp of the exact power. Bases that no polynomial takes (0,
// subnormal, not finite, negative) go to the C library.
//
// Two twins: one in portable C++, one for AVX2. They compute in the same order, so that their
// results are the same to the last bit; `powers()` is whichever this processor runs faster.
#pragma once

#include <cstddef>

namespace mpbuffer {

// results[i] = bases[i]^exponent, rounded to float32; infinity where that is too large.
using Powers = void (*)(const double* bases, std::size_t count, double exponent, float* results);

Powers portable_powers();
Powers avx2_powers();  // nullptr where there is none, or this processor lacks it
Powers powers();

}  // namespace mpbuffer
