#include <doctest/doctest.h>

#include <cerrno>
#include <string>

#include "base/error.hpp"

using namespace mpbuffer;

TEST_CASE("an errno becomes a sentence with its name") {
    CHECK(errno_sentence(EACCES) == "permission denied (EACCES)");
    CHECK(errno_sentence(ENOSPC) == "no space left on device (ENOSPC)");
    CHECK(errno_sentence(EXDEV).find("(errno 18)") != std::string::npos);
}

TEST_CASE("a system failure keeps the number and begins with what was tried") {
    try {
        throw_system_failure("cannot open /a/b", ENOENT);
    } catch (const Error& error) {
        CHECK(std::string(error.what()) == "cannot open /a/b: no such file or directory (ENOENT)");
        REQUIRE(dynamic_cast<const SystemFailure*>(&error) != nullptr);
        CHECK(dynamic_cast<const SystemFailure&>(error).code == ENOENT);
    }
}
