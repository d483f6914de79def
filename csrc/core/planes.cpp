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

template <typename Value, typename Word>
void pack_tile(const PlaneShape& shape, const Value* values, Word* words, int64_t block, int64_t column,
               int64_t columns) {
    Word* out = words + block * shape.nbits * shape.columns + column;
    for (int bit = 0; bit < shape.nbits; ++bit) {
        Word plane[kTile] = {};
        // Bits above the value's own are its sign, as a shift of the signed value would give.
        const int shift = std::min(bit, static_cast<int>(sizeof(Value)) * 8 - 1);
        for (int row = 0; row < shape.rows; ++row) {
            const RowPlace place = place_of(shape, block, row, column, columns);
            const Value* source = values + place.first;
            for (int64_t c = 0; c < place.size; ++c) {
                plane[c] = static_cast<Word>(
                    plane[c] | static_cast<Word>(static_cast<Word>((source[c] >> shift) & 1) << row));
            }
        }
        std::memcpy(out + bit * shape.columns, plane, static_cast<size_t>(columns) * sizeof(Word));
    }
}

template <typename Word>
void unpack_tile(const PlaneShape& shape, const Word* words, int16_t* values, int64_t block, int64_t column,
                 int64_t columns) {
    const Word* planes = words + block * shape.nbits * shape.columns + column;
    const int nbits = std::min(shape.nbits, 16);  // bits that an int16 has
    for (int row = 0; row < shape.rows; ++row) {
        const RowPlace place = place_of(shape, block, row, column, columns);
        uint16_t found[kTile] = {};
        for (int bit = 0; bit < nbits; ++bit) {
            const Word* plane = planes + bit * shape.columns;
            for (int64_t c = 0; c < place.size; ++c) {
                found[c] =
                    static_cast<uint16_t>(found[c] | (static_cast<uint16_t>((plane[c] >> row) & 1) << bit));
            }
        }
        std::memcpy(values + place.first, found, static_cast<size_t>(place.size) * sizeof(int16_t));
    }
}

template <typename Value, typename Word>
void pack_typed(const PlaneShape& shape, const void* values, void* words, int threads) {
    for_each_tile(shape, threads, [&](int64_t block, int64_t column, int64_t columns) {
        pack_tile(shape, static_cast<const Value*>(values), static_cast<Word*>(words), block, column,
                  columns);
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
