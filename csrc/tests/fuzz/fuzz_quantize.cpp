// Any floats, widths and ranges: fused and apart, and on every instruction set, the same levels in the same
// words and planes, each within its width, without touching memory that is not their own.
#include <cstring>

#include "core/pack/packed_levels.h"
#include "core/pack/quantize.h"
#include "core/pack/streams.h"
#include "tests/fuzz/fuzz_input.h"

using namespace diffq_fast;

namespace {

struct Case {
    Grouping grouping;
    std::vector<uint8_t> widths;
    std::vector<float> ranges;
    Floats weight;

    AllWidthsAndRanges widths_and_ranges() const { return {{widths.data()}, ranges.data(), grouping}; }
    Packing packing(int64_t words) const {
        return {widths.data(), weight.count, grouping.group_size, words, 1};
    }
    int width_of(int64_t element) const {
        return widths[static_cast<size_t>(group_of(element, grouping.group_size))];
    }
};

std::vector<uint32_t> levels_of(const Case& given) {
    std::vector<uint32_t> levels(static_cast<size_t>(given.weight.count));
    quantize({given.weight}, given.widths_and_ranges(), {levels.data()}, 1);
    return levels;
}

void check_fake_quantize(const Case& given, const std::vector<uint32_t>& levels) {
    const int64_t count = given.weight.count;
    std::vector<float> there(levels.size()), here(levels.size());
    dequantize({levels.data()}, given.widths_and_ranges(), {{there.data(), count, DType::float32}}, 1);
    fake_quantize({given.weight}, given.widths_and_ranges(), {{here.data(), count, DType::float32}}, 1);
    require(levels.empty() || std::memcmp(here.data(), there.data(), levels.size() * 4) == 0);
}

void check_words(const Case& given, const Streams& streams, const std::vector<uint32_t>& levels) {
    const Packing packing = given.packing(streams.words());
    std::vector<uint32_t> words(static_cast<size_t>(streams.words())), back(levels.size());
    require(
        quantize_pack(packing, given.weight, given.ranges.data(), given.grouping.per_group, words.data()));
    require(unpack(packing, words.data(), back.data()));
    require(back == levels);
}

// Planes of the levels of each width in turn, against their definition.
void check_planes(const Case& given, const Streams& streams, const std::vector<uint32_t>& levels) {
    std::vector<std::vector<uint64_t>> planes;
    std::vector<void*> addresses;
    for (size_t i = 0; i < kMaxWidth; ++i) {
        const int64_t blocks = (streams.level_counts()[i] + 2047) / 2048;
        planes.emplace_back(static_cast<size_t>(blocks * static_cast<int64_t>(i + 1) * 32), ~uint64_t{0});
        addresses.push_back(planes.back().data());
    }
    require(quantize_planes(given.packing(0), given.weight, given.ranges.data(), streams.level_counts(),
                            addresses));
    int64_t places[kMaxWidth] = {};
    for (int64_t i = 0; i < given.weight.count; ++i) {
        const int width = given.width_of(i);
        const int64_t place = places[width - 1]++, block = place / 2048, row = place % 2048 / 32;
        uint32_t level = 0;
        for (int bit = 0; bit < width; ++bit) {
            const int64_t word = (block * width + bit) * 32 + place % 32;
            const uint64_t plane = planes[static_cast<size_t>(width) - 1][static_cast<size_t>(word)];
            level |= static_cast<uint32_t>(plane >> row & 1) << bit;
        }
        require(level == levels[static_cast<size_t>(i)]);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input input(data, size);
    const char* const instruction_set = input.instruction_set();
    const int64_t count = input.count();
    Case given;
    given.grouping.group_size = input.byte() % 20;
    const uint8_t choices = input.byte();
    given.grouping.per_group = choices & 1;
    const auto dtype = static_cast<DType>((choices >> 1) % 3);
    const int64_t groups = group_count(count, given.grouping.group_size);
    given.widths = input.items<uint8_t>(groups);
    for (uint8_t& width : given.widths) width = static_cast<uint8_t>(width % 16 + 1);
    given.ranges = input.items<float>(2 * given.grouping.range_count(count));
    auto weight = input.items<uint8_t>(count * item_size(dtype));
    given.weight = {weight.data(), count, dtype};
    use_kernels("scalar");
    const auto levels = levels_of(given);
    for (int64_t i = 0; i < count; ++i) {
        const int width = given.width_of(i);
        require(levels[static_cast<size_t>(i)] >> width == 0);
    }
    use_kernels(instruction_set);
    require(levels_of(given) == levels);
    const Streams streams(given.widths.data(), count, given.grouping.group_size, 1);
    check_fake_quantize(given, levels);
    check_words(given, streams, levels);
    if (!given.grouping.per_group && choices >= 128) check_planes(given, streams, levels);
    return 0;
}
