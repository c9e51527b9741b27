// Work that several threads of this process share for some hundred microseconds.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <cstddef>
#include <functional>

namespace mpbuffer {

// While one is alive, threads that this one starts get no signals: those are for the program's own.
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;

  private:
    sigset_t before_;
};

// How many processors this thread may use, at least 1.
std::size_t usable_processors();

// Calls work(first, last) for pieces that make up [0, count), in this thread and in up to
// `more_threads` others, each piece once. Waits only for pieces that have been begun: a thread that
// does not get a processor in time finds nothing left, and none is started while one like that is
// still to come. `work` must not throw.
void share_work(std::size_t count, std::size_t piece, std::size_t more_threads,
                const std::function<void(std::size_t, std::size_t)>& work);

}  // namespace mpbuffer
