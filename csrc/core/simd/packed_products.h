// Products of rows of packed levels with vectors, see core/infer/packed_rows.h and RowVectors: in floats,
// eight levels at a time, or in whole numbers, sixteen or sixty-four.

DIFFQ_INLINE float sum_of_eight(__m256 value) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// What a level of a segment stands for is level * scale + offset.
struct RowScale {
    float scale, offset;

    DIFFQ_MEMBER RowScale(const PackedRow& row, int width, int64_t group)
        : scale(row.steps[width] * row.scales[group]),
          offset(row.offsets ? row.offsets[group] : -row.halves[width] * scale) {}
};

// Segments of whole eights: each eight becomes a vector of weights, so that nothing has to be summed up
// between segments.
template <int kCount>
DIFFQ_INLINE void multiply_eights(const PackedRow& row, const RowVectors& vectors, float* products) {
    constexpr int kSums = kCount == 1 ? 4 : 2;
    const uint8_t* from = row.data;
    const float* vector = vectors.values;
    const int64_t eights = row.segment / 8;
    __m256 sums[kCount][kSums];
    for (int v = 0; v < kCount; ++v)
        for (int k = 0; k < kSums; ++k) sums[v][k] = _mm256_setzero_ps();
    const auto take = [&](int k, const EightReader& eight, int width, __m256 scale, __m256 offset) {
        const __m256 weights = _mm256_fmadd_ps(eight.levels(from), scale, offset);
        for (int v = 0; v < kCount; ++v)
            sums[v][k] = _mm256_fmadd_ps(weights, _mm256_loadu_ps(vector + v * vectors.stride), sums[v][k]);
        from += width;
        vector += 8;
    };
    GroupCursor at(row);
    for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
        const int width = width_of_segment(row.widths, s);
        const RowScale found(row, width, at.group);
        const __m256 scale = _mm256_set1_ps(found.scale), offset = _mm256_set1_ps(found.offset);
        const EightReader eight(width);
        int64_t e = 0;
        for (; e + kSums <= eights; e += kSums)
            for (int k = 0; k < kSums; ++k) take(k, eight, width, scale, offset);
        for (; e < eights; ++e) take(static_cast<int>(s % 2), eight, width, scale, offset);
    }
    for (int v = 0; v < kCount; ++v) {
        for (int k = 1; k < kSums; ++k) sums[v][0] = _mm256_add_ps(sums[v][0], sums[v][k]);
        products[v] = sum_of_eight(sums[v][0]);
    }
}

// Segments of eight levels where all have one scale and one offset, which counts once: two segments, whose
// widths are one byte, at a time.
template <int kCount>
DIFFQ_INLINE void multiply_eights_of_one_scale(const PackedRow& row, const RowVectors& vectors,
                                               float* products) {
    const uint8_t* from = row.data;
    __m256 sums[kCount][2];
    for (int v = 0; v < kCount; ++v) sums[v][0] = sums[v][1] = _mm256_setzero_ps();
    const auto take = [&](int64_t s, int half, int width) {
        const __m256 scale = _mm256_broadcast_ss(row.scaled + width);
        const __m256 weights = _mm256_mul_ps(EightReader(width).levels(from), scale);
        for (int v = 0; v < kCount; ++v) {
            const __m256 x = _mm256_loadu_ps(vectors.values + v * vectors.stride + 8 * s);
            sums[v][half] = _mm256_fmadd_ps(weights, x, sums[v][half]);
        }
        from += width;
    };
    for (int64_t s = 0; s + 2 <= row.segments; s += 2) {
        const int widths = row.widths[s / 2];
        take(s, 0, (widths & 15) + 1);
        take(s + 1, 1, (widths >> 4) + 1);
    }
    if (row.segments % 2 != 0) take(row.segments - 1, 0, width_of_segment(row.widths, row.segments - 1));
    for (int v = 0; v < kCount; ++v)
        products[v] =
            sum_of_eight(_mm256_add_ps(sums[v][0], sums[v][1])) + row.offsets[0] * vectors.totals[v];
}

// Sixteen levels of up to eight bits as whole numbers of 16 bits: the two bytes that have a level are shifted
// left, which drops the levels behind it, and then right, which drops those before.
struct SixteenTable {
    alignas(16) uint8_t bytes[16];
    alignas(16) uint16_t factors[8];
};

constexpr int kMostSixteenWidth = 8;

struct SixteenTables {
    SixteenTable of[kMostSixteenWidth + 1];

    constexpr SixteenTables() : of() {
        for (int width = 1; width <= kMostSixteenWidth; ++width) {
            for (int lane = 0; lane < 8; ++lane) {
                const int bit = lane * width;
                of[width].factors[lane] = static_cast<uint16_t>(1 << (16 - width - bit % 8));
                for (int byte = 0; byte < 2; ++byte)
                    of[width].bytes[lane * 2 + byte] = static_cast<uint8_t>(bit / 8 + byte);
            }
        }
    }
};
static constexpr SixteenTables kSixteenTables{};

struct SixteenReader {
    __m256i bytes, factors;
    __m128i shift;
    int width;

    DIFFQ_MEMBER explicit SixteenReader(int of) : width(of) {
        const SixteenTable& table = kSixteenTables.of[width];
        bytes = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table.bytes)));
        factors =
            _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table.factors)));
        shift = _mm_cvtsi32_si128(16 - width);
    }

    // Sixteen bytes from the first level on, and from the ninth, are read.
    DIFFQ_MEMBER __m256i levels(const uint8_t* from) const { return levels(from, from + width); }

    DIFFQ_MEMBER __m256i levels(const uint8_t* first, const uint8_t* ninth) const {
        const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
        const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(ninth));
        const __m256i pairs = _mm256_shuffle_epi8(_mm256_set_m128i(high, low), bytes);
        return _mm256_srl_epi16(_mm256_mullo_epi16(pairs, factors), shift);
    }
};

// A row cut into pieces of as many elements each, within segments: the widths of some pieces, and what a
// level of theirs is worth.
struct Pieces {
    static constexpr int64_t kAtOnce = 64;

    DIFFQ_MEMBER Pieces(const PackedRow& of, int64_t size)
        : row(of), at(of), of_segment(of.segments == 1 ? INT64_MAX : of.segment / size) {}

    // Each segment is one piece, and one group.
    DIFFQ_MEMBER bool are_groups() const {
        return of_segment == 1 && row.group_size == row.segment && row.before == 0;
    }

    DIFFQ_MEMBER void take(int64_t count) {
        if (are_groups()) {
            for (int64_t k = 0; k < count; ++k) widths[k] = width_of_segment(row.widths, segment + k);
            for (int64_t k = 0; k < count; ++k) scales[k] = row.steps[widths[k]] * row.scales[segment + k];
            segment += count;
            return;
        }
        GroupCursor here = at;
        int64_t s = segment, number = taken;
        for (int64_t k = 0; k < count; ++k) {
            widths[k] = width_of_segment(row.widths, s);
            scales[k] = row.steps[widths[k]] * row.scales[here.group];
            if (++number < of_segment) continue;
            number = 0;
            ++s;
            here.next_segment();
        }
        at = here, segment = s, taken = number;
    }

    DIFFQ_MEMBER bool all_have(int width, int64_t count) const {
        int other = 0;
        for (int64_t k = 0; k < count; ++k) other |= widths[k] ^ width;
        return other == 0;
    }

    int widths[kAtOnce];
    float scales[kAtOnce];
    const PackedRow& row;
    GroupCursor at;
    int64_t of_segment, segment = 0, taken = 0;
};

// products[v] = what the offsets of a row's segments add to the product with each vector.
template <int kCount>
DIFFQ_INLINE void multiply_offsets(const PackedRow& row, const RowVectors& vectors, float* products) {
    float sums[kCount];
    for (int v = 0; v < kCount; ++v) sums[v] = 0.0f;
    if (row.group_size == 0 && row.offsets) {
        for (int v = 0; v < kCount; ++v) sums[v] = row.offsets[0] * vectors.totals[v];
    } else if (row.group_size == row.segment && row.before == 0 && row.offsets) {
        for (int v = 0; v < kCount; ++v) {
            const float* const of = vectors.sums + v * row.segments;
            __m256 eights = _mm256_setzero_ps();
            int64_t s = 0;
            for (; s + 8 <= row.segments; s += 8)
                eights = _mm256_fmadd_ps(_mm256_loadu_ps(row.offsets + s), _mm256_loadu_ps(of + s), eights);
            for (; s < row.segments; ++s) sums[v] += row.offsets[s] * of[s];
            sums[v] += sum_of_eight(eights);
        }
    } else {
        GroupCursor at(row);
        for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
            const float offset = RowScale(row, width_of_segment(row.widths, s), at.group).offset;
            for (int v = 0; v < kCount; ++v) sums[v] += offset * vectors.sums[v * row.segments + s];
        }
    }
    for (int v = 0; v < kCount; ++v) products[v] = sums[v];
}

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

// How far ahead of its use a row is asked for: the hardware stops at the ends of pages.
constexpr int64_t kRowAhead = 2048;

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
                _mm_prefetch(reinterpret_cast<const char*>(from + kRowAhead), _MM_HINT_T0);
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
            _mm_prefetch(reinterpret_cast<const char*>(from + kRowAhead), _MM_HINT_T0);
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

static void multiply_row(const PackedRow& row, const RowVectors& vectors, float* products) {
    if (has_broken_eights(row)) return multiply_row_by_level(row, vectors, products);
    switch (vectors.count) {
        case 1:
            return multiply_some<1>(row, vectors, products);
        case 2:
            return multiply_some<2>(row, vectors, products);
        case 3:
            return multiply_some<3>(row, vectors, products);
        default:
            return multiply_some<4>(row, vectors, products);
    }
}
