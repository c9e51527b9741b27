#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/crc32.hpp"
#include "base/error.hpp"
#include "forked_child.hpp"
#include "os/durable_files.hpp"

using namespace mpbuffer;

namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
    return std::as_bytes(std::span(text));
}

std::string content_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("files are written as they are given, with their CRC-32") {
    const ScratchDirectory scratch;
    const std::string head = "head ";
    std::vector<std::string> values;
    for (int i = 0; i < 40; ++i) values.emplace_back(1 + i * 5000, static_cast<char>('a' + i % 26));
    std::vector<NewFile> files;
    for (std::size_t i = 0; i < values.size(); ++i) {
        files.push_back(
            {scratch.path() + "/" + std::to_string(i), bytes_of(head), bytes_of(values[i])});
    }
    write_files(files);
    std::vector<int> descriptors;
    for (const NewFile& file : files) descriptors.push_back(file.descriptor);
    sync_files(descriptors);
    for (std::size_t i = 0; i < files.size(); ++i) {
        CHECK(content_of(files[i].path) == head + values[i]);
        CHECK(files[i].crc32 == crc32(bytes_of(head + values[i])));
        CHECK(close(files[i].descriptor) == 0);
    }
}

TEST_CASE("a file that cannot be made is named, and none is left open") {
    const ScratchDirectory scratch;
    const std::string text = "text";
    const std::string taken = scratch.path() + "/taken";
    std::ofstream(taken) << "mine";
    std::vector<NewFile> files;
    for (const std::string& path : {scratch.path() + "/free", taken}) {
        files.push_back({path, bytes_of(text), bytes_of(text)});
    }
    const int next = dup(0);
    close(next);
    CHECK_THROWS_WITH_AS(write_files(files), doctest::Contains(taken.c_str()), SystemFailure);
    CHECK(content_of(taken) == "mine");
    const int again = dup(0);
    close(again);
    CHECK(again == next);
}

TEST_CASE("a descriptor that cannot be synced is a failure") {
    const int closed = dup(0);
    close(closed);
    CHECK_THROWS_AS(sync_files(std::vector{closed}), SystemFailure);
    CHECK_NOTHROW(sync_files({}));
}
