// Rows of packed levels in floats, see core/infer/packed_rows.h, in vectors of 512 bits.

// What a level of a segment stands for, in the order of operations that makes its bits.
struct WideMeaning {
    __m512 half, step, scale, offset;
    bool has_offset;

    DIFFQ_MEMBER WideMeaning(const PackedRow& row, int width, int64_t group)
        : half(_mm512_set1_ps(row.halves[width])),
          step(_mm512_set1_ps(row.steps[width])),
          scale(_mm512_set1_ps(row.scales[group])),
          offset(_mm512_set1_ps(row.offsets ? row.offsets[group] : 0.0f)),
          has_offset(row.offsets) {}

    DIFFQ_MEMBER __m512 of(__m512 levels) const {
        const __m512 value = _mm512_mul_ps(_mm512_mul_ps(_mm512_sub_ps(levels, half), step), scale);
        return has_offset ? _mm512_add_ps(value, offset) : value;
    }
};

static void unpack_row(const PackedRow& row, float* values) {
    if (row.segments > 1 && row.segment % 16 != 0) return unpack_eights(row, values);
    const uint8_t* from = row.data;
    GroupCursor at(row);
    for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
        const int width = width_of_segment(row.widths, s);
        const int64_t begin = s * row.segment, length = std::min(row.segment, row.columns - begin);
        const WideReader wide(width);
        const WideMeaning meaning(row, width, at.group);
        int64_t i = 0;
        if (width <= kMostByteWidth)
            for (const uint8_t* first = from; i + 16 <= length; i += 16, first += 2 * width)
                _mm512_storeu_ps(values + begin + i,
                                 meaning.of(_mm512_mul_ps(wide.levels(first), wide.factors)));
        for (; i < length; i += 16) {
            const uint8_t* const first = from + i / 8 * width;
            const bool two = width > kMostByteWidth && length - i > 8;
            const __m512 levels =
                _mm512_mul_ps(wide.levels(first, two ? first + width : first), wide.factors);
            const auto lanes = static_cast<__mmask16>(0xFFFF >> (16 - std::min<int64_t>(16, length - i)));
            _mm512_mask_storeu_ps(values + begin + i, lanes, meaning.of(levels));
        }
        from += (length * width + 7) / 8;
    }
}
