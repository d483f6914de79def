// Levels <-> one stream of coded levels, docs/packed_format.md section 10: interleaved rANS.
//
// A block's values are rows of 32 lanes, each lane with a state x of its own, at least 2^16:
//
//   x:  |31 ................ 12|11 ... 0|     the slot says the symbol: 4096 of them, f for each symbol
//        what is coded before    slot
//
//   decode:  x <- f * (x >> 12) + slot - start,   and below 2^16:  x <- x << 16 | next word
//
// A slot of the table:  |31 symbol 24|23 frequency 12|11 slot - start 0|
#pragma once

#include <cstdint>
#include <vector>

#include "core/pack/level_code.h"

namespace diffq_fast {

// Null and the words of the stream, none for no levels; or what is wrong: the code, or a level that it has no
// symbol for.
// `levels` are from -32768 to 32767.
const char* encode_levels(const int32_t* levels, int64_t count, const LevelCode& code, int threads,
                          std::vector<uint16_t>& words);

// Null, or what is wrong with the stream; then some levels may have been written. Words behind the stream are
// not read.
const char* decode_levels(const uint16_t* words, int64_t word_count, int64_t count, int32_t* levels,
                          int threads);

}  // namespace diffq_fast
