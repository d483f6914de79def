// Products of panels of rows with vectors of whole numbers, see RowPanel: the definition.

constexpr PanelForm kPanelForm = {1, 3, 8, false, 0};

static void unpack_bytes(const PackedRow& row, uint8_t* levels) {
    const uint8_t* segment = row.data;
    for (int64_t s = 0; s < row.segments; ++s) {
        const int width = width_of_segment(row.widths, s);
        const int64_t begin = s * row.segment, length = std::min(row.segment, row.columns - begin);
        for (int64_t i = 0; i < length; ++i)
            levels[begin + i] = static_cast<uint8_t>(level_at(segment, i, width));
        segment += (length * width + 7) / 8;
    }
}

static void interleave_rows(const uint8_t* levels, int64_t blocks, uint8_t* panel) {
    const int64_t columns = blocks * kBlockColumns;
    for (int64_t begin = 0; begin < columns; begin += 4)
        for (int64_t r = 0; r < kPanelRows; ++r, panel += 4)
            std::memcpy(panel, levels + r * columns + begin, 4);
}

// sums[r] += the product of `columns` columns of each row.
static void add_whole(const uint8_t* levels, const int8_t* whole, int64_t columns, int32_t* sums) {
    for (int64_t i = 0; i < columns; i += 4, levels += 4 * kPanelRows)
        for (int64_t r = 0; r < kPanelRows; ++r)
            for (int64_t k = 0; k < 4; ++k) sums[r] += levels[4 * r + k] * whole[i + k];
}

static void multiply_panel(const RowPanel& panel, const WholeVectors& vectors, float* products,
                           int64_t stride) {
    const int64_t of_block = kBlockColumns / panel.piece;
    for (int64_t v = 0; v < vectors.count; ++v, products += stride) {
        std::copy(panel.begins, panel.begins + kPanelRows, products);
        for (int64_t p = 0; p < panel.blocks * of_block; ++p) {
            const int64_t begin = p * panel.piece, at = p * kPanelRows;
            int32_t sums[kPanelRows] = {};
            add_whole(panel.levels + begin * kPanelRows, vectors.whole + v * vectors.stride + begin,
                      panel.piece, sums);
            const float unit = vectors.units[v * panel.blocks + p / of_block];
            const float sum = vectors.sums[v * panel.blocks * of_block + p];
            for (int64_t r = 0; r < kPanelRows; ++r)
                products[r] +=
                    unit * (panel.scales[at + r] * static_cast<float>(sums[r]) + panel.offsets[at + r] * sum);
        }
    }
}

constexpr std::nullptr_t multiply_floats = nullptr;
