// Pieces of rows, see pieces.h, in vectors of 512 bits.

// What Pieces take of as many segments, each of which is a piece and a group.
DIFFQ_INLINE void take_groups(const PackedRow& row, int64_t segment, int64_t count, int* widths,
                              float* scales) {
    const __m512 steps = _mm512_loadu_ps(row.steps + 1);
    const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i words = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    for (int64_t k = 0; k < count; k += 16) {
        const int64_t left = std::min<int64_t>(16, count - k);
        const auto lanes = static_cast<__mmask16>(0xFFFF >> (16 - left));
        const auto read = static_cast<__mmask16>(0xFF >> (8 - (left + 1) / 2));
        const __m128i bytes = _mm_maskz_loadu_epi8(read, row.widths + (segment + k) / 2);
        const __m512i pairs = _mm512_permutexvar_epi32(words, _mm512_castsi128_si512(bytes));
        const __m512i below = _mm512_and_si512(_mm512_srlv_epi32(pairs, shifts), _mm512_set1_epi32(15));
        _mm512_mask_storeu_epi32(widths + k, lanes, _mm512_add_epi32(below, _mm512_set1_epi32(1)));
        const __m512 of_group = _mm512_maskz_loadu_ps(lanes, row.scales + segment + k);
        _mm512_mask_storeu_ps(scales + k, lanes,
                              _mm512_mul_ps(_mm512_permutexvar_ps(below, steps), of_group));
    }
}
