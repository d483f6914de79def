// Rows of packed levels in floats, see core/infer/packed_rows.h.

static void unpack_eights(const PackedRow& row, float* values) {
    if (has_broken_eights(row)) return unpack_row_by_level(row, values);
    const uint8_t* from = row.data;
    GroupCursor at(row);
    for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
        const int width = width_of_segment(row.widths, s);
        const int64_t begin = s * row.segment;
        const int64_t length = std::min(row.segment, row.columns - begin);
        const EightReader eight(width);
        const __m256 half = _mm256_set1_ps(row.halves[width]), step = _mm256_set1_ps(row.steps[width]);
        const __m256 scale = _mm256_set1_ps(row.scales[at.group]);
        const __m256 offset = _mm256_set1_ps(row.offsets ? row.offsets[at.group] : 0.0f);
        for (int64_t i = 0; i < length; i += 8) {
            const __m256 level = _mm256_sub_ps(eight.levels(from + i / 8 * width), half);
            __m256 value = _mm256_mul_ps(_mm256_mul_ps(level, step), scale);
            if (row.offsets) value = _mm256_add_ps(value, offset);
            float* const to = values + begin + i;
            if (i + 8 <= length) {
                _mm256_storeu_ps(to, value);
            } else {
                alignas(32) float last[8];
                _mm256_store_ps(last, value);
                std::copy(last, last + length - i, to);
            }
        }
        from += (length * width + 7) / 8;
    }
}
