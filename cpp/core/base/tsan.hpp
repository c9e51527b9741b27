// Whether ThreadSanitizer, which knows no fences, watches this build: MPBUFFER_TSAN is 0 or 1. A
// file that asks for it without including this one does not compile (-Werror=undef).
#pragma once

#if defined(__SANITIZE_THREAD__)
#define MPBUFFER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MPBUFFER_TSAN 1
#endif
#endif
#ifndef MPBUFFER_TSAN
#define MPBUFFER_TSAN 0
#endif
