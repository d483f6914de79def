// Levels <-> words of one block, see core/pack/words.h, for any number of lanes: bit by bit's definition, a
// row at a time.

static void pack_words(int width, const uint32_t* levels, int64_t lanes, uint32_t* words) {
    const uint32_t mask = (uint32_t{1} << width) - 1;
    std::fill(words, words + width * lanes, 0);
    for (int row = 0; row < kBlockRows; ++row, levels += lanes) {
        const int shift = row * width % kWordBits;
        uint32_t* const word = words + row * width / kWordBits * lanes;
        for (int64_t i = 0; i < lanes; ++i) word[i] |= (levels[i] & mask) << shift;
        if (shift + width <= kWordBits) continue;
        for (int64_t i = 0; i < lanes; ++i) word[lanes + i] |= (levels[i] & mask) >> (kWordBits - shift);
    }
}

static void unpack_words(int width, const uint32_t* words, int64_t lanes, uint32_t* levels) {
    const uint32_t mask = (uint32_t{1} << width) - 1;
    for (int row = 0; row < kBlockRows; ++row, levels += lanes) {
        const int shift = row * width % kWordBits;
        const uint32_t* const word = words + row * width / kWordBits * lanes;
        for (int64_t i = 0; i < lanes; ++i) levels[i] = word[i] >> shift & mask;
        if (shift + width <= kWordBits) continue;
        for (int64_t i = 0; i < lanes; ++i) levels[i] |= word[lanes + i] << (kWordBits - shift) & mask;
    }
}
