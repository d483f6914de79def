#include "core/pack/checksum.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

std::vector<uint8_t> random_bytes(int64_t count) {
    std::mt19937 generator(2);
    std::vector<uint8_t> bytes(static_cast<size_t>(count));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
    return bytes;
}

void known_checksums() {
    const std::vector<uint8_t> digits = {'1', '2', '3', '4', '5', '6', '7', '8', '9'};
    CHECK(crc32_by_table(0, digits.data(), 9) == 0xCBF43926);
    CHECK(crc32(0, digits.data(), 9) == 0xCBF43926);
    CHECK(crc32(0, nullptr, 0) == 0 && crc32_by_table(0, nullptr, 0) == 0);
    const std::vector<uint8_t> zeros(100000);
    CHECK(crc32(0, zeros.data(), 32) == 0x190A55AD);  // as zlib has it
    CHECK(crc32(0, zeros.data(), 100000) == crc32_by_table(0, zeros.data(), 100000));
}

void every_length_place_and_start_is_the_tables() {
    const auto bytes = random_bytes(5000);
    for (const uint32_t start : {0u, 1u, 0xFFFFFFFFu, 0x80000000u, 0x12345678u}) {
        for (int64_t place = 0; place < 65; place += start == 0 ? 1 : 7) {
            for (int64_t count = 0; count < 400; ++count) {
                CHECK(crc32(start, bytes.data() + place, count) ==
                      crc32_by_table(start, bytes.data() + place, count));
            }
            const int64_t rest = 5000 - place;
            CHECK(crc32(start, bytes.data() + place, rest) ==
                  crc32_by_table(start, bytes.data() + place, rest));
        }
    }
}

void parts_make_the_whole() {
    const auto bytes = random_bytes(3000);
    const uint32_t whole = crc32(0, bytes.data(), 3000);
    for (int64_t first = 0; first <= 3000; first += 13) {
        CHECK(crc32(crc32(0, bytes.data(), first), bytes.data() + first, 3000 - first) == whole);
    }
}

void every_bit_counts() {
    auto bytes = random_bytes(300);
    const uint32_t whole = crc32(9, bytes.data(), 300);
    for (size_t bit = 0; bit < 2400; ++bit) {
        bytes[bit / 8] = static_cast<uint8_t>(bytes[bit / 8] ^ 1 << bit % 8);
        CHECK(crc32(9, bytes.data(), 300) != whole);
        bytes[bit / 8] = static_cast<uint8_t>(bytes[bit / 8] ^ 1 << bit % 8);
    }
}

}  // namespace

RUN_TESTS(known_checksums, every_length_place_and_start_is_the_tables, parts_make_the_whole, every_bit_counts)
