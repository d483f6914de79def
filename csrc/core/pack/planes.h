// diffq's bit planes: values seen as [blocks][rows][columns] become [blocks][bits][columns] words of `rows`
// bits; bit j of value [k][r][c] is bit r of word [k][j][c].
#pragma once

#include <cstdint>

namespace diffq_fast {

struct PlaneShape {
    int64_t count;  // values; the rest of the last block is zero
    int bits;       // planes of a block
    int rows;       // 8, 16, 32 or 64: the bits of a word
    int64_t columns;
};

// values: integers of value_bytes bytes, unsigned of 1 (for at most 16 planes) or signed of 2, 4 or 8.
// planes: [blocks][bits][columns] unsigned of rows bits. Returns all values joined by "or", with their sign,
// 0 for no planes: below 2^bits if and only if every value is from 0 to 2^bits - 1.
uint64_t pack_planes(const PlaneShape& shape, const void* values, int value_bytes, void* planes, int threads);
void unpack_planes(const PlaneShape& shape, const void* planes, int16_t* values, int threads);

}  // namespace diffq_fast
