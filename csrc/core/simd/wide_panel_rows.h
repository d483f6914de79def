// Rows become panels, see RowPanel, in vectors of 512 bits.

static void unpack_bytes(const PackedRow& row, uint8_t* levels) {
    const uint8_t* from = row.data;
    for (int64_t s = 0; s < row.segments; ++s) {
        const int width = width_of_segment(row.widths, s);
        const int64_t begin = s * row.segment, end = std::min(begin + row.segment, row.columns);
        int64_t i = begin;
        if (i + kBlockColumns <= end) {
            const ByteReader reader(width, kBlockColumns);
            for (; i + kBlockColumns <= end; i += kBlockColumns, from += kBlockColumns / 8 * width) {
                ask_for_row(from);
                _mm512_storeu_si512(levels + i, reader.levels(from));
            }
        }
        if (i < end) {
            const __mmask64 lanes = ~uint64_t{0} >> (kBlockColumns - (end - i));
            _mm512_mask_storeu_epi8(levels + i, lanes, ByteReader(width, end - i).levels(from));
            from += ((end - i) * width + 7) / 8;
        }
    }
}

// Sixteen rows of four fours become four fours of sixteen rows.
DIFFQ_INLINE void transpose_fours(const uint8_t* levels, int64_t columns, uint8_t* panel) {
    __m512i rows[4], twos[4];
    for (int r = 0; r < 4; ++r) {  // the rows r, r + 4, r + 8 and r + 12
        const uint8_t* const from = levels + r * columns;
        rows[r] = _mm512_broadcast_i32x4(load_128(from));
        rows[r] = _mm512_mask_broadcast_i32x4(rows[r], 0x00F0, load_128(from + 4 * columns));
        rows[r] = _mm512_mask_broadcast_i32x4(rows[r], 0x0F00, load_128(from + 8 * columns));
        rows[r] = _mm512_mask_broadcast_i32x4(rows[r], 0xF000, load_128(from + 12 * columns));
    }
    for (int r = 0; r < 4; r += 2) {
        twos[r] = _mm512_unpacklo_epi32(rows[r], rows[r + 1]);
        twos[r + 1] = _mm512_unpackhi_epi32(rows[r], rows[r + 1]);
    }
    for (int r = 0; r < 2; ++r) {
        uint8_t* const to = panel + 2 * r * 4 * kPanelRows;
        _mm512_storeu_si512(to, _mm512_unpacklo_epi64(twos[r], twos[r + 2]));
        _mm512_storeu_si512(to + 4 * kPanelRows, _mm512_unpackhi_epi64(twos[r], twos[r + 2]));
    }
}

static void interleave_rows(const uint8_t* levels, int64_t blocks, uint8_t* panel) {
    static_assert(kPanelRows == 16, "as many as transpose_fours() takes");
    const int64_t columns = blocks * kBlockColumns;
    for (int64_t begin = 0; begin < columns; begin += 16)
        transpose_fours(levels + begin, columns, panel + begin * kPanelRows);
}
