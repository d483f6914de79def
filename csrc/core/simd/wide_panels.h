// Products of panels of rows with vectors of whole numbers, see RowPanel, in vectors of 512 bits: four columns
// of sixteen rows at a time.
//
//   levels  |a0 a1 a2 a3|b0 b1 b2 b3| ...   bytes of the rows a, b, ...
//   vector  |x0 x1 x2 x3|x0 x1 x2 x3| ...
//   sums    |a0x0 + ... + a3x3      | ...   32 bits

template <int kCount>
DIFFQ_INLINE void sum_fours(const uint8_t* levels, const int8_t* whole, int64_t stride, int64_t columns,
                            __m512i (&sums)[kCount]) {
    for (int v = 0; v < kCount; ++v) sums[v] = _mm512_setzero_si512();
    for (const int8_t* const end = whole + columns; whole != end; whole += 4, levels += 4 * kPanelRows) {
        const __m512i four = load_512(levels);
        for (int v = 0; v < kCount; ++v) dot_panel_fours(sums[v], four, whole + v * stride);
    }
}

template <int kCount>
static void multiply_panel_with(const RowPanel& panel, const WholeVectors& vectors, float* products,
                                int64_t stride) {
    const int64_t of_block = kBlockColumns / panel.piece, pieces = panel.blocks * of_block;
    __m512 totals[kCount];
    set_zero(totals);
    for (int64_t p = 0; p < pieces; ++p) {
        const int64_t begin = p * panel.piece;
        __m512i sums[kCount];
        sum_fours<kCount>(panel.levels + begin * kPanelRows, vectors.whole + begin, vectors.stride,
                          panel.piece, sums);
        const __m512 scale = _mm512_loadu_ps(panel.scales + p * kPanelRows);
        const __m512 offset = _mm512_loadu_ps(panel.offsets + p * kPanelRows);
        for (int v = 0; v < kCount; ++v) {
            const __m512 sum = _mm512_set1_ps(vectors.sums[v * pieces + p]);
            const __m512 found = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[v]), scale, _mm512_mul_ps(offset, sum));
            const __m512 unit = _mm512_set1_ps(vectors.units[v * panel.blocks + p / of_block]);
            totals[v] = _mm512_fmadd_ps(found, unit, totals[v]);
        }
    }
    for (int v = 0; v < kCount; ++v) _mm512_storeu_ps(products + v * stride, totals[v]);
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
