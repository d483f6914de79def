// Tiles of bit planes, see core/pack/planes.h: loops over 32 columns of 16 bits, which the compiler turns
// into vectors.

// Rows of a tile, 16 bits of each value.
template <int kBlockRows>
struct Slab {
    uint16_t rows[kBlockRows][kTileColumns];
};

// Exchanges, between rows k and k + kStep of every column, the bits that a transposition moves across kStep:
//   row k         ...bits with kStep set | others      the left part of row k changes places
//   row k + kStep ...bits with kStep set | others      with the right part of row k + kStep
template <int kStep, int kMask, int kBlockRows>
DIFFQ_INLINE void exchange(Slab<kBlockRows>& slab) {
    for (int row = 0; row < kBlockRows; ++row) {
        if (row & kStep) continue;
        uint16_t *low = slab.rows[row], *high = slab.rows[row + kStep];
        for (int64_t c = 0; c < kTileColumns; ++c) {
            const int moved = ((low[c] >> kStep) ^ high[c]) & kMask;
            low[c] = static_cast<uint16_t>(low[c] ^ (moved << kStep));
            high[c] = static_cast<uint16_t>(high[c] ^ moved);
        }
    }
}

// Bit b of row r becomes bit r of row b, in every column: values become planes, and planes values again.
DIFFQ_INLINE void transpose(Slab<16>& slab) {
    exchange<8, 0x00FF>(slab);
    exchange<4, 0x0F0F>(slab);
    exchange<2, 0x3333>(slab);
    exchange<1, 0x5555>(slab);
}

// The same for both bytes of eight rows by themselves.
DIFFQ_INLINE void transpose(Slab<8>& slab) {
    exchange<4, 0x0F0F>(slab);
    exchange<2, 0x3333>(slab);
    exchange<1, 0x5555>(slab);
}

// Value [row][column ...] of the tile's block begins here; `size` of its values exist, the others are zero.
struct RowPlace {
    int64_t begin, size;
};

DIFFQ_INLINE RowPlace place_of(const PlaneTile& tile, int row) {
    const int64_t begin = (tile.block * tile.rows + row) * tile.row_length + tile.column;
    const int64_t left = tile.count - begin;
    return {begin, left <= 0 ? 0 : left < tile.columns ? left : tile.columns};
}

// All values of a column joined by "or".
template <typename Value>
struct Seen {
    Value columns[kTileColumns];
};

// 16 bits from bit `shift` on of a row's values.
template <typename Value>
DIFFQ_INLINE void load_row(const PlaneTile& tile, const Value* values, int row, int shift, uint16_t* bits,
                           Seen<Value>& seen) {
    const RowPlace place = place_of(tile, row);
    const Value* from = values + place.begin;
    if (place.size == kTileColumns) {
        for (int64_t c = 0; c < kTileColumns; ++c) bits[c] = static_cast<uint16_t>(from[c] >> shift);
        for (int64_t c = 0; c < kTileColumns; ++c)
            seen.columns[c] = static_cast<Value>(seen.columns[c] | from[c]);
        return;
    }
    for (int64_t c = 0; c < kTileColumns; ++c) {
        const Value value = c < place.size ? from[c] : Value{0};
        bits[c] = static_cast<uint16_t>(value >> shift);
        seen.columns[c] = static_cast<Value>(seen.columns[c] | value);
    }
}

// Planes of 16 rows from first_row on; where `few` of them, at most 8, are wanted, the low bytes of rows r
// and r + 8 go through the transposition as one row:  |row r + 8|row r|
template <typename Value>
DIFFQ_INLINE void make_planes(const PlaneTile& tile, const Value* values, int first_row, int shift, bool few,
                              Slab<16>& slab, Seen<Value>& seen) {
    const int rows = tile.rows < 16 ? tile.rows : 16;
    for (int row = 0; row < rows; ++row) load_row(tile, values, first_row + row, shift, slab.rows[row], seen);
    for (int row = rows; row < 16; ++row) std::memset(slab.rows[row], 0, sizeof slab.rows[row]);
    if (!few) return transpose(slab);
    Slab<8> bytes;
    for (int row = 0; row < 8; ++row) {
        for (int64_t c = 0; c < kTileColumns; ++c) {
            bytes.rows[row][c] =
                static_cast<uint16_t>((slab.rows[row][c] & 0xFF) | slab.rows[row + 8][c] << 8);
        }
    }
    transpose(bytes);
    std::memcpy(slab.rows, bytes.rows, sizeof bytes.rows);
}

DIFFQ_INLINE void join_plane(const Slab<16>* slabs, int bit, uint8_t* plane) {
    for (int64_t c = 0; c < kTileColumns; ++c) plane[c] = static_cast<uint8_t>(slabs[0].rows[bit][c]);
}
DIFFQ_INLINE void join_plane(const Slab<16>* slabs, int bit, uint16_t* plane) {
    for (int64_t c = 0; c < kTileColumns; ++c) plane[c] = slabs[0].rows[bit][c];
}
DIFFQ_INLINE void join_plane(const Slab<16>* slabs, int bit, uint32_t* plane) {
    const uint16_t *low = slabs[0].rows[bit], *high = slabs[1].rows[bit];
    for (int64_t c = 0; c < kTileColumns; ++c) plane[c] = low[c] | static_cast<uint32_t>(high[c]) << 16;
}
DIFFQ_INLINE void join_plane(const Slab<16>* slabs, int bit, uint64_t* plane) {
    uint32_t low[kTileColumns], high[kTileColumns];
    join_plane(slabs, bit, low);
    join_plane(slabs + 2, bit, high);
    for (int64_t c = 0; c < kTileColumns; ++c) plane[c] = low[c] | static_cast<uint64_t>(high[c]) << 32;
}

DIFFQ_INLINE void split_plane(const uint8_t* plane, Slab<16>* slabs, int bit) {
    for (int64_t c = 0; c < kTileColumns; ++c) slabs[0].rows[bit][c] = plane[c];
}
DIFFQ_INLINE void split_plane(const uint16_t* plane, Slab<16>* slabs, int bit) {
    for (int64_t c = 0; c < kTileColumns; ++c) slabs[0].rows[bit][c] = plane[c];
}
DIFFQ_INLINE void split_plane(const uint32_t* plane, Slab<16>* slabs, int bit) {
    for (int64_t c = 0; c < kTileColumns; ++c) slabs[0].rows[bit][c] = static_cast<uint16_t>(plane[c]);
    for (int64_t c = 0; c < kTileColumns; ++c) slabs[1].rows[bit][c] = static_cast<uint16_t>(plane[c] >> 16);
}
DIFFQ_INLINE void split_plane(const uint64_t* plane, Slab<16>* slabs, int bit) {
    uint32_t low[kTileColumns], high[kTileColumns];
    for (int64_t c = 0; c < kTileColumns; ++c) low[c] = static_cast<uint32_t>(plane[c]);
    for (int64_t c = 0; c < kTileColumns; ++c) high[c] = static_cast<uint32_t>(plane[c] >> 32);
    split_plane(low, slabs, bit);
    split_plane(high, slabs + 2, bit);
}

template <typename Value, typename Word>
static uint64_t pack_tile(const PlaneTile& tile, const Value* values, Word* planes) {
    constexpr int kSlabs = sizeof(Word) > 2 ? sizeof(Word) / 2 : 1;
    Seen<Value> seen = {};
    for (int first_bit = 0; first_bit < tile.bits; first_bit += 16) {
        const int bits = tile.bits - first_bit < 16 ? tile.bits - first_bit : 16;
        // Bits above the value's own are its sign, as a shift of the signed value would give.
        const int top = static_cast<int>(sizeof(Value)) * 8 - 1, shift = first_bit < top ? first_bit : top;
        Slab<16> slabs[kSlabs];
        for (int s = 0; s < kSlabs; ++s) make_planes(tile, values, 16 * s, shift, bits <= 8, slabs[s], seen);
        Word* out = planes + (tile.block * tile.bits + first_bit) * tile.row_length + tile.column;
        for (int bit = 0; bit < bits; ++bit, out += tile.row_length) {
            Word plane[kTileColumns];
            join_plane(slabs, bit, plane);
            if (tile.columns == kTileColumns) {
                std::memcpy(out, plane, sizeof plane);
            } else {
                std::memcpy(out, plane, static_cast<size_t>(tile.columns) * sizeof(Word));
            }
        }
    }
    Value all = 0;
    for (int64_t c = 0; c < kTileColumns; ++c) all = static_cast<Value>(all | seen.columns[c]);
    return static_cast<uint64_t>(static_cast<int64_t>(all));
}

DIFFQ_INLINE void make_values(bool few, Slab<16>& slab) {
    if (!few) return transpose(slab);
    Slab<8> bytes;
    std::memcpy(bytes.rows, slab.rows, sizeof bytes.rows);
    transpose(bytes);
    for (int row = 0; row < 8; ++row) {
        for (int64_t c = 0; c < kTileColumns; ++c) slab.rows[row][c] = bytes.rows[row][c] & 0xFF;
        for (int64_t c = 0; c < kTileColumns; ++c) slab.rows[row + 8][c] = bytes.rows[row][c] >> 8;
    }
}

// An int16 has 16 bits: further planes are not read.
template <typename Word>
static void unpack_tile(const PlaneTile& tile, const Word* planes, int16_t* values) {
    constexpr int kSlabs = sizeof(Word) > 2 ? sizeof(Word) / 2 : 1;
    const int bits = tile.bits < 16 ? tile.bits : 16, padded = bits <= 8 ? 8 : 16;
    const Word* from = planes + tile.block * tile.bits * tile.row_length + tile.column;
    Slab<16> slabs[kSlabs];
    for (int bit = 0; bit < bits; ++bit, from += tile.row_length) {
        Word plane[kTileColumns] = {};
        std::memcpy(plane, from, static_cast<size_t>(tile.columns) * sizeof(Word));
        split_plane(tile.columns == kTileColumns ? from : plane, slabs, bit);
    }
    for (int s = 0; s < kSlabs; ++s) {
        for (int bit = bits; bit < padded; ++bit)
            std::memset(slabs[s].rows[bit], 0, sizeof slabs[s].rows[bit]);
        make_values(padded == 8, slabs[s]);
        for (int row = 0; row < (tile.rows < 16 ? tile.rows : 16); ++row) {
            const RowPlace place = place_of(tile, 16 * s + row);
            if (place.size == kTileColumns) {
                std::memcpy(values + place.begin, slabs[s].rows[row], sizeof slabs[s].rows[row]);
            } else if (place.size > 0) {
                std::memcpy(values + place.begin, slabs[s].rows[row],
                            static_cast<size_t>(place.size) * sizeof(int16_t));
            }
        }
    }
}

template <typename Value>
static uint64_t pack_values(const PlaneTile& tile, const Value* values, void* planes) {
    switch (tile.rows) {
        case 8:
            return pack_tile(tile, values, static_cast<uint8_t*>(planes));
        case 16:
            return pack_tile(tile, values, static_cast<uint16_t*>(planes));
        case 32:
            return pack_tile(tile, values, static_cast<uint32_t*>(planes));
        default:
            return pack_tile(tile, values, static_cast<uint64_t*>(planes));
    }
}

static uint64_t pack_planes(const PlaneTile& tile, const void* values, int value_bytes, void* planes) {
    switch (value_bytes) {
        case 1:
            return pack_values(tile, static_cast<const uint8_t*>(values), planes);
        case 2:
            return pack_values(tile, static_cast<const int16_t*>(values), planes);
        case 4:
            return pack_values(tile, static_cast<const int32_t*>(values), planes);
        default:
            return pack_values(tile, static_cast<const int64_t*>(values), planes);
    }
}

static void unpack_planes(const PlaneTile& tile, const void* planes, int16_t* values) {
    switch (tile.rows) {
        case 8:
            return unpack_tile(tile, static_cast<const uint8_t*>(planes), values);
        case 16:
            return unpack_tile(tile, static_cast<const uint16_t*>(planes), values);
        case 32:
            return unpack_tile(tile, static_cast<const uint32_t*>(planes), values);
        default:
            return unpack_tile(tile, static_cast<const uint64_t*>(planes), values);
    }
}
