// Products of rows of packed levels, see core/infer/packed_rows.h: the definition, a level at a time.

static void multiply_row_by_level(const PackedRow& row, const RowVectors& vectors, float* products) {
    for (int64_t v = 0; v < vectors.count; ++v) products[v] = 0.0f;
    const uint8_t* segment = row.data;
    GroupCursor at(row);
    for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
        const int width = width_of_segment(row.widths, s);
        const int64_t begin = s * row.segment, length = std::min(row.segment, row.columns - begin);
        const float scale = row.steps[width] * row.scales[at.group];
        const float offset = row.offsets ? row.offsets[at.group] : -row.halves[width] * scale;
        for (int64_t v = 0; v < vectors.count; ++v) {
            const float* vector = vectors.values + v * vectors.stride + begin;
            float sum = 0.0f;
            for (int64_t i = 0; i < length; ++i)
                sum += static_cast<float>(level_at(segment, i, width)) * vector[i];
            products[v] += scale * sum + offset * vectors.sums[v * row.segments + s];
        }
        segment += (length * width + 7) / 8;
    }
}
