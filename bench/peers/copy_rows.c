/* The limits that are measured beside the buffer: what a plain loop in C needs to copy the same
   rows to the same arrays, and a computation that keeps a core busy without Python's lock. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

/* Copy rows `slots[0..rows)` of `fields` fields: field f of slot s lies at sources[f] + s * stride
   and has bytes[f] bytes; it goes to targets[f] + row * bytes[f]. */
void copy_rows(char *const *targets, const char *const *sources, const size_t *bytes,
               size_t fields, size_t stride, const int64_t *slots, size_t rows) {
    for (size_t row = 0; row < rows; ++row) {
        for (size_t field = 0; field < fields; ++field) {
            memcpy(targets[field] + row * bytes[field],
                   sources[field] + (size_t)slots[row] * stride, bytes[field]);
        }
    }
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Compute until so many nanoseconds have passed; the result depends on every step. */
double compute(int64_t nanoseconds) {
    int64_t end = now() + nanoseconds;
    double value = 1.0;
    do {
        for (int step = 0; step < 1000; ++step) value = value * 0.999 + 0.001 / value;
    } while (now() < end);
    return value;
}
