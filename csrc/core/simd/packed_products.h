// Products of rows of packed levels with vectors, see core/infer/packed_rows.h and RowVectors: in floats,
// eight levels at a time, or in whole numbers, sixteen or sixty-four.

constexpr int64_t kVectorsOfRow = 4;

// sums += level * element, of one width.
template <int kCount>
DIFFQ_INLINE void add_floats(const uint8_t* from, int width, int64_t length, const float* values,
                             int64_t stride, __m256 (&sums)[kCount]) {
    const EightReader eight(width);
    for (int64_t i = 0; i < length; i += 8, from += width) {
        const __m256 levels = eight.levels(from);
        for (int v = 0; v < kCount; ++v)
            sums[v] = _mm256_fmadd_ps(levels, _mm256_loadu_ps(values + v * stride + i), sums[v]);
    }
}

template <int kCount>
DIFFQ_INLINE void add_integers(__m256i levels, const int16_t* integers, int64_t stride,
                               __m256i (&sums)[kCount]) {
    for (int v = 0; v < kCount; ++v) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(integers + v * stride));
        sums[v] = _mm256_add_epi32(sums[v], _mm256_madd_epi16(levels, x));
    }
}

// A piece of vectors of whole numbers. kPiece: its length, or 0 where it is shorter.
template <int kCount, int kPiece>
DIFFQ_INLINE void add_integer_piece(const uint8_t* from, int width, int64_t length, const int16_t* integers,
                                    int64_t stride, __m256i (&sums)[kCount]) {
    const SixteenReader sixteen(width);
    if (kPiece > 0) {
        for (int k = 0; k < kPiece / 16; ++k)
            add_integers<kCount>(sixteen.levels(from + 2 * k * width), integers + 16 * k, stride, sums);
        return;
    }
    for (; length > 0; length -= 16, from += 2 * width, integers += 16)
        add_integers<kCount>(sixteen.levels(from, length > 8 ? from + width : from), integers, stride, sums);
}

// A block of levels of four bits, or of two: each byte has two of columns one behind the other, or four.
struct HalfBytes {
    __m256i first, second;  // as RowVectors' halves are

    DIFFQ_MEMBER explicit HalfBytes(const uint8_t* from) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        const __m256i mask = _mm256_set1_epi8(15);
        first = _mm256_and_si256(bytes, mask);
        second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
    }

    DIFFQ_MEMBER static const int8_t* of(const RowVectors& vectors) { return vectors.halves; }
};

struct QuarterBytes {
    __m256i first, second;  // as RowVectors' quarters are

    DIFFQ_MEMBER explicit QuarterBytes(const uint8_t* from) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        const __m256i mask = _mm256_set1_epi8(3);
        const __m256i both = _mm256_set_m128i(_mm_srli_epi16(bytes, 2), bytes);
        first = _mm256_and_si256(both, mask);
        second = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    }

    DIFFQ_MEMBER static const int8_t* of(const RowVectors& vectors) { return vectors.quarters; }
};

template <int kCount, class Levels>
DIFFQ_INLINE void multiply_block(const uint8_t* from, float scale, const RowVectors& vectors, int64_t block,
                                 __m256 (&total)[kCount]) {
    const Levels levels(from);
    const __m256i ones = _mm256_set1_epi16(1);
    for (int v = 0; v < kCount; ++v) {
        const int64_t of = v * vectors.blocks + block;
        const __m256i* const x = reinterpret_cast<const __m256i*>(Levels::of(vectors) + of * kBlockColumns);
        const __m256i pairs =
            _mm256_add_epi16(_mm256_maddubs_epi16(levels.first, _mm256_loadu_si256(x)),
                             _mm256_maddubs_epi16(levels.second, _mm256_loadu_si256(x + 1)));
        const __m256 sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
        total[v] = _mm256_fmadd_ps(sums, _mm256_set1_ps(scale * vectors.units[of]), total[v]);
    }
}

// The vectors' elements from `begin` on, with a piece of a row.
template <int kCount, int kPiece>
DIFFQ_INLINE void multiply_piece(const uint8_t* from, int width, float scale, const RowVectors& vectors,
                                 int64_t begin, int64_t length, __m256 (&total)[kCount]) {
    if (vectors.integers && width <= kMostSixteenWidth) {
        __m256i sums[kCount];
        for (int v = 0; v < kCount; ++v) sums[v] = _mm256_setzero_si256();
        add_integer_piece<kCount, kPiece>(from, width, length, vectors.integers + begin, vectors.stride,
                                          sums);
        const float* const units = vectors.units + begin / kBlockColumns;
        for (int v = 0; v < kCount; ++v)
            total[v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[v]),
                                       _mm256_set1_ps(scale * units[v * vectors.blocks]), total[v]);
        return;
    }
    const float* const values = vectors.values + begin;
    __m256 sums[kCount], others[kCount];
    for (int v = 0; v < kCount; ++v) sums[v] = others[v] = _mm256_setzero_ps();
    if (kPiece > 0) {
        const int half = kPiece / 2;
        const EightReader eight(width);
        for (int i = 0; i < half; i += 8) {
            const __m256 levels = eight.levels(from + i / 8 * width);
            const __m256 later = eight.levels(from + (i + half) / 8 * width);
            for (int v = 0; v < kCount; ++v) {
                const float* const x = values + v * vectors.stride + i;
                sums[v] = _mm256_fmadd_ps(levels, _mm256_loadu_ps(x), sums[v]);
                others[v] = _mm256_fmadd_ps(later, _mm256_loadu_ps(x + half), others[v]);
            }
        }
    } else {
        add_floats<kCount>(from, width, length, values, vectors.stride, sums);
    }
    for (int v = 0; v < kCount; ++v)
        total[v] = _mm256_fmadd_ps(_mm256_add_ps(sums[v], others[v]), _mm256_set1_ps(scale), total[v]);
}

// Rows of whole pieces, but for the last one: 64 elements, or 32, of one width, scale and block of vectors.
template <int kCount, int kPiece>
DIFFQ_INLINE void multiply_pieces(const PackedRow& row, const RowVectors& vectors, float* products) {
    const uint8_t* from = row.data;
    __m256 total[kCount];
    for (int v = 0; v < kCount; ++v) total[v] = _mm256_setzero_ps();
    Pieces pieces(row, kPiece);
    int64_t begin = 0;
    while (begin + kPiece <= row.columns) {
        const int64_t count = std::min((row.columns - begin) / kPiece, Pieces::kAtOnce);
        pieces.take(count);
        const bool bytes = kPiece == kBlockColumns && vectors.integers;
        if (bytes && pieces.all_have(4, count)) {
            for (int64_t k = 0; k < count; ++k, begin += kPiece, from += kPiece / 2) {
                ask_for_row(from);
                multiply_block<kCount, HalfBytes>(from, pieces.scales[k], vectors, begin / kPiece, total);
            }
            continue;
        }
        if (bytes && pieces.all_have(2, count)) {
            for (int64_t k = 0; k < count; ++k, begin += kPiece, from += kPiece / 4)
                multiply_block<kCount, QuarterBytes>(from, pieces.scales[k], vectors, begin / kPiece, total);
            continue;
        }
        for (int64_t k = 0; k < count; ++k, begin += kPiece) {
            const int width = pieces.widths[k];
            ask_for_row(from);
            multiply_piece<kCount, kPiece>(from, width, pieces.scales[k], vectors, begin, kPiece, total);
            from += kPiece / 8 * width;
        }
    }
    if (begin < row.columns) {
        pieces.take(1);
        multiply_piece<kCount, 0>(from, pieces.widths[0], pieces.scales[0], vectors, begin,
                                  row.columns - begin, total);
    }
    multiply_offsets<kCount>(row, vectors, products);
    for (int v = 0; v < kCount; ++v) products[v] += sum_of_eight(total[v]);
}

template <int kCount>
DIFFQ_INLINE void multiply_some(const PackedRow& row, const RowVectors& vectors, float* products) {
    if (row.segments == 1 || row.segment % 64 == 0) {
        multiply_pieces<kCount, 64>(row, vectors, products);
    } else if (row.segment % 32 == 0) {
        multiply_pieces<kCount, 32>(row, vectors, products);
    } else if (row.segment == 8 && row.scaled) {
        multiply_eights_of_one_scale<kCount>(row, vectors, products);
    } else {
        multiply_eights<kCount>(row, vectors, products);
    }
}
