#include <doctest/doctest.h>

#include <cstddef>
#include <random>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "format/row_schema.hpp"

using namespace mpbuffer;

namespace {

std::vector<std::size_t> offsets(const Schema& schema) {
    std::vector<std::size_t> all;
    for (const Field& field : schema.fields()) all.push_back(field.offset);
    return all;
}

}  // namespace

TEST_CASE("fields keep their order and lie at multiples of their alignment") {
    const Schema schema({{"obs", 24, 4}, {"done", 1, 1}, {"rew", 8, 8}, {"act", 2, 2}});
    CHECK(offsets(schema) == std::vector<std::size_t>{0, 24, 32, 40});
    CHECK(schema.fields()[1].name == "done");
    CHECK(schema.row_bytes() == 42);
}

TEST_CASE("random schemas: no two fields overlap, no gap is larger than an alignment asks for") {
    std::mt19937_64 random(2);
    for (int round = 0; round < 2000; ++round) {
        std::vector<Field> fields;
        const std::size_t count = 1 + random() % 12;
        for (std::size_t i = 0; i < count; ++i) {
            fields.push_back(
                {std::string(i + 1, 'f'), random() % 100, std::size_t{1} << (random() % 5)});
        }
        const Schema schema(fields);
        std::size_t end = 0;
        for (const Field& field : schema.fields()) {
            REQUIRE(field.offset >= end);
            REQUIRE(field.offset % field.alignment == 0);
            REQUIRE(field.offset - end < field.alignment);
            end = field.offset + field.bytes;
        }
        REQUIRE(schema.row_bytes() == end);
    }
}

TEST_CASE("a schema that cannot be is refused") {
    CHECK_THROWS_AS(Schema({}), InvalidArgument);
    CHECK_THROWS_WITH_AS(Schema({{"obs", 4, 4}, {"obs", 8, 8}}),
                         "cannot lay out a row: field 'obs' comes twice", InvalidArgument);
    CHECK_THROWS_AS(Schema({{"obs", 4, 0}}), InvalidArgument);
    CHECK_THROWS_AS(Schema({{"obs", 4, 3}}), InvalidArgument);
}

TEST_CASE("a row beyond 2^40 bytes is refused, also where sums would overflow") {
    const std::size_t limit = std::size_t{1} << 40;
    CHECK(Schema({{"a", limit, 1}}).row_bytes() == limit);
    CHECK_THROWS_AS(Schema({{"a", limit + 1, 1}}), InvalidArgument);
    CHECK_THROWS_AS(Schema({{"a", limit, 1}, {"b", 1, 1}}), InvalidArgument);
    CHECK_THROWS_AS(Schema({{"a", limit - 1, 1}, {"b", 1, 64}}), InvalidArgument);
    CHECK_THROWS_AS(Schema({{"a", ~std::size_t{0}, 1}}), InvalidArgument);
    CHECK_THROWS_AS(Schema({{"a", 8, 1}, {"b", ~std::size_t{0} - 4, 8}}), InvalidArgument);
    CHECK_THROWS_AS(Schema({{"a", 1, 1}, {"b", 1, std::size_t{1} << 63}}), InvalidArgument);
}
