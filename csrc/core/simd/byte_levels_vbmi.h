// Sixty-four levels of a packed row as bytes, as byte_levels.h has them, with AVX-512's VBMI: each eight
// bytes of the vector take those that their eight levels begin with, and each byte of them the eight bits
// that its level begins with.

struct ByteTable {
    alignas(64) uint8_t bytes[64];
    uint64_t shifts, kept;
    uint64_t whole;  // which bytes sixty-four levels are
};

struct ByteTables {
    ByteTable of[kMostByteWidth + 1];

    constexpr ByteTables() : of() {
        for (int width = 1; width <= kMostByteWidth; ++width) {
            ByteTable& table = of[width];
            table.shifts = 0;
            for (int i = 0; i < 64; ++i) table.bytes[i] = static_cast<uint8_t>((i / 8 * width + i % 8) % 64);
            for (int i = 0; i < 8; ++i) table.shifts |= static_cast<uint64_t>(i * width) << 8 * i;
            table.kept = ((uint64_t{1} << width) - 1) * 0x0101010101010101;
            table.whole = ~uint64_t{0} >> (64 - 8 * width);
        }
    }
};
static constexpr ByteTables kByteTables{};

struct ByteReader {
    __m512i bytes, shifts, kept;
    __mmask64 read;

    // Of `length` levels, at most 64; zeros behind them.
    DIFFQ_MEMBER ByteReader(int width, int64_t length)
        : ByteReader(kByteTables.of[static_cast<uint32_t>(width)], width, length) {}

    DIFFQ_MEMBER __m512i levels(const uint8_t* from) const {
        const __m512i eights = _mm512_permutexvar_epi8(bytes, _mm512_maskz_loadu_epi8(read, from));
        return _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, eights), kept);
    }

  private:
    DIFFQ_MEMBER ByteReader(const ByteTable& table, int width, int64_t length)
        : bytes(load_512(table.bytes)),
          shifts(_mm512_set1_epi64(static_cast<int64_t>(table.shifts))),
          kept(_mm512_set1_epi64(static_cast<int64_t>(table.kept))),
          read(length == 64 ? table.whole : ~uint64_t{0} >> (64 - (length * width + 7) / 8)) {}
};
