// Products of rows of packed levels with vectors, see core/infer/packed_rows.h and RowVectors, in vectors of
// 512 bits.

constexpr int64_t kVectorsOfRow = kMostVectors;

// A piece with each vector. kLength: its columns, or 0 where they are `length`.
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

// The same of whole numbers; scales: of each vector, kAtOnce apart.
template <int kCount>
DIFFQ_INLINE void add_byte_piece(const ByteReader& reader, const uint8_t* from, int64_t bytes,
                                 const float* scales, const int8_t* whole, int64_t stride,
                                 __m512 (&totals)[kCount]) {
    const __m512i levels = reader.levels(from, bytes);
    for (int v = 0; v < kCount; ++v) {
        const __m512i sums = dot_fours(_mm512_setzero_si512(), levels, load_512(whole + v * stride));
        totals[v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(scales[v * Pieces::kAtOnce]),
                                    totals[v]);
    }
}

// Some pieces, of one width or several, and what they are multiplied with.
template <int kCount, int kPiece>
struct SomePieces {
    const Pieces& pieces;
    int64_t count, begin, columns;
    const RowVectors& vectors;
    __m512 (&totals)[kCount];

    // Returns the place behind them. Readers are made for a width.
    template <class Reader, class Add>
    DIFFQ_MEMBER const uint8_t* each(const uint8_t* from, Add&& add) const {
        const bool one_width = pieces.all_have(pieces.widths[0], count);
        if (one_width) {
            const Reader reader(pieces.widths[0]);
            for (int64_t k = 0; k < count; ++k) from = add(reader, k, from);
        } else {
            for (int64_t k = 0; k < count; ++k) from = add(Reader(pieces.widths[k]), k, from);
        }
        return from;
    }

    DIFFQ_MEMBER const uint8_t* as_floats(const uint8_t* start) const {
        return each<WideReader>(start, [&](const WideReader& reader, int64_t k, const uint8_t* from) {
            const int64_t at = begin + k * kPiece, length = std::min<int64_t>(kPiece, columns - at);
            const float* const values = vectors.values + at;
            const int width = pieces.widths[k];
            _mm_prefetch(reinterpret_cast<const char*>(from + kRowAhead), _MM_HINT_T0);
            if (length == kPiece)
                add_float_piece<kCount, kPiece>(reader, width, from, length, pieces.scales[k], values,
                                                vectors.stride, totals);
            else
                add_float_piece<kCount, 0>(reader, width, from, length, pieces.scales[k], values,
                                           vectors.stride, totals);
            return from + (length * width + 7) / 8;
        });
    }

    DIFFQ_MEMBER const uint8_t* as_bytes(const uint8_t* start) const {
        const int64_t stride = vectors.blocks * kBlockColumns;
        float scales[kCount][Pieces::kAtOnce];
        for (int v = 0; v < kCount; ++v) {
            const float* const units = vectors.units + v * vectors.blocks + begin / kBlockColumns;
            for (int64_t k = 0; k < count; ++k)
                scales[v][k] = pieces.scales[k] * units[k * kPiece / kBlockColumns];
        }
        return each<ByteReader>(start, [&](const ByteReader& reader, int64_t k, const uint8_t* from) {
            const int64_t at = begin + k * kPiece, length = std::min<int64_t>(kPiece, columns - at);
            const int64_t bytes = (length * pieces.widths[k] + 7) / 8;
            _mm_prefetch(reinterpret_cast<const char*>(from + kRowAhead), _MM_HINT_T0);
            add_byte_piece<kCount>(reader, from, bytes, &scales[0][k], vectors.whole + at, stride, totals);
            return from + bytes;
        });
    }
};

// Rows of whole pieces, but for the last one: 64 elements, or 32, of one width, scale and block of vectors.
template <int kCount, int kPiece>
DIFFQ_INLINE void multiply_pieces(const PackedRow& row, const RowVectors& vectors, float* products) {
    const uint8_t* from = row.data;
    __m512 totals[kCount];
    for (int v = 0; v < kCount; ++v) totals[v] = _mm512_setzero_ps();
    Pieces pieces(row, kPiece);
    for (int64_t begin = 0; begin < row.columns; begin += Pieces::kAtOnce * kPiece) {
        const int64_t left = (row.columns - begin + kPiece - 1) / kPiece;
        const int64_t count = std::min(left, Pieces::kAtOnce);
        pieces.take(count);
        const SomePieces<kCount, kPiece> some{pieces, count, begin, row.columns, vectors, totals};
        const bool bytes = vectors.whole && pieces.are_at_most(kMostByteWidth, count);
        from = bytes ? some.as_bytes(from) : some.as_floats(from);
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
