#include <doctest/doctest.h>

#include <cstdint>
#include <random>

#include "format/slot_word.hpp"

using namespace mpbuffer;

TEST_CASE("a slot word's fields lie where the format says") {
    CHECK(slot_word::committed(1) == 0x10000);
    CHECK(slot_word::claimed(1, 1, 0, false) == 0x10040);
    CHECK(slot_word::claimed(1, 0x3ff, 0x1f, true) == 0x1ffff);
    CHECK(slot_word::committed(slot_word::max_seq) == 0xffffffffffff0000);
}

TEST_CASE("zero-filled memory is a committed word of seq 0") {
    CHECK(slot_word::is_committed(0));
    CHECK(slot_word::seq(0) == 0);
}

TEST_CASE("what is put into a slot word comes out again") {
    std::mt19937_64 random(1);
    for (int i = 0; i < 100'000; ++i) {
        const std::uint64_t seq = random() >> (16 + random() % 48);
        const auto owner = static_cast<unsigned>(1 + random() % 1022);
        const std::uint64_t epoch = random();
        const bool fresh = (random() & 1) != 0;
        const slot_word::Word word = slot_word::claimed(seq, owner, epoch, fresh);
        REQUIRE(slot_word::seq(word) == seq);
        REQUIRE(slot_word::owner(word) == owner);
        REQUIRE(slot_word::epoch(word) == epoch % 32);
        REQUIRE(slot_word::fresh(word) == fresh);
        REQUIRE_FALSE(slot_word::is_committed(word));
        REQUIRE(slot_word::is_committed(slot_word::committed(seq)));
        REQUIRE(slot_word::seq(slot_word::committed(seq)) == seq);
    }
}

TEST_CASE("two claims that differ in anything are different words") {
    const slot_word::Word word = slot_word::claimed(5, 7, 9, false);
    CHECK(word != slot_word::claimed(6, 7, 9, false));
    CHECK(word != slot_word::claimed(5, 8, 9, false));
    CHECK(word != slot_word::claimed(5, 7, 10, false));
    CHECK(word != slot_word::claimed(5, 7, 9, true));
    CHECK(word != slot_word::committed(5));
}
