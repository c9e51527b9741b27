// What attach_fuzz.cpp makes of one input, and counts.
//
// An input is a recipe: which valid segment to begin with, what to change in its header,
// description and body, whether to make the checksum right again, whether to read the header only
// or to attach to the file and use the buffer. Any bytes are a recipe. Whatever comes of it must be
// an error of the core's own, or a buffer whose every call ends in a result or such an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace mpbuffer::fuzz {

constexpr std::uint8_t seals = 1;        // of the first byte: make the checksum right again
constexpr std::uint8_t uses_a_file = 2;  // else the header is read from memory
constexpr std::uint8_t scribbles = 4;    // the file's body is changed also while the buffer is used

struct Counts {
    std::uint64_t headers = 0;
    std::uint64_t sealed_headers = 0;
    std::uint64_t accepted_headers = 0;
    std::uint64_t files = 0;
    std::uint64_t sealed_files = 0;
    std::uint64_t attached_files = 0;
    std::uint64_t calls = 0;  // of attached buffers
    std::uint64_t inspections = 0;
    std::uint64_t inspected_damaged = 0;
    std::map<std::string, std::uint64_t> errors;  // by call and class
};

Counts& counts();
void print_counts();

}  // namespace mpbuffer::fuzz
