// Any widths, count, group size and words: either refused, or unpacked without touching memory that is not
// its own, to the scalar levels, each within its width; and these pack and unpack to themselves.
#include "core/pack/packed_levels.h"
#include "core/pack/streams.h"
#include "tests/fuzz/fuzz_input.h"

using namespace diffq_fast;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input input(data, size);
    const char* const instruction_set = input.instruction_set();
    const int64_t count = input.count(), group_size = input.byte() % 33;
    const uint8_t choices = input.byte();
    auto widths = input.items<uint8_t>(group_count(count, group_size));
    if (choices % 8 != 0) {
        for (uint8_t& width : widths) width = static_cast<uint8_t>(width % 16 + 1);
    }
    const Streams streams(widths.data(), count, group_size, 1);
    const int64_t word_count = streams.valid() ? streams.words() : 1;
    const auto words = input.items<uint32_t>(word_count);
    std::vector<uint32_t> nothing;
    const int64_t wrong[] = {word_count - 1, word_count + 1, -1, 0};
    const int64_t refused = wrong[choices / 16 % 4];
    const Packing unfit{widths.data(), count, group_size, refused, 1};
    if (refused == word_count) {
        // nothing to pack: it fits
    } else if (choices & 8) {
        require(!unpack(unfit, words.data(), nothing.data()));
    } else {
        require(!pack(unfit, words.data(), nothing.data()));
    }
    const Packing packing{widths.data(), count, group_size, word_count, 1};
    if (!streams.valid()) {
        require(!unpack(packing, words.data(), nothing.data()));
        return 0;
    }
    std::vector<uint32_t> levels(static_cast<size_t>(count)), again(levels), packed(words), same(words);
    use_kernels("scalar");
    require(unpack(packing, words.data(), levels.data()) && pack(packing, levels.data(), packed.data()));
    for (int64_t i = 0; i < count; ++i)
        require(levels[static_cast<size_t>(i)] >> widths[static_cast<size_t>(group_of(i, group_size))] == 0);
    use_kernels(instruction_set);
    require(unpack(packing, words.data(), again.data()) && again == levels);
    require(pack(packing, levels.data(), same.data()) && same == packed);
    require(unpack(packing, packed.data(), again.data()) && again == levels);
    return 0;
}
