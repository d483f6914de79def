// Rows of packed levels, see core/infer/packed_rows.h, eight levels at a time: their bytes go to lanes of 32
// bits, where a product with a power of two puts each level at the same place, as lanes cannot be shifted by
// numbers of their own.
//
//   lane   |. . . . . . . .|. l l l l l . .|   s bits below the level
//   times 2^(7 - s)        |l l l l l 0 0 ...  7 bits below it, in every lane

struct EightTable {
    alignas(16) uint8_t bytes[2][16];
    alignas(16) uint32_t factors[2][4];
};

struct EightTables {
    EightTable of[kMaxWidth + 1];

    constexpr EightTables() : of() {
        for (int width = 1; width <= kMaxWidth; ++width) {
            for (int level = 0; level < 8; ++level) {
                const int half = level / 4, lane = level % 4, bit = level * width;
                of[width].factors[half][lane] = uint32_t{1} << (7 - bit % 8);
                for (int byte = 0; byte < 4; ++byte) {
                    const int from = bit / 8 + byte;
                    of[width].bytes[half][lane * 4 + byte] = static_cast<uint8_t>(from < 16 ? from : 0x80);
                }
            }
        }
    }
};
static constexpr EightTables kEightTables{};

// Takes eights of one width.
struct EightReader {
    v128_t bytes[2], factors[2], mask;

    DIFFQ_MEMBER explicit EightReader(int width)
        : mask(wasm_i32x4_splat(static_cast<int32_t>((uint32_t{1} << width) - 1))) {
        const EightTable& table = kEightTables.of[width];
        for (int half = 0; half < 2; ++half) {
            bytes[half] = wasm_v128_load(table.bytes[half]);
            factors[half] = wasm_v128_load(table.factors[half]);
        }
    }

    // Four of the eight, whose sixteen bytes `read` has.
    DIFFQ_MEMBER Float levels(v128_t read, int half) const {
        const v128_t lanes = wasm_i32x4_mul(wasm_i8x16_swizzle(read, bytes[half]), factors[half]);
        return (Float)wasm_f32x4_convert_i32x4(wasm_v128_and(wasm_u32x4_shr(lanes, 7), mask));
    }
};

// Segments that are no whole eights, before others.
DIFFQ_INLINE bool has_broken_eights(const PackedRow& row) {
    return row.segment % 8 != 0 && row.segments > 1;
}

// Calls body(segment, width, length, group, data) for one segment of a row after the other.
template <typename Body>
DIFFQ_INLINE void for_each_row_segment(const PackedRow& row, Body&& body) {
    const uint8_t* from = row.data;
    GroupCursor at(row);
    for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
        const int width = width_of_segment(row.widths, s);
        const int64_t length = std::min(row.segment, row.columns - s * row.segment);
        body(s * row.segment, width, length, at.group, from);
        from += (length * width + 7) / 8;
    }
}

// The vectors' zeros behind the columns make nothing of what lies behind the last level.
template <int kCount>
static void multiply_eights(const PackedRow& row, const RowVectors& vectors, float* products) {
    Float sums[kCount][2] = {};
    for_each_row_segment(
        row, [&](int64_t begin, int width, int64_t length, int64_t group, const uint8_t* from) {
            const EightReader eight(width);
            const float step = row.steps[width] * row.scales[group];
            const Float scale = splat(step);
            const Float offset = splat(row.offsets ? row.offsets[group] : -row.halves[width] * step);
            const float* vector = vectors.values + begin;
            for (int64_t i = 0; i < length; i += 8, from += width, vector += 8) {
                const v128_t read = wasm_v128_load(from);
                for (int half = 0; half < 2; ++half) {
                    const Float weights = eight.levels(read, half) * scale + offset;
                    for (int v = 0; v < kCount; ++v)
                        sums[v][half] += weights * load(vector + v * vectors.stride + 4 * half);
                }
            }
        });
    for (int v = 0; v < kCount; ++v) {
        const Float sum = sums[v][0] + sums[v][1];
        products[v] = (sum[0] + sum[2]) + (sum[1] + sum[3]);
    }
}

static void multiply_row(const PackedRow& row, const RowVectors& vectors, float* products) {
    static constexpr decltype(&multiply_eights<1>) kByCount[] = {multiply_eights<1>, multiply_eights<2>,
                                                                 multiply_eights<3>, multiply_eights<4>};
    if (has_broken_eights(row)) return multiply_row_by_level(row, vectors, products);
    kByCount[vectors.count - 1](row, vectors, products);
}

static void unpack_row(const PackedRow& row, float* values) {
    if (has_broken_eights(row)) return unpack_row_by_level(row, values);
    for_each_row_segment(row,
                         [&](int64_t begin, int width, int64_t length, int64_t group, const uint8_t* from) {
                             const EightReader eight(width);
                             const Float half = splat(row.halves[width]), step = splat(row.steps[width]);
                             const Float scale = splat(row.scales[group]);
                             for (int64_t i = 0; i < length; i += 8, from += width) {
                                 const v128_t read = wasm_v128_load(from);
                                 float made[8];
                                 for (int part = 0; part < 2; ++part) {
                                     Float value = (eight.levels(read, part) - half) * step * scale;
                                     if (row.offsets) value = value + splat(row.offsets[group]);
                                     store(value, made + 4 * part);
                                 }
                                 std::copy(made, made + std::min<int64_t>(8, length - i), values + begin + i);
                             }
                         });
}
