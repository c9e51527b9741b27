#include "base/guard.hpp"

#include <cstdio>
#include <cstdlib>
#include <utility>

namespace mpbuffer {

constinit thread_local ThreadInCore thread_in_core;

namespace {

ProgramLock program_lock{};

}  // namespace

void set_program_lock(ProgramLock lock) { program_lock = lock; }

void let_others_run() {
    ThreadInCore& thread = thread_in_core;
    if (thread.calls == 0 || thread.program_lock != nullptr || program_lock.release == nullptr)
        return;
    thread.program_lock = program_lock.release();
}

void CoreCall::come_back() {
    program_lock.acquire(std::exchange(thread_in_core.program_lock, nullptr));
}

CallBack::CallBack() : calls_(thread_in_core.calls), given_up_(false) {
    ThreadInCore& thread = thread_in_core;
    if (thread.mutexes != 0) {
        std::fputs("mpbuffer: the core calls back while its thread holds a mutex\n", stderr);
        std::abort();
    }
    // What is called may call the core again: that is a call of its own.
    thread.calls = 0;
    if (thread.program_lock != nullptr) {
        given_up_ = true;
        CoreCall::come_back();
    }
}

CallBack::~CallBack() {
    thread_in_core.calls = calls_;
    if (given_up_) let_others_run();
}

}  // namespace mpbuffer
