#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "base/seqlock.hpp"
#include "ring_on_heap.hpp"

using namespace mpbuffer;

namespace {

struct Value {
    std::array<std::uint64_t, 14> same;
    double half;
};

Value value_of(std::uint64_t number) {
    Value value{};
    value.same.fill(number);
    value.half = static_cast<double>(number) / 2;
    return value;
}

bool whole(const Value& value) {
    for (const std::uint64_t each : value.same) {
        if (each != value.same[0]) return false;
    }
    return value.half == static_cast<double>(value.same[0]) / 2;
}

using Lock = SeqLock<Value>;

std::atomic<std::uint64_t>& sequence_of(Lock& lock) {
    return *reinterpret_cast<std::atomic<std::uint64_t>*>(&lock);
}

}  // namespace

TEST_CASE("what was stored is loaded; zeroed memory was never stored") {
    const auto lock = std::make_unique<Lock>();
    CHECK_FALSE(lock->ever_stored());
    CHECK(lock->load()->same[3] == 0);
    lock->store(value_of(7));
    CHECK(lock->ever_stored());
    CHECK(lock->load()->same[13] == 7);
    CHECK(lock->load()->half == 3.5);
    CHECK(lock->load_patiently()->same[0] == 7);
}

TEST_CASE("a value whose writer died in the middle is not loaded until the next is stored") {
    const auto lock = std::make_unique<Lock>();
    lock->store(value_of(7));
    sequence_of(*lock) += 1;
    CHECK_FALSE(lock->load());
    CHECK_FALSE(lock->load_patiently());
    CHECK(lock->load_torn().same[0] == 7);
    lock->store(value_of(8));
    CHECK(lock->load()->same[0] == 8);
}

TEST_CASE("values that are loaded while others are stored are whole, and none comes back") {
    const auto lock = std::make_unique<Lock>();
    std::atomic<bool> stop{false};
    std::atomic<int> wrong{0};
    std::vector<std::thread> readers;
    for (int i = 0; i < 2; ++i) {
        readers.emplace_back([&] {
            std::uint64_t newest = 0;
            while (!stop) {
                const auto value = lock->load();
                if (!value) continue;
                if (!whole(*value) || value->same[0] < newest) ++wrong;
                newest = value->same[0];
            }
        });
    }
    for (std::uint64_t i = 1; i <= 400'000 / sanitizer_slowdown; ++i) lock->store(value_of(i));
    stop = true;
    for (std::thread& reader : readers) reader.join();
    CHECK(wrong == 0);
    CHECK(lock->load()->same[0] == 400'000 / sanitizer_slowdown);
}
