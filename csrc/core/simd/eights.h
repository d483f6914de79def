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

// How far ahead of its use a row is asked for: the hardware stops at the ends of pages.
constexpr int64_t kRowAhead = 2048;
DIFFQ_INLINE void ask_for_row(const uint8_t* from) {
    _mm_prefetch(reinterpret_cast<const char*>(from + kRowAhead), _MM_HINT_T0);
}
