// Mutexes between the threads of one process, and the lock of the program that the core is part of.
//
// A program may have a lock of its own that its threads hold while they run, and while they call
// the core: Python's GIL. A thread that waits for one kind of lock while it holds the other may
// wait for ever, so there are two rules:
//
//   - nobody waits for a Mutex while holding the program's lock;
//   - nobody waits for the program's lock while holding a Mutex.
//
// Both hold by construction. A Mutex is taken by a Guard only. A Guard that has to wait gives the
// program's lock up first, and it stays given up until the thread's outermost CoreCall ends: no
// Guard is alive then, as each is a CoreCall too. What the core calls back runs through
// call_back(), which takes the program's lock for that time and ends the process if the thread
// holds a Mutex.
//
// Handles lock by themselves: their callers see no Mutex.
#pragma once

#include <cstddef>
#include <mutex>
#include <new>
#include <shared_mutex>

namespace mpbuffer {

struct ProgramLock {
    // Gives the lock up and returns a token for `acquire`; null if this thread does not hold it.
    void* (*release)();
    // Takes the lock again. May never return, if the program is ending.
    void (*acquire)(void* token);
};

// For the whole process, before the first CoreCall of a thread that may hold it.
void set_program_lock(ProgramLock lock);

struct ThreadInCore {
    unsigned calls = 0;            // CoreCalls, one inside another
    unsigned mutexes = 0;          // that this thread holds
    void* program_lock = nullptr;  // what `release` returned: given up in this call
};
#if defined(__GLIBC__)
// A module that is loaded late finds room for these 16 bytes; reading them costs no call.
[[gnu::tls_model("initial-exec")]]
#endif
extern constinit thread_local ThreadInCore thread_in_core;

// One call into the core, from its first step to its last.
class CoreCall {
  public:
    CoreCall() { ++thread_in_core.calls; }
    ~CoreCall() {
        ThreadInCore& thread = thread_in_core;
        if (--thread.calls == 0 && thread.program_lock != nullptr) [[unlikely]]
            come_back();
    }
    CoreCall(const CoreCall&) = delete;
    CoreCall& operator=(const CoreCall&) = delete;

  private:
    friend class CallBack;
    static void come_back();
};

// Gives the program's lock up until this call into the core ends. For what takes long; a Mutex may
// be held. Costs some 70 ns, and up to a time slice where other threads want the lock.
void let_others_run();

// The same if as many bytes are to be copied, or slots looked at, as make that worth it.
constexpr std::size_t bytes_worth_releasing = std::size_t{64} << 10;
constexpr std::size_t slots_worth_releasing = std::size_t{16} << 10;
inline void let_others_copy(std::size_t bytes) {
    if (bytes >= bytes_worth_releasing) let_others_run();
}
inline void let_others_scan(std::size_t slots) {
    if (slots >= slots_worth_releasing) let_others_run();
}

// While one lives the thread has the program's lock again, if it had it when its call began. Must
// not be made while the thread holds a Mutex: that ends the process.
class CallBack {
  public:
    CallBack();
    ~CallBack();
    CallBack(const CallBack&) = delete;
    CallBack& operator=(const CallBack&) = delete;

  private:
    unsigned calls_;
    bool given_up_;
};

// Calls what belongs to the program.
template <class Callback>
auto call_back(Callback&& callback) {
    const CallBack in_program;
    return callback();
}

template <class Standard>
class GuardedMutex {
  public:
    constexpr GuardedMutex() = default;
    GuardedMutex(const GuardedMutex&) = delete;
    GuardedMutex& operator=(const GuardedMutex&) = delete;

    // In a forked child: whichever of its parent's threads held it is not there.
    void renew_in_child() noexcept { new (&mutex_) Standard; }
    // For the handlers of fork() and what comes just before one alone, which run whatever the
    // thread holds. Holders of such a mutex wait for nobody.
    void lock_around_fork() { mutex_.lock(); }
    bool try_lock_around_fork() { return mutex_.try_lock(); }
    void unlock_around_fork() { mutex_.unlock(); }

  private:
    template <class S, bool (S::*)(), void (S::*)(), void (S::*)()>
    friend class BasicGuard;
    Standard mutex_;
};

template <class Standard, bool (Standard::*try_lock)(), void (Standard::*lock)(),
          void (Standard::*unlock)()>
class BasicGuard {
  public:
    explicit BasicGuard(GuardedMutex<Standard>& mutex) : mutex_(mutex.mutex_) {
        if (!(mutex_.*try_lock)()) [[unlikely]] {
            let_others_run();
            (mutex_.*lock)();
        }
        ++thread_in_core.mutexes;
    }
    ~BasicGuard() {
        (mutex_.*unlock)();
        --thread_in_core.mutexes;
    }
    BasicGuard(const BasicGuard&) = delete;
    BasicGuard& operator=(const BasicGuard&) = delete;

  private:
    const CoreCall call_;  // ends after the mutex is free
    Standard& mutex_;
};

using Mutex = GuardedMutex<std::mutex>;
using Guard = BasicGuard<std::mutex, &std::mutex::try_lock, &std::mutex::lock, &std::mutex::unlock>;

// Taken again by a thread that holds it.
using RecursiveMutex = GuardedMutex<std::recursive_mutex>;
using RecursiveGuard = BasicGuard<std::recursive_mutex, &std::recursive_mutex::try_lock,
                                  &std::recursive_mutex::lock, &std::recursive_mutex::unlock>;

// Held by many at once, or by one alone.
using SharedMutex = GuardedMutex<std::shared_mutex>;
using GuardOfMany = BasicGuard<std::shared_mutex, &std::shared_mutex::try_lock_shared,
                               &std::shared_mutex::lock_shared, &std::shared_mutex::unlock_shared>;
using GuardOfOne = BasicGuard<std::shared_mutex, &std::shared_mutex::try_lock,
                              &std::shared_mutex::lock, &std::shared_mutex::unlock>;

}  // namespace mpbuffer
