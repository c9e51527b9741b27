#include <doctest/doctest.h>

#include <map>
#include <random>

#include "select/laps.hpp"
#include "select/recent_draws.hpp"

using namespace mpbuffer;

TEST_CASE("the row last sampled in a slot is known for eight batches at least") {
    std::mt19937_64 random(3);
    for (const std::uint64_t slots : {8, 100, 100'000}) {
        RecentDraws recent;
        CHECK(recent.seq_in(0) == 0);
        std::vector<std::vector<std::uint64_t>> batches;
        std::uint64_t seq = slots;
        for (int round = 0; round < 200; ++round) {
            const std::size_t count = 1 + random() % (round < 100 ? 40 : 300);
            std::vector<std::uint64_t> drawn;
            std::vector<std::uint64_t> seqs;
            for (std::size_t i = 0; i < count; ++i) {
                drawn.push_back(random() % slots);
                seqs.push_back(++seq);
            }
            recent.reserve(count);
            recent.remember(drawn, seqs);
            batches.push_back(drawn);
            std::map<std::uint64_t, std::uint64_t> last;
            std::uint64_t at = seq;
            for (std::size_t back = 0; back < RecentDraws::batches_kept && back < batches.size();
                 ++back) {
                const auto& batch = batches[batches.size() - 1 - back];
                for (std::size_t i = batch.size(); i-- > 0; --at) last.emplace(batch[i], at);
            }
            for (const auto& [slot, expected] : last) REQUIRE(recent.seq_in(slot) == expected);
            for (int look = 0; look < 20; ++look) {
                const std::uint64_t slot = random() % slots;
                const std::uint64_t found = recent.seq_in(slot);
                REQUIRE((last.contains(slot) || found <= at));
            }
        }
    }
}

TEST_CASE("laps follow from seqs and seqs from laps, near a position and far from it") {
    std::mt19937_64 random(4);
    for (const std::uint64_t capacity : {1, 2, 7, 64, 1000, 1 << 20}) {
        Laps laps(capacity);
        std::uint64_t position = capacity;
        for (int round = 0; round < 2000; ++round) {
            position += random() % (3 * capacity);
            if (round == 1000) position += capacity << 32;  // the laps' 32 bits have gone round
            laps.move_to(position);
            for (int look = 0; look < 10; ++look) {
                const std::uint64_t least = position - std::min(position, 4 * capacity);
                const std::uint64_t seq = least + random() % (5 * capacity);
                REQUIRE(laps.of(seq) == static_cast<std::uint32_t>(seq / capacity));
                REQUIRE(laps.seq(seq % capacity, laps.of(seq)) == seq);
            }
        }
    }
}
