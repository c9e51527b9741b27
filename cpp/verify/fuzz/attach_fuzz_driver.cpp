// attach_fuzz [--headers N] [--files N] [--seed N] [--short] [--no-scribbling] [--only CASE]
//
// Makes up inputs for LLVMFuzzerTestOneInput from a seed: the same ones each time. Ends with a
// summary, or at the first case that crashes or hangs, whose number it tells; `--only` repeats it.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "attach_fuzz.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define MPBUFFER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MPBUFFER_ASAN 1
#endif
#endif
#ifdef MPBUFFER_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

constexpr unsigned longest_case_in_seconds = 60;

std::uint64_t current_case = 0;

void tell_case() {
    std::fprintf(stderr, "attach_fuzz: in case %" PRIu64 "\n", current_case);
    std::fflush(stderr);
}

void end_by_signal(int number) {
    std::fprintf(stderr, "attach_fuzz: signal %d%s\n", number,
                 number == SIGALRM ? " (a case that hangs)" : "");
    tell_case();
#ifdef MPBUFFER_ASAN
    __sanitizer_print_stack_trace();
#endif
    _exit(99);
}

std::uint64_t splitmix64(std::uint64_t& state) {
    std::uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void run_case(std::uint64_t seed, std::uint64_t number, bool with_file, bool may_scribble) {
    using namespace mpbuffer::fuzz;
    std::uint64_t state = seed * 0x2545f4914f6cdd1du + number;
    std::vector<std::uint8_t> recipe(with_file ? 256 : 8 + splitmix64(state) % 57);
    for (std::uint8_t& byte : recipe) byte = static_cast<std::uint8_t>(splitmix64(state));
    recipe[0] =
        static_cast<std::uint8_t>((recipe[0] & ~(seals | uses_a_file)) |
                                  (number % 2 == 0 ? seals : 0) | (with_file ? uses_a_file : 0));
    if (!may_scribble) recipe[0] &= static_cast<std::uint8_t>(~scribbles);
    current_case = number;
    if (with_file || number % 4096 == 0) alarm(longest_case_in_seconds);
    LLVMFuzzerTestOneInput(recipe.data(), recipe.size());
}

[[noreturn]] void refuse_arguments() {
    std::fprintf(
        stderr,
        "usage: attach_fuzz [--headers N] [--files N] [--seed N] [--short] [--no-scribbling] "
        "[--only CASE]\n"
        "cases below N of --headers read a header, those from there on attach to a file\n");
    std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
    std::uint64_t headers = 1'000'000;
    std::uint64_t files = 100'000;
    std::uint64_t seed = 1;
    bool may_scribble = true;
    bool one_case = false;
    std::uint64_t only = 0;
    for (int i = 1; i < argc; ++i) {
        const std::string option = argv[i];
        if (option == "--short") {
            headers = 200'000;
            files = 5'000;
            continue;
        }
        if (option == "--no-scribbling") {
            may_scribble = false;
            continue;
        }
        if (++i == argc) refuse_arguments();
        const std::uint64_t value = std::strtoull(argv[i], nullptr, 10);
        if (option == "--headers") {
            headers = value;
        } else if (option == "--files") {
            files = value;
        } else if (option == "--seed") {
            seed = value;
        } else if (option == "--only") {
            one_case = true;
            only = value;
        } else {
            refuse_arguments();
        }
    }
    signal(SIGALRM, end_by_signal);
#ifdef MPBUFFER_ASAN
    __sanitizer_set_death_callback(tell_case);
#else
    for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) signal(number, end_by_signal);
#endif
    signal(SIGABRT, end_by_signal);
    if (one_case) {
        run_case(seed, only, only >= headers, may_scribble);
    } else {
        for (std::uint64_t number = 0; number < headers + files; ++number) {
            run_case(seed, number, number >= headers, may_scribble);
        }
    }
    alarm(0);
    mpbuffer::fuzz::print_counts();
    return 0;
}
