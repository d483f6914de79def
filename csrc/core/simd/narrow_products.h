// Products of rows of packed levels with vectors, see core/infer/packed_rows.h and RowVectors, in vectors of
// 128 bits: in floats, or in whole numbers.

constexpr int64_t kVectorsOfRow = 4;

template <int kCount>
struct FloatSums {
    float32x4_t of[kCount][2];

    DIFFQ_MEMBER FloatSums() {
        for (auto& each : of) each[0] = each[1] = vdupq_n_f32(0.0f);
    }

    // += level * element, of the vectors' four elements `values` and those of the vectors behind it.
    DIFFQ_MEMBER void add(float32x4_t levels, const float* values, int64_t stride, int half) {
        for (int v = 0; v < kCount; ++v)
            of[v][half] = vfmaq_f32(of[v][half], levels, vld1q_f32(values + v * stride));
    }

    // What they come to is worth `scale` times as much.
    DIFFQ_MEMBER void add_to(float32x4_t (&total)[kCount], float scale) const {
        for (int v = 0; v < kCount; ++v)
            total[v] = vfmaq_n_f32(total[v], vaddq_f32(of[v][0], of[v][1]), scale);
    }
};

template <int kCount, class Reader>
DIFFQ_INLINE void add_floats(const uint8_t* from, int width, int64_t length, const float* values,
                             int64_t stride, FloatSums<kCount>& sums) {
    const Reader reader(width);
    for (int64_t i = 0; i < length; i += 8, from += width, values += 8) {
        float32x4_t levels[2];
        reader.take(from, levels);
        for (int half = 0; half < 2; ++half) sums.add(levels[half], values + 4 * half, stride, half);
    }
}

// Which bytes of sixteen levels the lanes of four vectors are: 0x80 gives zero.
alignas(16) static constexpr uint8_t kFours[4][16] = {
    {0, 0x80, 0x80, 0x80, 1, 0x80, 0x80, 0x80, 2, 0x80, 0x80, 0x80, 3, 0x80, 0x80, 0x80},
    {4, 0x80, 0x80, 0x80, 5, 0x80, 0x80, 0x80, 6, 0x80, 0x80, 0x80, 7, 0x80, 0x80, 0x80},
    {8, 0x80, 0x80, 0x80, 9, 0x80, 0x80, 0x80, 10, 0x80, 0x80, 0x80, 11, 0x80, 0x80, 0x80},
    {12, 0x80, 0x80, 0x80, 13, 0x80, 0x80, 0x80, 14, 0x80, 0x80, 0x80, 15, 0x80, 0x80, 0x80}};

// A block, with the vectors' elements from `values` on.
template <int kCount, class Levels>
DIFFQ_INLINE void add_block(const uint8_t* from, const float* values, int64_t stride,
                            FloatSums<kCount>& sums) {
    const Levels block(from);
    for (int k = 0; k < 4; ++k) {
        const uint8x16_t sixteen = block.in_order(k);
        for (int four = 0; four < 4; ++four) {
            const uint32x4_t levels = vreinterpretq_u32_u8(vqtbl1q_u8(sixteen, vld1q_u8(kFours[four])));
            sums.add(vcvtq_f32_u32(levels), values + 16 * k + 4 * four, stride, four % 2);
        }
    }
}

// A block in whole numbers: eight products of 15 * 127 still fit in 16 bits.
template <int kCount, class Levels>
DIFFQ_INLINE void multiply_block(const uint8_t* from, float scale, const RowVectors& vectors, int64_t block,
                                 float32x4_t (&total)[kCount]) {
    const Levels bytes(from);
    for (int v = 0; v < kCount; ++v) {
        const int64_t of = v * vectors.blocks + block;
        const int8_t* const whole = Levels::of(vectors) + of * kBlockColumns;
        int16x8_t sums[2] = {vdupq_n_s16(0), vdupq_n_s16(0)};
        for (int k = 0; k < 4; ++k) {
            const int8x16_t levels = vreinterpretq_s8_u8(bytes.levels[k]), x = vld1q_s8(whole + 16 * k);
            sums[0] = vmlal_s8(sums[0], vget_low_s8(levels), vget_low_s8(x));
            sums[1] = vmlal_high_s8(sums[1], levels, x);
        }
        const float32x4_t sum = vcvtq_f32_s32(vpaddlq_s16(vaddq_s16(sums[0], sums[1])));
        total[v] = vfmaq_n_f32(total[v], sum, scale * vectors.units[of]);
    }
}

// The vectors' elements from `begin` on, in whole numbers, with a piece of a row of up to eight bits.
template <int kCount>
DIFFQ_INLINE void multiply_integers(const uint8_t* from, int width, float scale, const RowVectors& vectors,
                                    int64_t begin, int64_t length, float32x4_t (&total)[kCount]) {
    const ShortReader reader(width);
    int32x4_t sums[kCount][2];
    for (int v = 0; v < kCount; ++v) sums[v][0] = sums[v][1] = vdupq_n_s32(0);
    const int16_t* integers = vectors.integers + begin;
    for (int64_t i = 0; i < length; i += 8, from += width, integers += 8) {
        const int16x8_t levels = vreinterpretq_s16_u16(reader.levels(from));
        for (int v = 0; v < kCount; ++v) {
            const int16x8_t x = vld1q_s16(integers + v * vectors.stride);
            sums[v][0] = vmlal_s16(sums[v][0], vget_low_s16(levels), vget_low_s16(x));
            sums[v][1] = vmlal_high_s16(sums[v][1], levels, x);
        }
    }
    const float* const units = vectors.units + begin / kBlockColumns;
    for (int v = 0; v < kCount; ++v) {
        const float32x4_t sum = vcvtq_f32_s32(vaddq_s32(sums[v][0], sums[v][1]));
        total[v] = vfmaq_n_f32(total[v], sum, scale * units[v * vectors.blocks]);
    }
}

// kInBlock: the piece lies in one block of the vectors.
template <int kCount, bool kInBlock>
DIFFQ_INLINE void multiply_piece(const uint8_t* from, int width, float scale, const RowVectors& vectors,
                                 int64_t begin, int64_t length, float32x4_t (&total)[kCount]) {
    if (kInBlock && vectors.integers && width <= kMostShortWidth)
        return multiply_integers<kCount>(from, width, scale, vectors, begin, length, total);
    const float* const values = vectors.values + begin;
    FloatSums<kCount> sums;
    if (width <= kMostShortWidth) {
        add_floats<kCount, ShortReader>(from, width, length, values, vectors.stride, sums);
    } else {
        add_floats<kCount, LongReader>(from, width, length, values, vectors.stride, sums);
    }
    sums.add_to(total, scale);
}

// So many pieces that are blocks of one width.
template <int kCount, class Levels>
DIFFQ_INLINE const uint8_t* multiply_blocks(const uint8_t* from, const Pieces& pieces, int64_t count,
                                            const RowVectors& vectors, int64_t begin,
                                            float32x4_t (&total)[kCount]) {
    constexpr int64_t kBytes = kBlockColumns / 8 * Levels::kWidth;
    for (int64_t k = 0; k < count; ++k, from += kBytes, begin += kBlockColumns) {
        if (vectors.integers) {
            multiply_block<kCount, Levels>(from, pieces.scales[k], vectors, begin / kBlockColumns, total);
        } else {
            FloatSums<kCount> sums;
            add_block<kCount, Levels>(from, vectors.values + begin, vectors.stride, sums);
            sums.add_to(total, pieces.scales[k]);
        }
    }
    return from;
}

// products[v] = what the offsets of a row's segments add to the product with each vector.
template <int kCount>
DIFFQ_INLINE void multiply_offsets(const PackedRow& row, const RowVectors& vectors, float* products) {
    if (row.group_size == 0 && row.offsets) {
        for (int v = 0; v < kCount; ++v) products[v] = row.offsets[0] * vectors.totals[v];
    } else if (row.group_size == row.segment && row.before == 0 && row.offsets) {
        for (int v = 0; v < kCount; ++v) {
            const float* const of = vectors.sums + v * row.segments;
            float32x4_t fours = vdupq_n_f32(0.0f);
            int64_t s = 0;
            for (; s + 4 <= row.segments; s += 4)
                fours = vfmaq_f32(fours, vld1q_f32(row.offsets + s), vld1q_f32(of + s));
            products[v] = vaddvq_f32(fours);
            for (; s < row.segments; ++s) products[v] += row.offsets[s] * of[s];
        }
    } else {
        for (int v = 0; v < kCount; ++v) products[v] = 0.0f;
        GroupCursor at(row);
        for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
            const float offset = RowScale(row, width_of_segment(row.widths, s), at.group).offset;
            for (int v = 0; v < kCount; ++v) products[v] += offset * vectors.sums[v * row.segments + s];
        }
    }
}

// Rows of whole pieces, but for the last one: 64 elements, or 32, of one width, scale and block of vectors;
// or 0: segments, whatever their length.
template <int kCount, int kPiece>
DIFFQ_INLINE void multiply_pieces(const PackedRow& row, const RowVectors& vectors, float* products) {
    constexpr bool kInBlock = kPiece > 0, kBlocks = kPiece == kBlockColumns;
    const int64_t piece = kInBlock ? kPiece : row.segment;
    const uint8_t* from = row.data;
    float32x4_t total[kCount];
    for (float32x4_t& each : total) each = vdupq_n_f32(0.0f);
    Pieces pieces(row, piece);
    int64_t begin = 0;
    while (begin + piece <= row.columns) {
        const int64_t count = std::min((row.columns - begin) / piece, Pieces::kAtOnce);
        pieces.take(count);
        if (kBlocks && pieces.all_have(4, count)) {
            from = multiply_blocks<kCount, HalfBytes>(from, pieces, count, vectors, begin, total);
            begin += count * piece;
            continue;
        }
        if (kBlocks && pieces.all_have(2, count)) {
            from = multiply_blocks<kCount, QuarterBytes>(from, pieces, count, vectors, begin, total);
            begin += count * piece;
            continue;
        }
        for (int64_t k = 0; k < count; ++k, begin += piece) {
            const int width = pieces.widths[k];
            multiply_piece<kCount, kInBlock>(from, width, pieces.scales[k], vectors, begin, piece, total);
            from += piece / 8 * width;
        }
    }
    if (begin < row.columns) {
        pieces.take(1);
        multiply_piece<kCount, kInBlock>(from, pieces.widths[0], pieces.scales[0], vectors, begin,
                                         row.columns - begin, total);
    }
    multiply_offsets<kCount>(row, vectors, products);
    for (int v = 0; v < kCount; ++v) products[v] += vaddvq_f32(total[v]);
}

// One eight, whose levels are worth `scale` each.
template <int kCount, class Reader>
DIFFQ_INLINE void add_eight(const uint8_t* from, int width, float scale, const float* values, int64_t stride,
                            FloatSums<kCount>& sums) {
    float32x4_t levels[2];
    Reader(width).take(from, levels);
    for (int half = 0; half < 2; ++half)
        sums.add(vmulq_n_f32(levels[half], scale), values + 4 * half, stride, half);
}

// Segments of eight levels where all have one scale and one offset, which counts once: two segments, whose
// widths are one byte, at a time.
template <int kCount>
DIFFQ_INLINE void multiply_eights_of_one_scale(const PackedRow& row, const RowVectors& vectors,
                                               float* products) {
    const uint8_t* from = row.data;
    const float* values = vectors.values;
    FloatSums<kCount> sums;
    const auto take = [&](int width) {
        const float scale = row.scaled[width];
        if (width <= kMostShortWidth) {
            add_eight<kCount, ShortReader>(from, width, scale, values, vectors.stride, sums);
        } else {
            add_eight<kCount, LongReader>(from, width, scale, values, vectors.stride, sums);
        }
        from += width;
        values += 8;
    };
    for (int64_t s = 0; s + 2 <= row.segments; s += 2) {
        const int widths = row.widths[s / 2];
        take((widths & 15) + 1);
        take((widths >> 4) + 1);
    }
    if (row.segments % 2 != 0) take(width_of_segment(row.widths, row.segments - 1));
    for (int v = 0; v < kCount; ++v)
        products[v] =
            vaddvq_f32(vaddq_f32(sums.of[v][0], sums.of[v][1])) + row.offsets[0] * vectors.totals[v];
}

template <int kCount>
DIFFQ_INLINE void multiply_some(const PackedRow& row, const RowVectors& vectors, float* products) {
    if (row.segments == 1 || row.segment % kBlockColumns == 0) {
        multiply_pieces<kCount, kBlockColumns>(row, vectors, products);
    } else if (row.segment % 32 == 0) {
        multiply_pieces<kCount, 32>(row, vectors, products);
    } else if (row.segment == 8 && row.scaled) {
        multiply_eights_of_one_scale<kCount>(row, vectors, products);
    } else {
        multiply_pieces<kCount, 0>(row, vectors, products);
    }
}
