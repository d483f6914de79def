// Products of panels of rows with vectors of whole numbers, see RowPanel, in vectors of 512 bits: four
// columns of sixteen rows at a time.
//
//   levels  |a0 a1 a2 a3|b0 b1 b2 b3| ...   bytes of the rows a, b, ...
//   vector  |x0 x1 x2 x3|x0 x1 x2 x3| ...
//   sums    |a0x0 + ... + a3x3      | ...   32 bits

// The sums of some columns of each part's rows and each vector. `columns` is a number that the compiler does
// not know, so that the loop stays one and its sums in registers.
template <int kCount>
DIFFQ_INLINE void sum_fours(const uint8_t* levels, int64_t part, const int8_t* whole, int64_t stride,
                            int64_t columns, __m512i (&sums)[kMostPanelParts][kCount]) {
    for (int h = 0; h < kMostPanelParts; ++h)
        for (int v = 0; v < kCount; ++v) sums[h][v] = _mm512_setzero_si512();
    for (const int8_t* const end = whole + columns; whole != end; whole += 4, levels += 4 * kPanelRows) {
        __m512i fours[kMostPanelParts];
        for (int h = 0; h < kMostPanelParts; ++h) fours[h] = load_512(levels + h * part);
        for (int v = 0; v < kCount; ++v) {
            int32_t four;
            std::memcpy(&four, whole + v * stride, sizeof four);
            const __m512i x = _mm512_set1_epi32(four);
            for (int h = 0; h < kMostPanelParts; ++h) dot_panel_fours(sums[h][v], fours[h], x);
        }
    }
}

template <int kCount>
static void multiply_panel_with(const RowPanel& panel, const WholeVectors& vectors, float* products,
                                int64_t stride) {
    const int64_t of_block = kBlockColumns / panel.piece, pieces = panel.blocks * of_block;
    const int64_t part = panel.blocks * kBlockColumns * kPanelRows;
    __m512 totals[kMostPanelParts][kCount];
    for (int h = 0; h < kMostPanelParts; ++h)
        for (int v = 0; v < kCount; ++v) totals[h][v] = _mm512_loadu_ps(panel.begins + h * kPanelRows);
    for (int64_t p = 0; p < pieces; ++p) {
        const int64_t begin = p * panel.piece;
        __m512i sums[kMostPanelParts][kCount];
        sum_fours<kCount>(panel.levels + begin * kPanelRows, part, vectors.whole + begin, vectors.stride,
                          panel.piece, sums);
        const float *sum = vectors.sums + p, *unit = vectors.units + p / of_block;
        for (int h = 0; h < kMostPanelParts; ++h) {
            const __m512 scale = _mm512_loadu_ps(panel.scales + (h * pieces + p) * kPanelRows);
            const __m512 offset = _mm512_loadu_ps(panel.offsets + (h * pieces + p) * kPanelRows);
            for (int v = 0; v < kCount; ++v) {
                const __m512 add = _mm512_mul_ps(offset, _mm512_set1_ps(sum[v * pieces]));
                const __m512 found = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[h][v]), scale, add);
                totals[h][v] = _mm512_fmadd_ps(found, _mm512_set1_ps(unit[v * panel.blocks]), totals[h][v]);
            }
        }
    }
    for (int h = 0; h < kMostPanelParts; ++h)
        for (int v = 0; v < kCount; ++v)
            _mm512_storeu_ps(products + v * stride + h * kPanelRows, totals[h][v]);
}

template <int kCount = kMostPanelVectors>
static void multiply_panel_of(const RowPanel& panel, const WholeVectors& vectors, float* products,
                              int64_t stride) {
    if (vectors.count == kCount) return multiply_panel_with<kCount>(panel, vectors, products, stride);
    if constexpr (kCount > 1) multiply_panel_of<kCount - 1>(panel, vectors, products, stride);
}

static void multiply_panel(const RowPanel& panel, const WholeVectors& vectors, float* products,
                           int64_t stride) {
    multiply_panel_of<>(panel, vectors, products, stride);
}
