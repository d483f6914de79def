// Levels of packed rows in vectors of 512 bits, see core/infer/packed_rows.h: sixteen as floats, the same
// instructions for every width, whose tables differ; or sixty-four as bytes, of the widths that need no
// table.

// Sixteen levels of one width: the bytes that each lane takes of the sixteen from the first level's on, and
// of those from the ninth's on where a level has more than eight bits; the bits that are kept, and the factor
// that makes a level of them.
struct WideTable {
    alignas(64) uint8_t bytes[64];
    alignas(64) uint32_t masks[16];
    alignas(64) float factors[16];
};

constexpr int kMostByteWidth = 8;

struct WideTables {
    WideTable of[kMaxWidth + 1];

    constexpr WideTables() : of() {
        for (int width = 1; width <= kMaxWidth; ++width)
            for (int lane = 0; lane < 16; ++lane) {
                const int bit = (width > kMostByteWidth ? lane % 8 : lane) * width;
                of[width].masks[lane] = ((uint32_t{1} << width) - 1) << bit % 8;
                of[width].factors[lane] = 1.0f / static_cast<float>(1 << bit % 8);
                for (int byte = 0; byte < 4; ++byte) {
                    const int from = bit / 8 + byte;
                    of[width].bytes[lane * 4 + byte] = static_cast<uint8_t>(from < 16 ? from : 0x80);
                }
            }
    }
};
static constexpr WideTables kWideTables{};

template <typename Item>
DIFFQ_INLINE __m512i load_512(const Item* from) {
    return _mm512_loadu_si512(from);
}
DIFFQ_INLINE __m128i load_128(const uint8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

// Not in a way that GCC makes a call or a string instruction of.
template <int kCount>
DIFFQ_INLINE void set_zero(__m512 (&sums)[kCount]) {
    __m512 zero = _mm512_setzero_ps();
    __asm__("" : "+v"(zero));
    for (int v = 0; v < kCount; ++v) sums[v] = zero;
}

struct WideReader {
    __m512i bytes, masks;
    __m512 factors;

    DIFFQ_MEMBER explicit WideReader(int width)
        : bytes(load_512(kWideTables.of[width].bytes)),
          masks(load_512(kWideTables.of[width].masks)),
          factors(_mm512_load_ps(kWideTables.of[width].factors)) {}

    // Each over its lane's factor. Of up to eight bits; sixteen bytes are read.
    DIFFQ_MEMBER __m512 levels(const uint8_t* from) const {
        return floats(_mm512_broadcast_i32x4(load_128(from)));
    }

    // Of any width; sixteen bytes are read from the first level on, and from the ninth.
    DIFFQ_MEMBER __m512 levels(const uint8_t* first, const uint8_t* ninth) const {
        const __m512i low = _mm512_broadcast_i32x4(load_128(first));
        return floats(_mm512_mask_broadcast_i32x4(low, 0xFF00, load_128(ninth)));
    }

  private:
    DIFFQ_MEMBER __m512 floats(__m512i from) const {
        return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_shuffle_epi8(from, bytes), masks));
    }
};

// Sixty-four levels of eight bits, of four, and of two, in the order of RowVectors' whole numbers, halves and
// quarters: what takes no shuffling.
struct WholeReader {
    DIFFQ_MEMBER __m512i levels(const uint8_t* from) const { return load_512(from); }
};

struct HalfReader {
    DIFFQ_MEMBER __m512i levels(const uint8_t* from) const {
        const __m512i shifts = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        const __m512i both = _mm512_srlv_epi64(_mm512_broadcast_i64x4(bytes), shifts);
        return _mm512_and_si512(both, _mm512_set1_epi8(15));
    }
};

struct QuarterReader {
    DIFFQ_MEMBER __m512i levels(const uint8_t* from) const {
        const __m512i shifts = _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6);
        const __m512i all = _mm512_srlv_epi64(_mm512_broadcast_i32x4(load_128(from)), shifts);
        return _mm512_and_si512(all, _mm512_set1_epi8(3));
    }
};
