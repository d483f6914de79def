// Rows of coded levels, see core/pack/coding.h: the definition, a lane at a time. Whether a state takes a
// word is as good as random, so there is no branch on it.

static const uint16_t* decode_rows(const CodedSlots& code, uint32_t* states, const uint16_t* words,
                                   int64_t rows, int32_t* levels, uint32_t* escaped) {
    *escaped = 0;
    for (int64_t row = 0; row < rows; ++row) {
        uint32_t any = 0;
        for (int lane = 0; lane < kCodedLanes; ++lane) {
            uint32_t x = states[lane];
            const uint32_t slot = code.slots[x % kSlots];
            x = (slot >> 12) % kSlots * (x >> kProbabilityBits) + slot % kSlots;
            const uint32_t low = x < kLowestState ? 1 : 0;
            states[lane] = x << 16 * low | (*words & (0 - low));
            words += low;
            any |= slot >> 24 == code.escape ? 1 : 0;
            *levels++ = code.origin + static_cast<int32_t>((slot >> 24) << code.low_bits);
        }
        *escaped |= any << row;
    }
    return words;
}
