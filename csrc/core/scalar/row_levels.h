// Level i of a segment; the four bytes from its first bit's on are read.
static inline uint32_t level_at(const uint8_t* segment, int64_t i, int width) {
    const int64_t bit = i * width;
    uint32_t word = 0;
    for (int byte = 0; byte < 3; ++byte) word |= static_cast<uint32_t>(segment[bit / 8 + byte]) << 8 * byte;
    return word >> bit % 8 & ((uint32_t{1} << width) - 1);
}
