// Sixteen levels of up to eight bits as whole numbers of 16 bits: the two bytes that have a level are shifted
// left, which drops the levels behind it, and then right, which drops those before.
struct SixteenTable {
    alignas(16) uint8_t bytes[16];
    alignas(16) uint16_t factors[8];
};

constexpr int kMostSixteenWidth = 8;

struct SixteenTables {
    SixteenTable of[kMostSixteenWidth + 1];

    constexpr SixteenTables() : of() {
        for (int width = 1; width <= kMostSixteenWidth; ++width) {
            for (int lane = 0; lane < 8; ++lane) {
                const int bit = lane * width;
                of[width].factors[lane] = static_cast<uint16_t>(1 << (16 - width - bit % 8));
                for (int byte = 0; byte < 2; ++byte)
                    of[width].bytes[lane * 2 + byte] = static_cast<uint8_t>(bit / 8 + byte);
            }
        }
    }
};
static constexpr SixteenTables kSixteenTables{};

struct SixteenReader {
    __m256i bytes, factors;
    __m128i shift;
    int width;

    DIFFQ_MEMBER explicit SixteenReader(int of) : width(of) {
        const SixteenTable& table = kSixteenTables.of[width];
        bytes = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table.bytes)));
        factors =
            _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table.factors)));
        shift = _mm_cvtsi32_si128(16 - width);
    }

    // Sixteen bytes from the first level on, and from the ninth, are read.
    DIFFQ_MEMBER __m256i levels(const uint8_t* from) const { return levels(from, from + width); }

    DIFFQ_MEMBER __m256i levels(const uint8_t* first, const uint8_t* ninth) const {
        const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
        const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(ninth));
        const __m256i pairs = _mm256_shuffle_epi8(_mm256_set_m128i(high, low), bytes);
        return _mm256_srl_epi16(_mm256_mullo_epi16(pairs, factors), shift);
    }
};
