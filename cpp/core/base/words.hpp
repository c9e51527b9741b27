// What messages say of numbers, other processes and moments. States are the letters of
// /proc/PID/stat, and '?' of a process that lives and cannot be looked at; moments are ns since the
// epoch.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <string>

namespace mpbuffer {

inline std::string number_in_words(double number) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%g", number);
    return text.data();
}

inline const char* state_in_words(char state) {
    switch (state) {
        case 'R': return "running";
        case 'S': return "sleeping";
        case 'D': return "waiting for a device";
        case 'T': return "stopped";
        case 't': return "stopped by a debugger";
        case 'I': return "idle";
        case 'Z': return "a zombie";
        case 'X': return "gone";
        case '?': return "alive";
        default: return "in an unknown state";
    }
}

inline std::string process_in_words(unsigned number, std::uint64_t pid, char state) {
    return "process " + std::to_string(number) + " (pid " + std::to_string(pid) + ", " +
           state_in_words(state) + ")";
}

inline std::string time_in_words(std::uint64_t ns) {
    const auto seconds = static_cast<time_t>(ns / 1'000'000'000u);
    tm parts{};
    gmtime_r(&seconds, &parts);
    char text[40];
    return std::string(text, std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts));
}

}  // namespace mpbuffer
