#include <cmath>
#include <cstring>

#include "core/pack/packed_levels.h"
#include "core/pack/quantize.h"
#include "core/pack/streams.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

std::vector<uint32_t> random_levels(int64_t count, int width, uint32_t seed) {
    std::mt19937 generator(seed);
    std::vector<uint32_t> levels(static_cast<size_t>(count));
    for (uint32_t& level : levels) level = generator() & ((1u << width) - 1);
    return levels;
}

std::vector<uint8_t> random_widths(int64_t groups, uint32_t seed) {
    std::mt19937 generator(seed);
    std::vector<uint8_t> widths(static_cast<size_t>(groups));
    for (uint8_t& width : widths) width = static_cast<uint8_t>(1 + generator() % 16);
    return widths;
}

// Bit j of level i by the definition of the layout.
bool bit_of(const std::vector<uint32_t>& words, int width, int64_t count, int64_t i, int j) {
    const int64_t block = i / kPackBlock, inside = i % kPackBlock;
    const int64_t lanes = lanes_of(std::min(kPackBlock, count - block * kPackBlock));
    const int64_t bit = inside / lanes * width + j;
    const int64_t word = block * kBlockRows * width + bit / 32 * lanes + inside % lanes;
    return words[static_cast<size_t>(word)] >> (bit % 32) & 1;
}

void every_width_and_count_round_trips() {
    for (int width = 1; width <= kMaxWidth; ++width) {
        const auto width8 = static_cast<uint8_t>(width);
        for (const int64_t count : kAwkwardCounts) {
            const auto levels = random_levels(count, width, static_cast<uint32_t>(count));
            const int64_t words = width * ((count + 31) / 32);
            CHECK(stream_words(count, width) == words);
            std::vector<uint32_t> packed(static_cast<size_t>(words), 0xdeadbeef), back(levels.size());
            const Packing packing{&width8, count, 0, words, 1};
            CHECK(pack(packing, levels.data(), packed.data()));
            for (int64_t i = 0; i < count; i += 13) {
                for (int j = 0; j < width; ++j) {
                    CHECK(bit_of(packed, width, count, i, j) == (levels[static_cast<size_t>(i)] >> j & 1));
                }
            }
            CHECK(unpack(packing, packed.data(), back.data()));
            CHECK(back == levels);
        }
    }
}

void mixed_widths_round_trip_in_streams() {
    for (const int64_t group_size : {1, 2, 3, 4, 7, 8, 16, 100, 2000}) {
        for (const int64_t count : kAwkwardCounts) {
            const int64_t groups = group_count(count, group_size);
            const auto widths = random_widths(groups, static_cast<uint32_t>(count));
            auto levels = random_levels(count, 16, 1);
            int64_t words = 0;
            for (int width = 1; width <= kMaxWidth; ++width) {
                int64_t members = 0;
                for (int64_t i = 0; i < count; ++i) {
                    if (widths[static_cast<size_t>(i / group_size)] != width) continue;
                    levels[static_cast<size_t>(i)] &= (1u << width) - 1;
                    ++members;
                }
                words += stream_words(members, width);
            }
            std::vector<uint32_t> one(static_cast<size_t>(words)), three(one), back(levels.size());
            CHECK(pack({widths.data(), count, group_size, words, 1}, levels.data(), one.data()));
            CHECK(pack({widths.data(), count, group_size, words, 3}, levels.data(), three.data()));
            CHECK(one == three);
            CHECK(unpack({widths.data(), count, group_size, words, 1}, one.data(), back.data()));
            CHECK(back == levels);
        }
    }
}

// Words by the layout's definition: each width's levels in group order, one bit after the other.
std::vector<uint32_t> words_by_definition(const std::vector<uint32_t>& levels,
                                          const std::vector<uint8_t>& widths, int64_t group_size) {
    std::vector<uint32_t> words;
    for (int width = 1; width <= kMaxWidth; ++width) {
        std::vector<uint32_t> stream;
        for (size_t i = 0; i < levels.size(); ++i) {
            if (widths[i / static_cast<size_t>(group_size)] == width) stream.push_back(levels[i]);
        }
        const auto count = static_cast<int64_t>(stream.size());
        std::vector<uint32_t> packed(static_cast<size_t>(stream_words(count, width)));
        for (int64_t i = 0; i < count; ++i) {
            const int64_t block = i / kPackBlock, inside = i % kPackBlock;
            const int64_t lanes = lanes_of(std::min(kPackBlock, count - block * kPackBlock));
            for (int j = 0; j < width; ++j) {
                const int64_t bit = inside / lanes * width + j;
                const int64_t word = block * kBlockRows * width + bit / 32 * lanes + inside % lanes;
                packed[static_cast<size_t>(word)] |= (stream[static_cast<size_t>(i)] >> j & 1) << (bit % 32);
            }
        }
        words.insert(words.end(), packed.begin(), packed.end());
    }
    return words;
}

// Long enough to be cut into slices, with a width so rare that its blocks reach over several of them.
void weights_of_many_slices_pack_as_defined() {
    for (const int64_t group_size : {1, 3, 8, 1000, 200000}) {
        const int64_t count = 700001, groups = group_count(count, group_size);
        auto widths = random_widths(groups, 7);
        for (int64_t g = 0; g < groups; ++g) {
            if (widths[static_cast<size_t>(g)] == 16 && g % 64 != 0) widths[static_cast<size_t>(g)] = 5;
        }
        const auto weights = random_floats(count, 8);
        std::vector<uint16_t> halves(weights.size());
        for (size_t i = 0; i < weights.size(); ++i) halves[i] = bfloat16_from_float(weights[i]);
        std::vector<float> ranges;
        for (int64_t g = 0; g < groups; ++g) {
            ranges.push_back(-1.0f - static_cast<float>(g % 5));
            ranges.push_back(1.0f + static_cast<float>(g % 3));
        }
        const Floats floats{const_cast<float*>(weights.data()), count, DType::float32};
        const Floats short_floats{halves.data(), count, DType::bfloat16};
        for (const bool per_group : {false, true}) {
            for (const Floats& weight : {floats, short_floats}) {
                const AllWidthsAndRanges given{{widths.data()}, ranges.data(), {group_size, per_group}};
                std::vector<uint32_t> levels(weights.size()), back(levels);
                quantize({weight}, given, {levels.data()}, 1);
                const auto expected = words_by_definition(levels, widths, group_size);
                std::vector<float> there(weights.size()), here(there);
                dequantize({levels.data()}, given, {{there.data(), count, weight.dtype}}, 1);
                for (const int threads : {1, 3}) {
                    std::vector<uint32_t> words(expected.size());
                    const Packing packing{widths.data(), count, group_size,
                                          static_cast<int64_t>(expected.size()), threads};
                    CHECK(pack(packing, levels.data(), words.data()) && words == expected);
                    std::fill(words.begin(), words.end(), 0);
                    CHECK(quantize_pack(packing, weight, ranges.data(), per_group, words.data()));
                    CHECK(words == expected);
                    CHECK(unpack(packing, words.data(), back.data()) && back == levels);
                    CHECK(unpack_dequantize(packing, words.data(), ranges.data(), per_group,
                                            {here.data(), count, weight.dtype}));
                    const auto bytes = static_cast<size_t>(count * item_size(weight.dtype));
                    CHECK(std::memcmp(here.data(), there.data(), bytes) == 0);
                    std::fill(here.begin(), here.end(), 0.0f);
                    fake_quantize({weight}, given, {{here.data(), count, weight.dtype}}, threads);
                    CHECK(std::memcmp(here.data(), there.data(), bytes) == 0);
                }
            }
        }
    }
}

void too_few_words_or_wrong_widths_are_refused() {
    const std::vector<uint8_t> good = {4, 5}, zero = {0, 5}, large = {4, 17};
    std::vector<uint32_t> levels(16), words(9);
    CHECK(pack({good.data(), 16, 8, 9, 1}, levels.data(), words.data()));
    CHECK(!pack({good.data(), 16, 8, 8, 1}, levels.data(), words.data()));
    CHECK(!unpack({good.data(), 16, 8, 10, 1}, words.data(), levels.data()));
    CHECK(!pack({zero.data(), 16, 8, 9, 1}, levels.data(), words.data()));
    CHECK(!unpack({large.data(), 16, 8, 9, 1}, words.data(), levels.data()));
}

void levels_too_large_do_not_reach_their_neighbours() {
    const uint8_t width = 3;
    std::vector<uint32_t> levels(64, 0xffffffff), words(6), back(64);
    CHECK(pack({&width, 64, 0, 6, 1}, levels.data(), words.data()));
    CHECK(unpack({&width, 64, 0, 6, 1}, words.data(), back.data()));
    CHECK(back == std::vector<uint32_t>(64, 7));
}

// The specification's formula with the library's rounding.
uint32_t expected_level(float weight, float lo, float hi, int width) {
    const float u = 1.0f / static_cast<float>((1 << width) - 1);
    return static_cast<uint32_t>(std::nearbyint(((weight - lo) / (hi - lo)) / u));
}

void fused_kernels_equal_quantize_then_pack() {
    for (const int64_t group_size : {0, 1, 7, 8}) {
        for (const int64_t count : kAwkwardCounts) {
            if (count == 0) continue;
            auto weights = random_floats(count, 3);
            const auto [lo, hi] = std::minmax_element(weights.begin(), weights.end());
            const float range[2] = {*lo, *hi};
            const auto widths = random_widths(group_count(count, group_size), 4);
            const Floats weight{weights.data(), count, DType::float32};
            const AllWidthsAndRanges given{{widths.data()}, range, {group_size, false}};
            std::vector<uint32_t> levels(weights.size());
            quantize({weight}, given, {levels.data()}, 1);
            if (count > 1) {
                for (int64_t i = 0; i < count; ++i) {
                    const int width = widths[static_cast<size_t>(group_of(i, group_size))];
                    const auto at = static_cast<size_t>(i);
                    CHECK(levels[at] == expected_level(weights[at], range[0], range[1], width));
                }
            }
            const Streams streams(widths.data(), count, group_size, 1);
            const Packing packing{widths.data(), count, group_size, streams.words(), 1};
            std::vector<uint32_t> apart(static_cast<size_t>(streams.words())), fused(apart);
            CHECK(pack(packing, levels.data(), apart.data()));
            CHECK(quantize_pack(packing, weight, range, false, fused.data()));
            CHECK(apart == fused);
            std::vector<float> there(weights.size()), here(weights.size());
            dequantize({levels.data()}, given, {{there.data(), count, DType::float32}}, 1);
            CHECK(
                unpack_dequantize(packing, fused.data(), range, false, {here.data(), count, DType::float32}));
            CHECK(there == here);
        }
    }
}

// A range of its own for each group, whose rows a block must find from its middle on too.
void fused_kernels_find_the_range_of_each_group() {
    for (const int64_t group_size : {1, 7, 8, 100, 1500}) {
        for (const int64_t count : kAwkwardCounts) {
            const auto weights = random_floats(count, 3);
            const int64_t groups = group_count(count, group_size);
            auto widths = random_widths(groups, 4);
            for (uint8_t& width : widths) width = width % 4 == 0 ? 9 : 5;  // streams of several blocks
            auto range = random_floats(2 * groups, 5);
            for (size_t g = 0; g < range.size(); g += 2)
                range[g + 1] = range[g] + 1 + std::fabs(range[g + 1]);
            const Floats weight{const_cast<float*>(weights.data()), count, DType::float32};
            const AllWidthsAndRanges given{{widths.data()}, range.data(), {group_size, true}};
            std::vector<uint32_t> levels(weights.size()), back(levels);
            quantize({weight}, given, {levels.data()}, 1);
            const Streams streams(widths.data(), count, group_size, 1);
            const Packing packing{widths.data(), count, group_size, streams.words(), 1};
            std::vector<uint32_t> words(static_cast<size_t>(streams.words()));
            CHECK(quantize_pack(packing, weight, range.data(), true, words.data()));
            CHECK(unpack(packing, words.data(), back.data()));
            CHECK(back == levels);
            std::vector<float> there(weights.size()), here(weights.size());
            dequantize({levels.data()}, given, {{there.data(), count, DType::float32}}, 1);
            CHECK(unpack_dequantize(packing, words.data(), range.data(), true,
                                    {here.data(), count, DType::float32}));
            CHECK(there == here);
            for (size_t i = 0; i < levels.size(); ++i) {
                const auto group = static_cast<size_t>(group_of(static_cast<int64_t>(i), group_size));
                const float lo = range[2 * group], hi = range[2 * group + 1];
                if (weights[i] < lo || weights[i] > hi) continue;
                CHECK(levels[i] == expected_level(weights[i], lo, hi, widths[group]));
            }
        }
    }
}

void any_float_gives_a_level_in_range() {
    std::vector<float> weights = {NAN, INFINITY, -INFINITY, 1e38f, -1e38f, 0, -0.0f, 1e-45f};
    const uint8_t width = 5;
    for (const auto& [lo, hi] : std::vector<std::pair<float, float>>{
             {-1, 1}, {0, 0}, {NAN, NAN}, {-INFINITY, INFINITY}, {-3e38f, 3e38f}, {1, -1}, {0, 1e-45f}}) {
        const float range[2] = {lo, hi};
        std::vector<uint32_t> levels(weights.size(), 99);
        quantize({{weights.data(), 8, DType::float32}}, {{&width}, range, {0, false}}, {levels.data()}, 1);
        for (const uint32_t level : levels) CHECK(level <= 31);
        CHECK(levels[0] == 0);
        if (lo == hi) CHECK(levels == std::vector<uint32_t>(8, 0));
    }
}

}  // namespace

RUN_TESTS(every_width_and_count_round_trips, mixed_widths_round_trip_in_streams,
          weights_of_many_slices_pack_as_defined, too_few_words_or_wrong_widths_are_refused,
          levels_too_large_do_not_reach_their_neighbours, fused_kernels_equal_quantize_then_pack,
          fused_kernels_find_the_range_of_each_group, any_float_gives_a_level_in_range)
