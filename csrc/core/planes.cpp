#include "core/planes.h"

#include <algorithm>
#include <cstring>

#include "core/groups.h"
#include "core/memory.h"
#include "core/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kTile = 32;  // columns handled together

// Calls body(block, first column, columns) for tiles of columns, several to a task.
template <typename Body>
void for_each_tile(const PlaneShape& shape, int threads, Body&& body) {
    const int64_t block_size = shape.rows * shape.columns;
    if (block_size == 0) return;
    const int64_t blocks = shape.count / block_size + (shape.count % block_size != 0);
    const int64_t tiles = (shape.columns + kTile - 1) / kTile;
    const int64_t per_task = std::max<int64_t>(1, 16384 / (shape.rows * kTile));
    const int64_t total = blocks * tiles;
    parallel_for((total + per_task - 1) / per_task, threads_for(shape.count, threads), [&](int64_t task) {
        for (int64_t tile = task * per_task; tile < std::min(total, (task + 1) * per_task); ++tile) {
            const int64_t column = tile % tiles * kTile;
            body(tile / tiles, column, std::min(kTile, shape.columns - column));
        }
    });
}

// Value [row][column ...] of a block begins here; `size` of the `wanted` values exist, the others are zero.
struct RowPlace {
    int64_t first, size;
};

inline RowPlace place_of(const PlaneShape& shape, int64_t block, int row, int64_t column, int64_t wanted) {
    const int64_t first = (block * shape.rows + row) * shape.columns + column;
    return {first, std::clamp<int64_t>(shape.count - first, 0, wanted)};
}

// 16 rows of a tile, 16 bits of each value.
using Slab = uint16_t[16][kTile];

// Exchanges, between rows k and k + kStep of every column, the bits that a transposition moves across kStep:
//   row k         ...bits with kStep set | others      the left part of row k changes places
//   row k + kStep ...bits with kStep set | others      with the right part of row k + kStep
template <int kStep, uint16_t kMask>
void exchange(Slab& slab) {
    for (int row = 0; row < 16; ++row) {
        if (row & kStep) continue;
        for (int64_t c = 0; c < kTile; ++c) {
            const uint16_t low = slab[row][c], high = slab[row + kStep][c];
            const auto moved = static_cast<uint16_t>(((low >> kStep) ^ high) & kMask);
            slab[row][c] = static_cast<uint16_t>(low ^ (moved << kStep));
            slab[row + kStep][c] = static_cast<uint16_t>(high ^ moved);
        }
    }
}

// Bit b of row r becomes bit r of row b, in every column: values become planes, and planes values again.
void transpose(Slab& slab) {
    exchange<8, 0x00FF>(slab);
    exchange<4, 0x0F0F>(slab);
    exchange<2, 0x3333>(slab);
    exchange<1, 0x5555>(slab);
}

// Planes first_bit ... first_bit + 15 of a tile, 16 rows at a time: each gives 16 bits of every word.
template <typename Value, typename Word>
void pack_tile(const PlaneShape& shape, const Value* values, Word* words, int64_t block, int64_t column,
               int64_t columns, int first_bit) {
    const int nbits = std::min(16, shape.nbits - first_bit);
    // Bits above the value's own are its sign, as a shift of the signed value would give.
    const int shift = std::min(first_bit, static_cast<int>(sizeof(Value)) * 8 - 1);
    Word planes[16][kTile] = {};
    for (int first_row = 0; first_row < shape.rows; first_row += 16) {
        Slab slab = {};
        for (int row = 0; row < std::min(16, shape.rows); ++row) {
            const RowPlace place = place_of(shape, block, first_row + row, column, columns);
            for (int64_t c = 0; c < place.size; ++c) {
                slab[row][c] = static_cast<uint16_t>(values[place.first + c] >> shift);
            }
        }
        transpose(slab);
        for (int bit = 0; bit < nbits; ++bit) {
            for (int64_t c = 0; c < kTile; ++c) {
                planes[bit][c] =
                    static_cast<Word>(planes[bit][c] | static_cast<Word>(slab[bit][c]) << first_row);
            }
        }
    }
    Word* out = words + (block * shape.nbits + first_bit) * shape.columns + column;
    for (int bit = 0; bit < nbits; ++bit) {
        std::memcpy(out + bit * shape.columns, planes[bit], static_cast<size_t>(columns) * sizeof(Word));
    }
}

// An int16 has 16 bits: further planes are not read.
template <typename Word>
void unpack_tile(const PlaneShape& shape, const Word* words, int16_t* values, int64_t block, int64_t column,
                 int64_t columns) {
    const Word* planes = words + block * shape.nbits * shape.columns + column;
    for (int first_row = 0; first_row < shape.rows; first_row += 16) {
        Slab slab = {};
        for (int bit = 0; bit < std::min(shape.nbits, 16); ++bit) {
            const Word* plane = planes + bit * shape.columns;
            for (int64_t c = 0; c < columns; ++c) slab[bit][c] = static_cast<uint16_t>(plane[c] >> first_row);
        }
        transpose(slab);
        for (int row = 0; row < std::min(16, shape.rows); ++row) {
            const RowPlace place = place_of(shape, block, first_row + row, column, columns);
            if (place.size == 0) break;
            std::memcpy(values + place.first, slab[row], static_cast<size_t>(place.size) * sizeof(int16_t));
        }
    }
}

template <typename Value, typename Word>
void pack_typed(const PlaneShape& shape, const void* values, void* words, int threads) {
    for_each_tile(shape, threads, [&](int64_t block, int64_t column, int64_t columns) {
        for (int first_bit = 0; first_bit < shape.nbits; first_bit += 16) {
            pack_tile(shape, static_cast<const Value*>(values), static_cast<Word*>(words), block, column,
                      columns, first_bit);
        }
    });
}

template <typename Value>
void pack_values(const PlaneShape& shape, const void* values, void* words, int threads) {
    switch (shape.rows) {
        case 8:
            pack_typed<Value, uint8_t>(shape, values, words, threads);
            break;
        case 16:
            pack_typed<Value, uint16_t>(shape, values, words, threads);
            break;
        case 32:
            pack_typed<Value, uint32_t>(shape, values, words, threads);
            break;
        default:
            pack_typed<Value, uint64_t>(shape, values, words, threads);
            break;
    }
}

template <typename Word>
void unpack_words(const PlaneShape& shape, const void* words, int16_t* values, int threads) {
    for_each_tile(shape, threads, [&](int64_t block, int64_t column, int64_t columns) {
        unpack_tile(shape, static_cast<const Word*>(words), values, block, column, columns);
    });
}

}  // namespace

void pack_planes(const PlaneShape& shape, const void* values, int value_bytes, void* words, int threads) {
    switch (value_bytes) {
        case 1:
            pack_values<uint8_t>(shape, values, words, threads);
            break;
        case 2:
            pack_values<int16_t>(shape, values, words, threads);
            break;
        case 4:
            pack_values<int32_t>(shape, values, words, threads);
            break;
        default:
            pack_values<int64_t>(shape, values, words, threads);
            break;
    }
}

void unpack_planes(const PlaneShape& shape, const void* words, int16_t* values, int threads) {
    expect_writes(values, shape.count * int64_t{sizeof(int16_t)});
    switch (shape.rows) {
        case 8:
            unpack_words<uint8_t>(shape, words, values, threads);
            break;
        case 16:
            unpack_words<uint16_t>(shape, words, values, threads);
            break;
        case 32:
            unpack_words<uint32_t>(shape, words, values, threads);
            break;
        default:
            unpack_words<uint64_t>(shape, words, values, threads);
            break;
    }
}

}  // namespace diffq_fast
