#include <algorithm>

#include "core/pack/coding.h"
#include "core/runtime/dispatch.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

const LevelCode kConstant{-7, 0, {}, false, 17}, kPlain{-20, 6, {}, false, 17},
    kTable{-2, 0, {300, 700, 2096, 700, 300}, false, 17},
    kLowBits{-20, 3, {300, 700, 2096, 700, 300}, false, 17}, kEscape{-1, 0, {1000, 2000, 1000, 96}, true, 17},
    kLong{0, 0, {4000, 90, 6}, true, 19}, kEscapedLow{-4, 2, {2048, 2000, 48}, true, 17},
    kRare{-5, 1, {1, 4094, 1}, false, 17};

// Levels in about the frequencies of the code; escapes anywhere.
std::vector<int32_t> levels_for(const LevelCode& code, int64_t count, uint32_t seed) {
    std::mt19937 generator(seed);
    std::vector<double> weights(code.frequencies.begin(), code.frequencies.end());
    if (weights.empty()) weights = {1};
    std::discrete_distribution<int32_t> symbols(weights.begin(), weights.end());
    std::vector<int32_t> levels(static_cast<size_t>(count));
    for (int32_t& level : levels) {
        const int32_t symbol = symbols(generator);
        const auto low = static_cast<int32_t>(generator() & ((1u << code.low_bits) - 1));
        level = code.origin + (symbol << code.low_bits) + low;
        if (code.escape && symbol == code.known()) level = static_cast<int16_t>(generator());
    }
    return levels;
}

std::vector<uint16_t> encoded(const LevelCode& code, const std::vector<int32_t>& levels, int threads = 1) {
    std::vector<uint16_t> words;
    const auto count = static_cast<int64_t>(levels.size());
    CHECK(encode_levels(levels.data(), count, code, threads, words) == nullptr);
    return words;
}

const char* decoded(const std::vector<uint16_t>& words, std::vector<int32_t>& levels, int threads = 1) {
    return decode_levels(words.data(), static_cast<int64_t>(words.size()),
                         static_cast<int64_t>(levels.size()), levels.data(), threads);
}

void every_code_and_count_round_trips() {
    for (const LevelCode& code : {kConstant, kPlain, kTable, kLowBits, kEscape, kLong, kEscapedLow, kRare}) {
        std::vector<int64_t> counts = kAwkwardCounts;
        counts.insert(counts.end(), {63488, 63489, 70000, 131072, 131073, 300000, 600000});
        for (const int64_t count : counts) {
            const auto levels = levels_for(code, count, 1);
            const auto words = encoded(code, levels);
            CHECK(words == encoded(code, levels, 3));
            std::vector<int32_t> back(levels.size(), 99);
            CHECK(decoded(words, back) == nullptr && back == levels);
            std::fill(back.begin(), back.end(), 99);
            CHECK(decoded(words, back, 3) == nullptr && back == levels);
        }
    }
}

void no_levels_have_no_words() {
    for (const LevelCode& code : {kConstant, kPlain, kTable, kEscape}) CHECK(encoded(code, {}).empty());
}

void instruction_sets_decode_the_same() {
    for (const LevelCode& code : {kTable, kLowBits, kEscape, kLong, kEscapedLow, kRare}) {
        const auto levels = levels_for(code, 140000, 2);
        const auto words = encoded(code, levels);
        for (const Kernels* each : supported_kernels()) {
            CHECK(use_kernels(each->name));
            std::vector<int32_t> back(levels.size());
            CHECK(decoded(words, back) == nullptr && back == levels);
        }
    }
}

// Two values with the frequencies 1/4 and 3/4, worked out by hand: x = 2^16; 0 makes (65536 / 1024 << 12) =
// 262144, 1 makes (262144 / 3072 << 12) + 262144 % 3072 + 1024 = 350208 (quotient 85, rest 1024).
void a_stream_is_what_the_page_says() {
    const LevelCode code{5, 0, {1024, 3072}, false, 17};
    const std::vector<int32_t> levels = {6, 5};
    const std::vector<uint16_t> expected = {10 << 8,         0x8002,
                                            0x8008,          0x0018,  // 0, 10, 2, 1024, 3072, 0 words
                                            350208 & 0xFFFF, 350208 >> 16};
    CHECK(encoded(code, levels) == expected);
}

void no_part_of_a_stream_decodes() {
    for (const LevelCode& code : {kConstant, kPlain, kTable, kLowBits, kEscape}) {
        const auto words = encoded(code, levels_for(code, 3000, 3));
        for (size_t length = 0; length < words.size(); ++length) {
            const std::vector<uint16_t> part(words.begin(),
                                             words.begin() + static_cast<std::ptrdiff_t>(length));
            std::vector<int32_t> back(3000);
            CHECK(decoded(part, back) != nullptr);
        }
    }
}

void levels_and_codes_without_sense_are_refused() {
    std::vector<uint16_t> words;
    const std::vector<int32_t> levels = {0, 1, 2000};
    CHECK(encode_levels(levels.data(), 3, kTable, 1, words) != nullptr);
    CHECK(encode_levels(levels.data(), 3, kConstant, 1, words) != nullptr);
    CHECK(encode_levels(levels.data(), 3, kEscape, 1, words) == nullptr);
    for (const int32_t level : {-32769, 32768, INT32_MIN, INT32_MAX}) {  // beyond 16 bits
        for (const LevelCode& code : {kEscape, kPlain, LevelCode{-32768, 16, {}, false, 17}})
            CHECK(encode_levels(&level, 1, code, 1, words) != nullptr);
    }
    const LevelCode wrong[] = {{0, 17, {}, false, 17},
                               {0, -1, {}, false, 17},
                               {0, 0, {4095}, false, 17},
                               {0, 0, {4096, 0}, false, 17},
                               {0, 0, {2048, 2047}, false, 17},
                               {0, 0, {4000, 96, 0}, true, 17},
                               {32767, 0, {2048, 2048}, false, 17},
                               {0, 0, {2048, 2048}, false, 18},
                               {0, 0, {2048, 2048}, false, 25},
                               {0, 4, {}, false, 19},
                               {0, 0, {}, true, 17}};
    for (const LevelCode& code : wrong) CHECK(problem_of(code) != nullptr);
}

}  // namespace

RUN_TESTS(every_code_and_count_round_trips, no_levels_have_no_words, instruction_sets_decode_the_same,
          a_stream_is_what_the_page_says, no_part_of_a_stream_decodes,
          levels_and_codes_without_sense_are_refused)
