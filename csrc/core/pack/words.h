// Levels of one width <-> 32-bit words, one block at a time: the native layout's virtual register.
//
// A block holds 32 rows of `lanes` levels (32 lanes, fewer in a stream's last block): level i is row i /
// lanes, lane i % lanes. A lane is a string of 32 * width bits, row r its bits [r * width, (r + 1) * width),
// lowest first:
//
//   width 5, one lane:   word 0                              word 1
//                        |row 6.. |row 5|...|row 1|row 0|    |...|row 8|row 7|..row 6|
//                         2 bits   5 bits     5 bits 5 bits                    3 bits
//
// Bit t of lane i's string is bit t % 32 of word [t / 32][i]; a block's words are [width][lanes], row-major.
#pragma once

#include <cstdint>

namespace diffq_fast {

constexpr int kMaxWidth = 16;  // bits of a level
constexpr int kWordBits = 32;
constexpr int64_t kBlockRows = kWordBits, kBlockLanes = 32, kPackBlock = kBlockRows * kBlockLanes;

// Lanes of a block of `count` levels, 0 < count <= kPackBlock.
inline int64_t lanes_of(int64_t count) {
    return (count + kBlockRows - 1) / kBlockRows;
}

// Words of a whole stream: the format's only size formula.
inline int64_t stream_words(int64_t count, int width) {
    return width * (count / kBlockRows + (count % kBlockRows != 0));
}

// Kernels::pack_words and unpack_words take levels [32 * lanes], zeros where the block holds fewer, bits
// above `width` dropped; and words [width * lanes].

}  // namespace diffq_fast
