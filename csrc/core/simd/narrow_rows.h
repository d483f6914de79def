// Rows of packed levels in floats, see core/infer/packed_rows.h, in vectors of 128 bits.

// A segment of one width; group: the one that it lies in.
template <class Reader>
DIFFQ_INLINE void unpack_segment(const PackedRow& row, int width, int64_t group, const uint8_t* from,
                                 int64_t length, float* values) {
    const Reader reader(width);
    const float32x4_t half = vdupq_n_f32(row.halves[width]), step = vdupq_n_f32(row.steps[width]);
    const float32x4_t scale = vdupq_n_f32(row.scales[group]);
    const bool has_offset = row.offsets;
    const float32x4_t offset = vdupq_n_f32(has_offset ? row.offsets[group] : 0.0f);
    for (int64_t i = 0; i < length; i += 8, from += width, values += 8) {
        float32x4_t made[2];
        reader.take(from, made);
        for (float32x4_t& value : made) {
            value = vmulq_f32(vmulq_f32(vsubq_f32(value, half), step), scale);
            if (has_offset) value = vaddq_f32(value, offset);
        }
        if (i + 8 <= length) {
            vst1q_f32(values, made[0]);
            vst1q_f32(values + 4, made[1]);
        } else {
            float last[8];
            vst1q_f32(last, made[0]);
            vst1q_f32(last + 4, made[1]);
            std::copy(last, last + length - i, values);
        }
    }
}

static void unpack_row(const PackedRow& row, float* values) {
    if (has_broken_eights(row)) return unpack_row_by_level(row, values);
    const uint8_t* from = row.data;
    GroupCursor at(row);
    for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
        const int width = width_of_segment(row.widths, s);
        const int64_t begin = s * row.segment, length = std::min(row.segment, row.columns - begin);
        if (width <= kMostShortWidth) {
            unpack_segment<ShortReader>(row, width, at.group, from, length, values + begin);
        } else {
            unpack_segment<LongReader>(row, width, at.group, from, length, values + begin);
        }
        from += (length * width + 7) / 8;
    }
}
