// Rows of packed levels, see core/infer/packed_rows.h, eight levels at a time: their b bytes are shuffled so
// that each lane has the bytes of its level, and shifted. The same instructions for every width, whose tables
// differ.

// Eight levels of one width: which bytes a lane takes, how far they are shifted, and which bits are kept.
struct EightTable {
    alignas(32) uint8_t bytes[32];
    alignas(32) uint32_t shifts[8], masks[8];
};

struct EightTables {
    EightTable of[kMaxWidth + 1];

    constexpr EightTables() : of() {
        for (int width = 1; width <= kMaxWidth; ++width) {
            for (int lane = 0; lane < 8; ++lane) {
                const int bit = lane * width;
                of[width].shifts[lane] = static_cast<uint32_t>(bit % 8);
                of[width].masks[lane] = (uint32_t{1} << width) - 1;
                for (int byte = 0; byte < 4; ++byte) {
                    const int from = bit / 8 + byte;
                    of[width].bytes[lane * 4 + byte] = static_cast<uint8_t>(from < 16 ? from : 0x80);
                }
            }
        }
    }
};
static constexpr EightTables kEightTables{};

// Takes eights of one width.
struct EightReader {
    __m256i bytes, shifts, masks;

    DIFFQ_MEMBER explicit EightReader(int width) {
        const EightTable& table = kEightTables.of[width];
        bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(table.bytes));
        shifts = _mm256_load_si256(reinterpret_cast<const __m256i*>(table.shifts));
        masks = _mm256_load_si256(reinterpret_cast<const __m256i*>(table.masks));
    }

    // Sixteen bytes are read.
    DIFFQ_MEMBER __m256 levels(const uint8_t* from) const {
        const __m256i both =
            _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        const __m256i lanes = _mm256_shuffle_epi8(both, bytes);
        return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(lanes, shifts), masks));
    }
};

// Segments that are no whole eights, before others: those of weights whose rows do not begin with a group.
DIFFQ_INLINE bool has_broken_eights(const PackedRow& row) {
    return row.segment % 8 != 0 && row.segments > 1;
}

static void unpack_row(const PackedRow& row, float* values) {
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
