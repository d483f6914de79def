// Rows of packed levels, see core/infer/packed_rows.h: the definition, a level at a time.

// Level i of a segment; the four bytes from its first bit's on are read.
static inline uint32_t level_at(const uint8_t* segment, int64_t i, int width) {
    const int64_t bit = i * width;
    uint32_t word = 0;
    for (int byte = 0; byte < 3; ++byte) word |= static_cast<uint32_t>(segment[bit / 8 + byte]) << 8 * byte;
    return word >> bit % 8 & ((uint32_t{1} << width) - 1);
}

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
