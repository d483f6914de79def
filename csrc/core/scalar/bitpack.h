// Levels <-> words of one block, see core/pack/bitpack.h, for any number of lanes: bit by bit's definition, a
// row at a time.

static void pack(int width, const uint32_t* levels, int64_t lanes, uint32_t* words) {
    const uint32_t mask = (uint32_t{1} << width) - 1;
    std::fill(words, words + width * lanes, 0);
    for (int row = 0; row < 32; ++row, levels += lanes) {
        const int shift = row * width % 32;
        uint32_t* const word = words + row * width / 32 * lanes;
        for (int64_t i = 0; i < lanes; ++i) word[i] |= (levels[i] & mask) << shift;
        if (shift + width <= 32) continue;
        for (int64_t i = 0; i < lanes; ++i) word[lanes + i] |= (levels[i] & mask) >> (32 - shift);
    }
}

static void unpack(int width, const uint32_t* words, int64_t lanes, uint32_t* levels) {
    const uint32_t mask = (uint32_t{1} << width) - 1;
    for (int row = 0; row < 32; ++row, levels += lanes) {
        const int shift = row * width % 32;
        const uint32_t* const word = words + row * width / 32 * lanes;
        for (int64_t i = 0; i < lanes; ++i) levels[i] = word[i] >> shift & mask;
        if (shift + width <= 32) continue;
        for (int64_t i = 0; i < lanes; ++i) levels[i] |= word[lanes + i] << (32 - shift) & mask;
    }
}
