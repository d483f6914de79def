// Levels of one width <-> 32-bit words, one block at a time: the native layout's virtual register.
//
// A block holds 32 rows of `lanes` levels (32 lanes, fewer in a stream's last block): level p is row p /
// lanes, lane p % lanes. Lane i is a string of 32 * width bits, row r its bits [r * width, (r + 1) * width),
// lowest first:
//
//   width 5, lane i:   word 0                              word 1
//                      |row 6.. |row 5|...|row 1|row 0|    |...|row 8|row 7|..row 6|
//                       2 bits   5 bits     5 bits 5 bits                    3 bits
//
// Bit t of the string is bit t % 32 of word [t / 32][i]; a block's words are [width][lanes], row-major.
#pragma once

#include <cstdint>

namespace diffq_fast {

constexpr int64_t kPackBlock = 1024;
constexpr int64_t kRows = 32;

// Lanes of a block of `count` levels, 0 < count <= kPackBlock.
inline int64_t lanes_of(int64_t count) {
    return (count + kRows - 1) / kRows;
}

// Words of a whole stream: the format's only size formula.
inline int64_t stream_words(int64_t count, int width) {
    return width * (count / kRows + (count % kRows != 0));
}

// Kernels::pack and unpack take levels [32 * lanes], zeros where the block holds fewer, bits above `width`
// dropped; and words [width * lanes].

}  // namespace diffq_fast
