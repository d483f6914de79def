// Products of rows of packed levels with vectors, see core/infer/packed_rows.h and RowVectors, in vectors of
// 512 bits.

constexpr int64_t kVectorsOfRow = kMostVectors;

// A piece of at most 64 columns with each vector. kLength: its columns, or 0 where they are `length`.
template <int kCount, int kLength>
DIFFQ_INLINE void add_float_piece(const WideReader& wide, int width, const uint8_t* from, int64_t length,
                                  float scale, const float* values, int64_t stride,
                                  __m512 (&totals)[kCount]) {
    __m512 sums[kCount];
    for (int v = 0; v < kCount; ++v) sums[v] = _mm512_setzero_ps();
    const auto add = [&](__m512 levels, int64_t at) {
        for (int v = 0; v < kCount; ++v)
            sums[v] = _mm512_fmadd_ps(levels, _mm512_loadu_ps(values + v * stride + at), sums[v]);
    };
    if (kLength > 0 && width <= kMostByteWidth) {
        for (int i = 0; i < kLength; i += 16) add(wide.levels(from + i / 8 * width), i);
    } else {
        for (int64_t i = 0; i < length; i += 16) {
            const uint8_t* const first = from + i / 8 * width;
            const bool two = width > kMostByteWidth && length - i > 8;
            add(wide.levels(first, two ? first + width : first), i);
        }
    }
    const __m512 factors = _mm512_mul_ps(wide.factors, _mm512_set1_ps(scale));
    for (int v = 0; v < kCount; ++v) totals[v] = _mm512_fmadd_ps(sums[v], factors, totals[v]);
}

// The same of whole numbers, in the reader's order; scales: of each vector, kAtOnce apart.
template <int kCount, class Reader>
DIFFQ_INLINE void add_byte_piece(const Reader& reader, const uint8_t* from, const float* scales,
                                 const int8_t* whole, int64_t stride, __m512 (&totals)[kCount]) {
    const __m512i levels = reader.levels(from);
    for (int v = 0; v < kCount; ++v) {
        const __m512i sums = dot_fours(_mm512_setzero_si512(), levels, load_512(whole + v * stride));
        totals[v] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(scales[v * Pieces::kAtOnce]), totals[v]);
    }
}

// Some pieces of a row that begin at a column, and what they are multiplied with: each returns the place
// behind them.
template <int kCount, int kPiece>
struct SomePieces {
    const Pieces& pieces;
    int64_t begin;
    const RowVectors& vectors;
    __m512 (&totals)[kCount];

    DIFFQ_MEMBER const uint8_t* as_floats(const uint8_t* from, int64_t count) const {
        const float* values = vectors.values + begin;
        const auto add = [&](const WideReader& reader, int width, int64_t k) {
            ask_for_row(from);
            add_float_piece<kCount, kPiece>(reader, width, from, kPiece, pieces.scales[k], values,
                                            vectors.stride, totals);
            from += kPiece / 8 * width;
            values += kPiece;
        };
        const int width = pieces.widths[0];
        if (pieces.all_have(width, count)) {
            const WideReader reader(width);
            for (int64_t k = 0; k < count; ++k) add(reader, width, k);
        } else {
            for (int64_t k = 0; k < count; ++k) add(WideReader(pieces.widths[k]), pieces.widths[k], k);
        }
        return from;
    }

    DIFFQ_MEMBER const uint8_t* as_bytes(const uint8_t* from, int64_t count) const {
        float scales[kCount][Pieces::kAtOnce];
        scale_units(count, scales);
        const int width = pieces.widths[0];
        if (!pieces.all_have(width, count)) return as_mixed_bytes(from, count, scales);
        if constexpr (kPiece == kBlockColumns) {
            if (width == 2) return as_bytes_of(QuarterReader(), vectors.quarters, from, count, width, scales);
            if (width == 4) return as_bytes_of(HalfReader(), vectors.halves, from, count, width, scales);
            if (width == 8) return as_bytes_of(WholeReader(), vectors.whole, from, count, width, scales);
        }
        return as_bytes_of(ByteReader(width, kPiece), vectors.whole, from, count, width, scales);
    }

    // The first piece, of `length` columns.
    DIFFQ_MEMBER void add_last(const uint8_t* from, int64_t length, bool bytes) const {
        const int width = pieces.widths[0];
        if (bytes) {
            float scales[kCount][Pieces::kAtOnce];
            scale_units(1, scales);
            add_byte_piece<kCount>(ByteReader(width, length), from, scales[0], vectors.whole + begin,
                                   stride(), totals);
        } else {
            add_float_piece<kCount, 0>(WideReader(width), width, from, length, pieces.scales[0],
                                       vectors.values + begin, vectors.stride, totals);
        }
    }

  private:
    using Scales = float[kCount][Pieces::kAtOnce];

    // Pieces of one width. values: the vectors in the reader's order.
    template <class Reader>
    DIFFQ_MEMBER const uint8_t* as_bytes_of(const Reader reader, const int8_t* values, const uint8_t* from,
                                            int64_t count, int width, const Scales& scales) const {
        values += begin;
        for (int64_t k = 0; k < count; ++k, from += kPiece / 8 * width, values += kPiece) {
            ask_for_row(from);
            add_byte_piece<kCount>(reader, from, &scales[0][k], values, stride(), totals);
        }
        return from;
    }

    DIFFQ_MEMBER const uint8_t* as_mixed_bytes(const uint8_t* from, int64_t count,
                                               const Scales& scales) const {
        const int8_t* values = vectors.whole + begin;
        for (int64_t k = 0; k < count; ++k, values += kPiece) {
            const int width = pieces.widths[k];
            ask_for_row(from);
            add_byte_piece<kCount>(ByteReader(width, kPiece), from, &scales[0][k], values, stride(), totals);
            from += kPiece / 8 * static_cast<uint32_t>(width);
        }
        return from;
    }

    DIFFQ_MEMBER int64_t stride() const { return vectors.blocks * kBlockColumns; }

    DIFFQ_MEMBER void scale_units(int64_t count, float (&scales)[kCount][Pieces::kAtOnce]) const {
        for (int v = 0; v < kCount; ++v) {
            const float* const units = vectors.units + v * vectors.blocks + begin / kBlockColumns;
            for (int64_t k = 0; k < count; ++k)
                scales[v][k] = pieces.scales[k] * units[k * kPiece / kBlockColumns];
        }
    }
};

// Rows of whole pieces, but for the last one: 64 elements, or 32, of one width, scale and block of vectors.
template <int kCount, int kPiece>
DIFFQ_INLINE void multiply_pieces(const PackedRow& row, const RowVectors& vectors, float* products) {
    const uint8_t* from = row.data;
    __m512 totals[kCount];
    set_zero(totals);
    Pieces pieces(row, kPiece);
    int64_t begin = 0;
    while (begin < row.columns) {
        const int64_t whole = std::min((row.columns - begin) / kPiece, Pieces::kAtOnce);
        const int64_t count = std::max<int64_t>(whole, 1);
        pieces.take(count);
        const bool bytes = vectors.whole && pieces.are_at_most(kMostByteWidth, count);
        const SomePieces<kCount, kPiece> some{pieces, begin, vectors, totals};
        if (whole == 0)
            some.add_last(from, row.columns - begin, bytes);
        else
            from = bytes ? some.as_bytes(from, count) : some.as_floats(from, count);
        begin += count * kPiece;
    }
    multiply_offsets<kCount>(row, vectors, products);
    for (int v = 0; v < kCount; ++v) products[v] += _mm512_reduce_add_ps(totals[v]);
}

template <int kCount>
static void multiply_some(const PackedRow& row, const RowVectors& vectors, float* products) {
    if (row.segments == 1 || row.segment % 64 == 0) {
        multiply_pieces<kCount, 64>(row, vectors, products);
    } else if (row.segment % 32 == 0) {
        multiply_pieces<kCount, 32>(row, vectors, products);
    } else if (has_pairs_of_eights(row)) {
        multiply_pairs_of_eights<kCount>(row, vectors, products);
    } else if (row.segment == 8 && row.scaled) {
        multiply_eights_of_one_scale<kCount>(row, vectors, products);
    } else {
        multiply_eights<kCount>(row, vectors, products);
    }
}

static void multiply_row(const PackedRow& row, const RowVectors& vectors, float* products) {
    constexpr decltype(&multiply_some<1>) kOf[] = {multiply_some<1>, multiply_some<2>, multiply_some<3>,
                                                   multiply_some<4>, multiply_some<5>, multiply_some<6>,
                                                   multiply_some<7>, multiply_some<8>};
    static_assert(kMostVectors == 8, "of as many vectors");
    if (has_broken_eights(row)) return multiply_row_by_level(row, vectors, products);
    return kOf[vectors.count - 1](row, vectors, products);
}
