// Any widths, count, group size and words: either refused or unpacked without touching memory that is not its
// own, and what was unpacked packs and unpacks to itself.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/packed_levels.h"
#include "core/streams.h"

using namespace diffq_fast;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 4) return 0;
    const int64_t count = data[0] | (data[1] & 15) << 8;
    const int64_t group_size = data[2] % 33;
    const bool only_valid_widths = data[3] & 1;
    data += 4;
    size -= 4;
    // Vectors of the exact sizes, so that a sanitizer sees every step over their ends.
    std::vector<uint8_t> widths(static_cast<size_t>(group_count(count, group_size)), 1);
    for (size_t i = 0; i < widths.size() && i < size; ++i)
        widths[i] = only_valid_widths ? data[i] % 16 + 1 : data[i];
    const Streams streams(widths.data(), count, group_size, 1);
    const int64_t word_count = streams.valid() ? streams.words() : 1;
    std::vector<uint32_t> words(static_cast<size_t>(word_count)), levels(static_cast<size_t>(count));
    if (!words.empty()) std::memcpy(words.data(), data, std::min(size, words.size() * sizeof(uint32_t)));
    const Packing packing{widths.data(), count, group_size, word_count, 1};
    if (unpack(packing, words.data(), levels.data()) != streams.valid()) std::abort();
    const Packing short_of_one{widths.data(), count, group_size, word_count - 1, 1};
    if (unpack(short_of_one, words.data(), levels.data())) std::abort();
    if (!streams.valid()) return 0;
    std::vector<uint32_t> again(levels.size());
    if (!pack(packing, levels.data(), words.data()) || !unpack(packing, words.data(), again.data()))
        std::abort();
    if (again != levels) std::abort();
    const float range[2] = {-1, 1};
    std::vector<uint16_t> weights(levels.size());
    const Floats weight{weights.data(), count, DType::float16};
    if (!unpack_dequantize(packing, words.data(), range, false, weight)) std::abort();
    return 0;
}
