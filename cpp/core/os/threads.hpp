// Work that several threads of this process share for some hundred microseconds.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

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

// Work on [0, count), in pieces that this thread and helpers take one after another, each piece
// once. Waits only for pieces that have been begun: a helper that does not get a processor in time
// finds nothing left. The work must not throw, and must outlive this object.
class SharedWork {
  public:
    using Work = std::function<void(std::size_t first, std::size_t last)>;

    SharedWork(std::size_t count, std::size_t piece, const Work& work);
    // As finish(). In a child that was forked meanwhile, where the helpers are not, waits for none.
    ~SharedWork();
    SharedWork(const SharedWork&) = delete;
    SharedWork& operator=(const SharedWork&) = delete;

    // Lets up to `helpers` other threads take pieces, fewer where there are no more; none is
    // started while one of an earlier call is still to come.
    void start(std::size_t helpers);
    // Does the next piece in this thread; false if none is left.
    bool do_next();
    // Leaves what has not been begun undone, and waits for the rest. The last call.
    void finish();

  private:
    class Pieces;
    std::shared_ptr<Pieces> pieces_;
    std::uint64_t made_in_;  // fork generation
};

// All of it.
void share_work(std::size_t count, std::size_t piece, std::size_t helpers,
                const SharedWork::Work& work);

}  // namespace mpbuffer
