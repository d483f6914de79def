// Rows of levels that each decode alone, and their products with vectors: how a layer keeps its weight in
// memory.
//
// A row is made of segments of `segment` elements (the last one may be shorter). The levels of a segment have
// one width b of 1 to 16 bits and stand one after the other in a little-endian run of bits, in as many whole
// bytes as it needs. A row's widths are half bytes, b - 1, the first one low, in whole bytes.
#pragma once

#include <cstdint>

#include "core/isa/kernels.h"

namespace diffq_fast {

// What levels stand for: (level * u) * scale + offset with u = 1 / (2^b - 1), or with u = 1 / (level_count -
// 1) for every width; or, where they are centred, (level - 2^(b - 1)) * scale.
struct LevelMeaning {
    bool centred;
    int64_t level_count;  // 0: 2^b
};

// scales, and offsets where levels are not centred: one for each group of `group_size` elements of all rows,
// one after the other; group_size 0: one for all. A segment lies in one group.
struct PackedRows {
    const uint8_t* data;
    int64_t bytes;           // of data; reads go up to kReadBehindRows bytes behind a row
    const uint32_t* starts;  // [rows + 1], in data, in units of kRowAlignment bytes
    const uint8_t* widths;   // [rows][half bytes]
    const float *scales, *offsets;
    int64_t rows, columns, segment, group_size;
    LevelMeaning meaning;
};

constexpr int64_t kRowAlignment = 4;
constexpr int64_t kReadBehindRows = 16;

inline int64_t segments_of(const PackedRows& rows) {
    return (rows.columns + rows.segment - 1) / rows.segment;
}

// Levels to be packed, [rows][columns], and the widths of their segments, [rows][segments].
struct RowsOfLevels {
    const int32_t* levels;
    const uint8_t* widths;
    const uint32_t* starts;  // as above
    int64_t rows, columns, segment;
};

enum class RowsProblem { none, width, level, outside };

// Packs levels into `data`, `bytes` zeros. What is packed is of no meaning where a width is none from 1 to
// 16, a level does not fit its width, or a row does not lie in the data.
RowsProblem pack_rows(const RowsOfLevels& given, uint8_t* data, int64_t bytes, int threads);

// How vectors are taken: as they are; or each block of kBlockColumns rounded to whole numbers from -127 to
// 127 times its largest absolute value over 127.
enum class Activations { exact, int8 };

// results[v][r] = the product of row r with vector v; vectors [count][columns], results [count][rows]. False,
// and results of no meaning, where a row does not lie in the data.
bool multiply_rows(const PackedRows& rows, const float* vectors, int64_t count, Activations activations,
                   float* results, int threads);

// values[i] = row indices[i], float32 [count][columns]. False where an index or a row is out of bounds.
bool unpack_rows(const PackedRows& rows, const int64_t* indices, int64_t count, float* values, int threads);

}  // namespace diffq_fast
