#include <cstring>

#include "core/file/crc32.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

// Bit by bit, as the polynomial is written down.
uint32_t slow_crc32(const std::vector<uint8_t>& data) {
    uint32_t sum = 0xFFFFFFFF;
    for (const uint8_t byte : data) {
        sum ^= byte;
        for (int bit = 0; bit < 8; ++bit) sum = sum >> 1 ^ (sum & 1 ? 0xEDB88320 : 0);
    }
    return ~sum;
}

void the_check_value_is_the_standards() {
    const char* const digits = "123456789";
    CHECK(crc32(reinterpret_cast<const uint8_t*>(digits), std::strlen(digits)) == 0xCBF43926);
}

void every_length_and_cut_gives_the_same() {
    std::mt19937 generator(1);
    for (const int64_t count : kAwkwardCounts) {
        std::vector<uint8_t> data(static_cast<size_t>(count));
        for (uint8_t& byte : data) byte = static_cast<uint8_t>(generator());
        const uint32_t expected = slow_crc32(data);
        for (const size_t cut : {size_t{0}, data.size() / 3, data.size()})
            CHECK(crc32(data.data() + cut, data.size() - cut, crc32(data.data(), cut)) == expected);
    }
}

}  // namespace

RUN_TESTS(the_check_value_is_the_standards, every_length_and_cut_gives_the_same)
