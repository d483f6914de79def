// Rows of packed levels, see core/infer/packed_rows.h: the definition, a level at a time.

static void unpack_row_by_level(const PackedRow& row, float* values) {
    const uint8_t* segment = row.data;
    GroupCursor at(row);
    for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
        const int width = width_of_segment(row.widths, s);
        const int64_t begin = s * row.segment, length = std::min(row.segment, row.columns - begin);
        for (int64_t i = 0; i < length; ++i) {
            const float level = static_cast<float>(level_at(segment, i, width)) - row.halves[width];
            const float value = level * row.steps[width] * row.scales[at.group];
            values[begin + i] = row.offsets ? value + row.offsets[at.group] : value;
        }
        segment += (length * width + 7) / 8;
    }
}
