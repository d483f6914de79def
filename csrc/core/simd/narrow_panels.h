// Products of panels of rows with vectors of whole numbers, see RowPanel, in vectors of 128 bits: four
// columns of eight rows at a time, levels times whole numbers, which are summed up on 16 bits for as long as
// that holds.
//
//   levels  |a0 a1 a2 a3|b0 b1 b2 b3| ...   bytes of the rows a, b, ...
//   vector  |x0 x1 x2 x3|x0 x1 x2 x3| ...
//   column  |a0x0|a1x1|a2x2|a3x3|b0x0| ...  16 bits
//   sums    |a0x0 + ... + a3x3      | ...   32 bits

constexpr int kMostPanelWidth = 7;  // that are bytes with a sign
constexpr int kVectorsOfPanel = 4;
constexpr PanelForm kPanelForm = {1, kVectorsOfPanel, kMostPanelWidth, true, 1.5};

static void unpack_bytes(const PackedRow& row, uint8_t* levels) {
    const uint8_t* from = row.data;
    for (int64_t s = 0; s < row.segments; ++s) {
        const int width = width_of_segment(row.widths, s);
        const int64_t begin = s * row.segment, length = std::min(row.segment, row.columns - begin);
        const ShortReader reader(width);
        for (int64_t i = 0; i < length; i += 16) {
            const uint8_t* const first = from + i / 8 * width;
            const uint16x8_t low = reader.levels(first);
            const uint16x8_t high = reader.levels(length - i > 8 ? first + width : first);
            vst1q_u8(levels + begin + i, vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high)));
        }
        from += (length * width + 7) / 8;
    }
}

// Four rows of four fours become four fours of four rows.
DIFFQ_INLINE void transpose_fours(const uint8_t* levels, int64_t columns, uint8_t* panel) {
    uint32x4_t rows[4];
    for (int r = 0; r < 4; ++r) rows[r] = vreinterpretq_u32_u8(vld1q_u8(levels + r * columns));
    const uint64x2_t even[2] = {vreinterpretq_u64_u32(vtrn1q_u32(rows[0], rows[1])),
                                vreinterpretq_u64_u32(vtrn1q_u32(rows[2], rows[3]))};
    const uint64x2_t odd[2] = {vreinterpretq_u64_u32(vtrn2q_u32(rows[0], rows[1])),
                               vreinterpretq_u64_u32(vtrn2q_u32(rows[2], rows[3]))};
    vst1q_u8(panel, vreinterpretq_u8_u64(vtrn1q_u64(even[0], even[1])));
    vst1q_u8(panel + 4 * kPanelRows, vreinterpretq_u8_u64(vtrn1q_u64(odd[0], odd[1])));
    vst1q_u8(panel + 8 * kPanelRows, vreinterpretq_u8_u64(vtrn2q_u64(even[0], even[1])));
    vst1q_u8(panel + 12 * kPanelRows, vreinterpretq_u8_u64(vtrn2q_u64(odd[0], odd[1])));
}

static void interleave_rows(const uint8_t* levels, int64_t blocks, uint8_t* panel) {
    const int64_t columns = blocks * kBlockColumns;
    for (int64_t begin = 0; begin < columns; begin += 16)
        for (int64_t r = 0; r < kPanelRows; r += 4)
            transpose_fours(levels + r * columns + begin, columns, panel + begin * kPanelRows + 4 * r);
}

// Fours of columns whose products 16 bits hold the sums of: 127 * (2^width - 1) for each.
constexpr int64_t kSafeFours[kMostPanelWidth + 1] = {0, 16, 16, 16, 16, 8, 4, 2};

// The sums of `fours` fours of columns, of eight rows and each vector, `at_once` on 16 bits.
template <int kCount>
DIFFQ_INLINE void sum_fours(const uint8_t* levels, const int8_t* whole, int64_t stride, int64_t fours,
                            int64_t at_once, int32x4_t (&sums)[kCount][2]) {
    for (int v = 0; v < kCount; ++v) sums[v][0] = sums[v][1] = vdupq_n_s32(0);
    for (int64_t begin = 0; begin < fours; begin += at_once) {
        int16x8_t columns[kCount][4];
        for (int v = 0; v < kCount; ++v)
            for (int k = 0; k < 4; ++k) columns[v][k] = vdupq_n_s16(0);
        for (const uint8_t* const end = levels + 4 * kPanelRows * at_once; levels != end;
             levels += 4 * kPanelRows, whole += 4) {
            const int8x16_t first = vreinterpretq_s8_u8(vld1q_u8(levels));
            const int8x16_t second = vreinterpretq_s8_u8(vld1q_u8(levels + 16));
            for (int v = 0; v < kCount; ++v) {
                int32_t four;
                std::memcpy(&four, whole + v * stride, sizeof four);
                const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
                columns[v][0] = vmlal_s8(columns[v][0], vget_low_s8(first), vget_low_s8(x));
                columns[v][1] = vmlal_high_s8(columns[v][1], first, x);
                columns[v][2] = vmlal_s8(columns[v][2], vget_low_s8(second), vget_low_s8(x));
                columns[v][3] = vmlal_high_s8(columns[v][3], second, x);
            }
        }
        for (int v = 0; v < kCount; ++v)
            for (int k = 0; k < 2; ++k)
                sums[v][k] = vaddq_s32(sums[v][k], vpaddq_s32(vpaddlq_s16(columns[v][2 * k]),
                                                              vpaddlq_s16(columns[v][2 * k + 1])));
    }
}

// With eight rows of a panel, whose first levels, scales, offsets and begins these are.
template <int kCount>
static void multiply_eight_rows(const RowPanel& panel, const WholeVectors& vectors, float* products,
                                int64_t apart) {
    const int64_t of_block = kBlockColumns / panel.piece, pieces = panel.blocks * of_block;
    const uint8_t* levels = panel.levels;
    const int8_t* whole = vectors.whole;
    float32x4_t totals[kCount][2];
    for (int v = 0; v < kCount; ++v)
        for (int k = 0; k < 2; ++k) totals[v][k] = vld1q_f32(panel.begins + 4 * k);
    for (int64_t p = 0; p < pieces; ++p) {
        int32x4_t sums[kCount][2];
        const int64_t fours = panel.piece / 4;
        const int64_t at_once = std::min(fours, kSafeFours[panel.widest[p]]);
        sum_fours<kCount>(levels, whole, vectors.stride, fours, at_once, sums);
        const float* const units = vectors.units + p / of_block;
        for (int k = 0; k < 2; ++k) {
            const float32x4_t scale = vld1q_f32(panel.scales + p * kPanelRows + 4 * k);
            const float32x4_t offset = vld1q_f32(panel.offsets + p * kPanelRows + 4 * k);
            for (int v = 0; v < kCount; ++v) {
                const float32x4_t found = vmulq_f32(vcvtq_f32_s32(sums[v][k]), scale);
                const float sum = vectors.sums[v * pieces + p];
                totals[v][k] =
                    vfmaq_n_f32(totals[v][k], vfmaq_n_f32(found, offset, sum), units[v * panel.blocks]);
            }
        }
        levels += panel.piece * kPanelRows;
        whole += panel.piece;
    }
    for (int v = 0; v < kCount; ++v)
        for (int k = 0; k < 2; ++k) vst1q_f32(products + v * apart + 4 * k, totals[v][k]);
}

template <int kCount>
static void multiply_panel_with(const RowPanel& panel, const WholeVectors& vectors, float* products,
                                int64_t apart) {
    for (int64_t r = 0; r < kPanelRows; r += 8) {
        RowPanel eight = panel;
        eight.levels += 4 * r, eight.scales += r, eight.offsets += r, eight.begins += r;
        multiply_eight_rows<kCount>(eight, vectors, products + r, apart);
    }
}

static void multiply_panel(const RowPanel& panel, const WholeVectors& vectors, float* products,
                           int64_t stride) {
    switch (vectors.count) {
        case 1:
            return multiply_panel_with<1>(panel, vectors, products, stride);
        case 2:
            return multiply_panel_with<2>(panel, vectors, products, stride);
        case 3:
            return multiply_panel_with<3>(panel, vectors, products, stride);
        default:
            return multiply_panel_with<kVectorsOfPanel>(panel, vectors, products, stride);
    }
}
