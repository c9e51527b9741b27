// The last resorts of an explorer's process: a thread that ends it some time after its learner, and
// an end by a signal.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>

namespace mpbuffer {

// From now on, once the process with this pid and start time (clock ticks since boot) has ended,
// this one does so too, `grace` and up to 0.1 s later: by `_exit(status)`, whatever its threads are
// doing, and with nothing of what belongs to an orderly end.
//
// A learner that is stopped, or whose first thread alone has ended, lives. What cannot be found out
// (/proc is gone, there are no descriptors) is no death, unless the kernel knows no such pid.
//
// The thread takes no lock, keeps no descriptor open, gets no signals, keeps no process alive, and
// goes on while static destructors run. A child of a fork has none. One for a process. Throws
// std::system_error if there can be no more threads.
void end_with_learner(pid_t pid, std::uint64_t start_time, std::chrono::milliseconds grace,
                      int status);

// Ends this process as the signal does by default, whatever its handler and whichever thread calls:
// at once, and with nothing of what belongs to an orderly end.
[[noreturn]] void end_by_signal(int signal);

}  // namespace mpbuffer
