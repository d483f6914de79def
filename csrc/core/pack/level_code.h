// The head of a stream of coded levels, docs/packed_format.md section 10: its table and its blocks' sizes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/pack/words.h"

namespace diffq_fast {

constexpr int kProbabilityBits = 12;
constexpr uint32_t kSlots = 1u << kProbabilityBits;  // the sum of all frequencies
constexpr int kMostSymbols = 256;
// A block, which decodes alone, has 2^17 values at most, or 2^19, 2^21 or 2^23 where they take few bits.
constexpr int kLeastBlockBits = 17, kMostBlockBits = 23;
constexpr int kCodedLanes = 32;
constexpr int kLanesPerBlockBits = 6;  // a lane of its own pays from a 64th of a block's most values on
constexpr uint32_t kLowestState = 1u << 16;

// value = origin + symbol * 2^low_bits + low. frequencies: of each symbol, of 4096 slots; none where there is
// one symbol only. escape: the last one stands for values whose symbols are written out.
struct LevelCode {
    int32_t origin;
    int low_bits;
    std::vector<uint16_t> frequencies;
    bool escape;
    int block_bits;

    // Symbols that are not the escape.
    int known() const { return std::max(static_cast<int>(frequencies.size()), 1) - static_cast<int>(escape); }
};

// words, escapes: of each block; size: of the head itself, in 16-bit words.
struct StreamHead {
    LevelCode code;
    std::vector<int64_t> words, escapes;
    int64_t size;
};

// How a stream's values are cut into blocks.
struct CodedBlocks {
    CodedBlocks(int64_t count, int bits)
        : values(count),
          number((count >> bits) + ((count & ((int64_t{1} << bits) - 1)) != 0 ? 1 : 0)),
          size(number == 0 ? 0 : (count + kCodedLanes * number - 1) / (kCodedLanes * number) * kCodedLanes) {}

    int64_t values, number, size;

    int64_t begin(int64_t block) const { return block * size; }
    int64_t count(int64_t block) const { return std::min(size, values - block * size); }
};

// Lanes of a block of so many values.
inline int coded_lanes(int64_t values, int block_bits) {
    const int64_t fewest = int64_t{1} << (block_bits - kLanesPerBlockBits);
    return static_cast<int>(std::min<int64_t>(kCodedLanes, (values + fewest - 1) / fewest));
}

// 16-bit words of the low bits of so many values.
inline int64_t low_words(int64_t count, int low_bits) {
    return 2 * stream_words(count, low_bits);
}

// 16-bit words of the whole stream of `count` levels.
int64_t stream_size(const StreamHead& head, int64_t count);

// Null, or what is wrong with the code.
const char* problem_of(const LevelCode& code);

// The head's bytes, two to the word.
std::vector<uint16_t> write_head(const StreamHead& head);

// Reads the head of a stream of `count` > 0 values at the beginning of `words`; null, or what is wrong with
// it. Takes no more memory than there are words, and checks that the whole stream has room among them.
const char* read_head(const uint16_t* words, int64_t word_count, int64_t count, StreamHead& head);

}  // namespace diffq_fast
