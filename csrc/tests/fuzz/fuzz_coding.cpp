// Any words: either refused, or decoded to the same levels on every instruction set, without touching memory
// that is not their own. And any levels with a code that fits them come back.
#include "core/pack/coding.h"
#include "tests/fuzz/fuzz_input.h"

using namespace diffq_fast;

namespace {

// A table of some symbols, by the bytes; the last one takes what is left of the slots.
LevelCode code_of(Input& input) {
    LevelCode code{input.byte() - 128, input.byte() % 9, {}, (input.byte() & 1) != 0, 17};
    const int symbols = input.byte() % 17;
    if (symbols < 2) return {code.origin, 16, {}, false, 17};
    code.block_bits = 17 + input.byte() % 4 * 2;
    uint32_t left = kSlots;
    for (int i = 1; i < symbols; ++i) {
        const uint32_t frequency = input.byte() * left / 256;
        code.frequencies.push_back(static_cast<uint16_t>(frequency));
        left -= frequency;
    }
    code.frequencies.push_back(static_cast<uint16_t>(left));
    return code;
}

void decode_anywhere(const std::vector<uint16_t>& words, int64_t count, const char* instruction_set) {
    const auto size = static_cast<int64_t>(words.size());
    std::vector<int32_t> expected(static_cast<size_t>(count)), levels(expected);
    use_kernels("scalar");
    const bool refused = decode_levels(words.data(), size, count, expected.data(), 1) != nullptr;
    use_kernels(instruction_set);
    require((decode_levels(words.data(), size, count, levels.data(), 1) != nullptr) == refused);
    require(refused || levels == expected);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input input(data, size);
    const char* const instruction_set = input.instruction_set();
    const uint8_t choices = input.byte();
    // Now and then enough levels for all lanes.
    const int64_t count = choices >= 240 ? 63489 + input.byte() * 31 : 1 + input.count();
    if ((choices & 1) != 0) {
        decode_anywhere(input.items<uint16_t>(input.byte()), count, instruction_set);
        return 0;
    }
    const LevelCode code = code_of(input);
    std::vector<int32_t> levels;
    for (const int16_t level : input.items<int16_t>(count)) levels.push_back(level);
    if (!code.escape && !code.frequencies.empty()) {
        const auto symbols = static_cast<uint32_t>(code.known());
        for (int32_t& level : levels) {
            uint32_t symbol = static_cast<uint32_t>(level) % symbols;
            while (code.frequencies[symbol] == 0) symbol = (symbol + 1) % symbols;
            level = code.origin + static_cast<int32_t>(symbol << code.low_bits) +
                    (level & ((1 << code.low_bits) - 1));
        }
    }
    std::vector<uint16_t> words;
    if (encode_levels(levels.data(), count, code, 1, words) != nullptr) return 0;
    use_kernels(instruction_set);
    std::vector<int32_t> back(levels.size());
    const auto word_count = static_cast<int64_t>(words.size());
    require(decode_levels(words.data(), word_count, count, back.data(), 1) == nullptr && back == levels);
    const size_t place = input.byte() * size_t{257} % words.size();  // a damaged one
    words[place] = static_cast<uint16_t>(words[place] ^ 1u << choices % 16);
    decode_anywhere(words, count, instruction_set);
    return 0;
}
