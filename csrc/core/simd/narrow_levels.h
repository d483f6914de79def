// Rows of packed levels, see core/infer/packed_rows.h, in vectors of 128 bits, eight levels at a time: their
// b bytes are looked up so that each lane has the bytes of its level, and shifted. The same instructions for
// every width, whose tables differ.

// Eight levels of up to eight bits, in lanes of 16 bits: which bytes a lane takes, how far they are shifted
// (to the right: below zero), and which bits are kept.
struct ShortTable {
    alignas(16) uint8_t bytes[16];
    int16_t shifts[8];
    uint16_t masks[8];
};

constexpr int kMostShortWidth = 8;

struct ShortTables {
    ShortTable of[kMostShortWidth + 1];

    constexpr ShortTables() : of() {
        for (int width = 1; width <= kMostShortWidth; ++width) {
            for (int lane = 0; lane < 8; ++lane) {
                const int bit = lane * width;
                of[width].shifts[lane] = static_cast<int16_t>(-(bit % 8));
                of[width].masks[lane] = static_cast<uint16_t>((1 << width) - 1);
                for (int byte = 0; byte < 2; ++byte)
                    of[width].bytes[lane * 2 + byte] = static_cast<uint8_t>(bit / 8 + byte);
            }
        }
    }
};
static constexpr ShortTables kShortTables{};

// Takes eights of one width, of up to eight bits.
struct ShortReader {
    uint8x16_t bytes;
    int16x8_t shifts;
    uint16x8_t masks;

    DIFFQ_MEMBER explicit ShortReader(int width)
        : bytes(vld1q_u8(kShortTables.of[width].bytes)),
          shifts(vld1q_s16(kShortTables.of[width].shifts)),
          masks(vld1q_u16(kShortTables.of[width].masks)) {}

    // Sixteen bytes are read.
    DIFFQ_MEMBER uint16x8_t levels(const uint8_t* from) const {
        const uint8x16_t lanes = vqtbl1q_u8(vld1q_u8(from), bytes);
        return vandq_u16(vshlq_u16(vreinterpretq_u16_u8(lanes), shifts), masks);
    }

    DIFFQ_MEMBER void take(const uint8_t* from, float32x4_t (&made)[2]) const {
        const uint16x8_t eight = levels(from);
        made[0] = vcvtq_f32_u32(vmovl_u16(vget_low_u16(eight)));
        made[1] = vcvtq_f32_u32(vmovl_high_u16(eight));
    }
};

// Eight levels of any width, in lanes of 32 bits. A lookup of a byte behind the sixteenth gives zero.
struct LongTable {
    alignas(16) uint8_t bytes[2][16];
    alignas(16) int32_t shifts[2][4];
};

struct LongTables {
    LongTable of[kMaxWidth + 1];

    constexpr LongTables() : of() {
        for (int width = 1; width <= kMaxWidth; ++width) {
            for (int level = 0; level < 8; ++level) {
                const int half = level / 4, lane = level % 4, bit = level * width;
                of[width].shifts[half][lane] = -(bit % 8);
                for (int byte = 0; byte < 4; ++byte)
                    of[width].bytes[half][lane * 4 + byte] = static_cast<uint8_t>(bit / 8 + byte);
            }
        }
    }
};
static constexpr LongTables kLongTables{};

// Takes eights of one width.
struct LongReader {
    uint8x16_t bytes[2];
    int32x4_t shifts[2];
    uint32x4_t mask;

    DIFFQ_MEMBER explicit LongReader(int width) : mask(vdupq_n_u32((uint32_t{1} << width) - 1)) {
        for (int half = 0; half < 2; ++half) {
            bytes[half] = vld1q_u8(kLongTables.of[width].bytes[half]);
            shifts[half] = vld1q_s32(kLongTables.of[width].shifts[half]);
        }
    }

    // Sixteen bytes are read.
    DIFFQ_MEMBER void take(const uint8_t* from, float32x4_t (&made)[2]) const {
        const uint8x16_t read = vld1q_u8(from);
        for (int half = 0; half < 2; ++half) {
            const uint32x4_t lanes = vreinterpretq_u32_u8(vqtbl1q_u8(read, bytes[half]));
            made[half] = vcvtq_f32_u32(vandq_u32(vshlq_u32(lanes, shifts[half]), mask));
        }
    }
};

// A block of kBlockColumns levels of four bits, or of two, as bytes. Each byte of a row has two columns, one
// behind the other, or four.
struct HalfBytes {
    uint8x16_t levels[4];  // as RowVectors' halves are

    DIFFQ_MEMBER explicit HalfBytes(const uint8_t* from) {
        for (int k = 0; k < 2; ++k) {
            const uint8x16_t bytes = vld1q_u8(from + 16 * k);
            levels[k] = vandq_u8(bytes, vdupq_n_u8(15));
            levels[k + 2] = vshrq_n_u8(bytes, 4);
        }
    }

    // The levels 16 k up to 16 (k + 1).
    DIFFQ_MEMBER uint8x16_t in_order(int k) const {
        const uint8x16_t even = levels[k / 2], odd = levels[k / 2 + 2];
        return k % 2 == 0 ? vzip1q_u8(even, odd) : vzip2q_u8(even, odd);
    }

    static constexpr int kWidth = 4;
    DIFFQ_MEMBER static const int8_t* of(const RowVectors& vectors) { return vectors.halves; }
};

struct QuarterBytes {
    uint8x16_t levels[4];  // as RowVectors' quarters are

    DIFFQ_MEMBER explicit QuarterBytes(const uint8_t* from) {
        const uint8x16_t bytes = vld1q_u8(from), mask = vdupq_n_u8(3);
        levels[0] = vandq_u8(bytes, mask);
        levels[1] = vandq_u8(vshrq_n_u8(bytes, 2), mask);
        levels[2] = vandq_u8(vshrq_n_u8(bytes, 4), mask);
        levels[3] = vshrq_n_u8(bytes, 6);
    }

    DIFFQ_MEMBER uint8x16_t in_order(int k) const {
        const bool low = k < 2;
        const uint8x16_t even = low ? vzip1q_u8(levels[0], levels[2]) : vzip2q_u8(levels[0], levels[2]);
        const uint8x16_t odd = low ? vzip1q_u8(levels[1], levels[3]) : vzip2q_u8(levels[1], levels[3]);
        return k % 2 == 0 ? vzip1q_u8(even, odd) : vzip2q_u8(even, odd);
    }

    static constexpr int kWidth = 2;
    DIFFQ_MEMBER static const int8_t* of(const RowVectors& vectors) { return vectors.quarters; }
};
