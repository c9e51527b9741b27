// By how much a test does less, or waits longer, under a sanitizer.
#pragma once

#include "base/tsan.hpp"

#if MPBUFFER_TSAN || defined(__SANITIZE_ADDRESS__)
constexpr int sanitizer_slowdown = 4;
#else
constexpr int sanitizer_slowdown = 1;
#endif
