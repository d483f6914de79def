// Sixty-four levels of a packed row as bytes, in vectors of 512 bits: the same instructions for every width,
// whose tables differ.

// Sixty-four levels of one width. Each quarter of the vector first takes the four words that its sixteen
// levels lie in, then each pair of bytes the two that have an even level, and the two that have the odd one
// behind it; these are shifted into their bytes.
//
//   even  |b0 b1|b0 b1| ...  >>  |l0 ..|l2 ..| ...
//   odd   |b0 b1|b1 b2| ...  <<  |.. l1|.. l3| ...
//                                |l0 l1|l2 l3| ...
struct ByteTable {
    alignas(64) uint32_t words[16];
    alignas(64) uint8_t even[64], odd[64];
    alignas(64) uint16_t even_shifts[32], odd_shifts[32];
    uint64_t whole;  // which bytes sixty-four levels are
    uint32_t kept;
};

struct ByteTables {
    ByteTable of[kMostByteWidth + 1];

    constexpr ByteTables() : of() {
        for (int width = 1; width <= kMostByteWidth; ++width)
            for (int quarter = 0; quarter < 4; ++quarter) fill(of[width], width, quarter);
    }

  private:
    constexpr void fill(ByteTable& table, int width, int quarter) {
        const int word = 2 * width * quarter / 4, skipped = 2 * width * quarter % 4;
        table.whole = ~uint64_t{0} >> (64 - 8 * width);
        table.kept = ((uint32_t{1} << width) - 1) * 0x01010101;
        for (int i = 0; i < 4; ++i)
            table.words[4 * quarter + i] = static_cast<uint32_t>(word + i < 16 ? word + i : 15);
        for (int pair = 0; pair < 8; ++pair) {
            const int place = 8 * quarter + pair;
            const int even = 8 * skipped + 2 * pair * width, odd = even + width;
            table.even_shifts[place] = static_cast<uint16_t>(even % 8);
            table.odd_shifts[place] = static_cast<uint16_t>(8 - odd % 8);
            for (int byte = 0; byte < 2; ++byte) {
                table.even[2 * place + byte] = byte_at(even / 8 + byte);
                table.odd[2 * place + byte] = byte_at(odd / 8 + byte);
            }
        }
    }

    static constexpr uint8_t byte_at(int from) { return static_cast<uint8_t>(from < 16 ? from : 0x80); }
};
static constexpr ByteTables kByteTables{};

struct ByteReader {
    __m512i words, even, odd, even_shifts, odd_shifts, kept;
    __mmask64 read;

    // Of `length` levels, at most 64; zeros behind them.
    DIFFQ_MEMBER ByteReader(int width, int64_t length) : ByteReader(*table_of(width), width, length) {}

    DIFFQ_MEMBER __m512i levels(const uint8_t* from) const {
        const __m512i found = _mm512_permutexvar_epi32(words, _mm512_maskz_loadu_epi8(read, from));
        const __m512i first = _mm512_srlv_epi16(_mm512_shuffle_epi8(found, even), even_shifts);
        const __m512i second = _mm512_sllv_epi16(_mm512_shuffle_epi8(found, odd), odd_shifts);
        return _mm512_and_si512(_mm512_mask_blend_epi8(0xAAAAAAAAAAAAAAAA, first, second), kept);
    }

  private:
    DIFFQ_MEMBER ByteReader(const ByteTable& table, int width, int64_t length)
        : words(load_512(table.words)),
          even(load_512(table.even)),
          odd(load_512(table.odd)),
          even_shifts(load_512(table.even_shifts)),
          odd_shifts(load_512(table.odd_shifts)),
          kept(_mm512_set1_epi32(static_cast<int32_t>(table.kept))),
          read(length == 64 ? table.whole : ~uint64_t{0} >> (64 - (length * width + 7) / 8)) {}

    // GCC would keep an address for each part of a table, and the index beside them.
    DIFFQ_MEMBER static const ByteTable* table_of(int width) {
        const ByteTable* table = kByteTables.of + static_cast<uint32_t>(width);
        __asm__("" : "+r"(table));
        return table;
    }
};
