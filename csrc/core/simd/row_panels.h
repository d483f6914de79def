// Products of panels of rows with vectors of whole numbers, see RowPanel: four columns of eight rows at a
// time, levels times whole numbers as pairs of bytes, which are summed up on 16 bits for as long as that
// holds.
//
//   levels  |a0 a1 a2 a3|b0 b1 b2 b3| ...   bytes of the rows a, b, ...
//   vector  |x0 x1 x2 x3|x0 x1 x2 x3| ...
//   pairs   |a0x0 + a1x1|a2x2 + a3x3| ...   16 bits
//   sums    |a0x0 + ... + a3x3      | ...   32 bits

constexpr int kMostPanelWidth = 7;  // pairs of products with 127 still fit in 16 bits
constexpr PanelForm kPanelForm = {1, 3, kMostPanelWidth, true, 1.5};

static void unpack_bytes(const PackedRow& row, uint8_t* levels) {
    const uint8_t* from = row.data;
    for (int64_t s = 0; s < row.segments; ++s) {
        const int width = width_of_segment(row.widths, s);
        const int64_t begin = s * row.segment, length = std::min(row.segment, row.columns - begin);
        const SixteenReader sixteen(width);
        for (int64_t i = 0; i < length; i += 16) {
            const uint8_t* const first = from + i / 8 * width;
            const __m256i read = sixteen.levels(first, length - i > 8 ? first + width : first);
            const __m128i bytes =
                _mm_packus_epi16(_mm256_castsi256_si128(read), _mm256_extracti128_si256(read, 1));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(levels + begin + i), bytes);
        }
        from += (length * width + 7) / 8;
    }
}

// Eight rows of eight fours become eight fours of eight rows.
DIFFQ_INLINE void transpose_fours(const uint8_t* levels, int64_t columns, uint8_t* panel) {
    __m256i rows[8], twos[8], fours[8];
    for (int r = 0; r < 8; ++r)
        rows[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(levels + r * columns));
    for (int r = 0; r < 8; r += 2) {
        twos[r] = _mm256_unpacklo_epi32(rows[r], rows[r + 1]);
        twos[r + 1] = _mm256_unpackhi_epi32(rows[r], rows[r + 1]);
    }
    for (int r = 0; r < 8; r += 4) {
        fours[r] = _mm256_unpacklo_epi64(twos[r], twos[r + 2]);
        fours[r + 1] = _mm256_unpackhi_epi64(twos[r], twos[r + 2]);
        fours[r + 2] = _mm256_unpacklo_epi64(twos[r + 1], twos[r + 3]);
        fours[r + 3] = _mm256_unpackhi_epi64(twos[r + 1], twos[r + 3]);
    }
    for (int r = 0; r < 4; ++r) {
        __m256i* const to = reinterpret_cast<__m256i*>(panel + r * 4 * kPanelRows);
        __m256i* const later = reinterpret_cast<__m256i*>(panel + (r + 4) * 4 * kPanelRows);
        _mm256_storeu_si256(to, _mm256_permute2x128_si256(fours[r], fours[r + 4], 0x20));
        _mm256_storeu_si256(later, _mm256_permute2x128_si256(fours[r], fours[r + 4], 0x31));
    }
}

static void interleave_rows(const uint8_t* levels, int64_t blocks, uint8_t* panel) {
    const int64_t columns = blocks * kBlockColumns;
    for (int64_t begin = 0; begin < columns; begin += 32)
        for (int64_t r = 0; r < kPanelRows; r += 8)
            transpose_fours(levels + r * columns + begin, columns, panel + begin * kPanelRows + 4 * r);
}

// Fours of columns whose pairs 16 bits hold the sums of: 2 * 127 * (2^width - 1) for each.
constexpr int64_t kSafeFours[kMostPanelWidth + 1] = {0, 16, 16, 16, 8, 4, 2, 1};

// The sums of `fours` fours of columns, of sixteen rows and each vector, `at_once` on 16 bits: a number that
// the compiler does not know, so that the loop stays one and its sums in registers.
template <int kCount>
DIFFQ_INLINE void sum_fours(const uint8_t* levels, const int8_t* whole, int64_t stride, int64_t fours,
                            int64_t at_once, __m256i (&sums)[kCount][2]) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int v = 0; v < kCount; ++v) sums[v][0] = sums[v][1] = _mm256_setzero_si256();
    for (int64_t begin = 0; begin < fours; begin += at_once) {
        __m256i pairs[kCount][2];
        for (int v = 0; v < kCount; ++v) pairs[v][0] = pairs[v][1] = _mm256_setzero_si256();
        for (const uint8_t* const end = levels + 4 * kPanelRows * at_once; levels != end;
             levels += 4 * kPanelRows, whole += 4) {
            const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(levels));
            const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(levels) + 1);
            for (int v = 0; v < kCount; ++v) {
                int32_t four;
                std::memcpy(&four, whole + v * stride, sizeof four);
                const __m256i x = _mm256_set1_epi32(four);
                pairs[v][0] = _mm256_add_epi16(pairs[v][0], _mm256_maddubs_epi16(first, x));
                pairs[v][1] = _mm256_add_epi16(pairs[v][1], _mm256_maddubs_epi16(second, x));
            }
        }
        for (int v = 0; v < kCount; ++v)
            for (int h = 0; h < 2; ++h)
                sums[v][h] = _mm256_add_epi32(sums[v][h], _mm256_madd_epi16(pairs[v][h], ones));
    }
}

template <int kCount>
static void multiply_panel_with(const RowPanel& panel, const WholeVectors& vectors, float* products,
                                int64_t apart) {
    const int64_t stride = vectors.stride, of_block = kBlockColumns / panel.piece;
    const int64_t pieces = panel.blocks * of_block;
    const uint8_t* levels = panel.levels;
    const int8_t* whole = vectors.whole;
    __m256 totals[kCount][2];
    for (int v = 0; v < kCount; ++v)
        for (int h = 0; h < 2; ++h) totals[v][h] = _mm256_loadu_ps(panel.begins + 8 * h);
    for (int64_t block = 0, p = 0; block < panel.blocks; ++block) {
        __m256 found[kCount][2];
        for (int v = 0; v < kCount; ++v) found[v][0] = found[v][1] = _mm256_setzero_ps();
        for (const int64_t end = p + of_block; p < end; ++p) {
            __m256i sums[kCount][2];
            const int64_t fours = panel.piece / 4;
            const int64_t at_once = std::min(fours, kSafeFours[panel.widest[p]]);
            sum_fours<kCount>(levels, whole, stride, fours, at_once, sums);
            for (int h = 0; h < 2; ++h) {
                const __m256 scale = _mm256_loadu_ps(panel.scales + p * kPanelRows + 8 * h);
                const __m256 offset = _mm256_loadu_ps(panel.offsets + p * kPanelRows + 8 * h);
                for (int v = 0; v < kCount; ++v) {
                    const __m256 sum = _mm256_broadcast_ss(vectors.sums + v * pieces + p);
                    found[v][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[v][h]), scale, found[v][h]);
                    found[v][h] = _mm256_fmadd_ps(offset, sum, found[v][h]);
                }
            }
            levels += panel.piece * kPanelRows;
            whole += panel.piece;
        }
        for (int v = 0; v < kCount; ++v) {
            const __m256 unit = _mm256_broadcast_ss(vectors.units + v * panel.blocks + block);
            for (int h = 0; h < 2; ++h) totals[v][h] = _mm256_fmadd_ps(found[v][h], unit, totals[v][h]);
        }
    }
    for (int v = 0; v < kCount; ++v)
        for (int h = 0; h < 2; ++h) _mm256_storeu_ps(products + v * apart + 8 * h, totals[v][h]);
}

static void multiply_panel(const RowPanel& panel, const WholeVectors& vectors, float* products,
                           int64_t stride) {
    switch (vectors.count) {
        case 1:
            return multiply_panel_with<1>(panel, vectors, products, stride);
        case 2:
            return multiply_panel_with<2>(panel, vectors, products, stride);
        default:
            return multiply_panel_with<3>(panel, vectors, products, stride);
    }
}
